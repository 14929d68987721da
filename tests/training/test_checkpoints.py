"""Ten steps are five steps, a checkpoint on disk, objects made anew, and five steps more: bit for bit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from batchcam_captum import (
    BatchCamLoss,
    BatchGradCam,
    CamRegularizer,
    ClassPrototypes,
    PrototypeLoss,
)
from batchcam_captum.attribution import Split
from batchcam_captum.prototypes import RunningPrototypes
from batchcam_captum.training import AutoWeight, Cosine, EveryKSteps, LinearWarmup
from tests.training.models import K, Net

WEIGHTS = {
    "number": lambda: 0.7,
    "function": lambda: lambda step: 0.1 * (step + 1),
    "warm-up": lambda: LinearWarmup(1.0, steps=7),
    "cosine": lambda: Cosine(1.0, steps=8),
    "every k": lambda: EveryKSteps(LinearWarmup(1.0, steps=4), k=3, rescale=True),
    "auto": lambda: AutoWeight(0.2, every=3),
    "auto string": lambda: "auto",
}
LOSSES = {
    "maps": lambda: BatchCamLoss(torch.rand(K, 1, 8, 8)),
    "streamed": lambda: BatchCamLoss(ClassPrototypes(K, mean=0.1, std=0.5), distance="ssim"),
    "memory": lambda: BatchCamLoss(ClassPrototypes(K), memory=3),
    "self": lambda: PrototypeLoss(RunningPrototypes(K)),
}


class Everything:
    """The objects of a training script, as a new process makes them: with weights and prototypes of its own."""

    def __init__(self, kind, loss, weight, layers, seed) -> None:
        torch.manual_seed(seed)
        self.model = Net()
        self.kind = kind
        losses = {
            "first": (LOSSES[loss](), WEIGHTS[weight]()),
            "second": (BatchCamLoss(torch.rand(K, 1, 8, 8)), 0.5),
        }
        if kind == "split":
            parts = Split(nn.Sequential(self.model.trunk, self.model.layer), self.model.head)
            self.regularizer = CamRegularizer(parts, losses)
        else:
            self.regularizer = CamRegularizer(BatchGradCam(self.model, layers), losses)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)

    @property
    def stateful(self):
        return {"model": self.model, "regularizer": self.regularizer, "optimizer": self.optimizer}

    def stream(self):
        """Prototypes are made once, by the first process."""
        for loss in self.regularizer.terms.values():
            if isinstance(loss.prototypes, ClassPrototypes) and not loss.prototypes.counts.any():
                loss.prototypes.update(torch.rand(6, 1, 8, 8), torch.arange(6) % K)

    def save(self, path):
        state = {name: each.state_dict() for name, each in self.stateful.items()}
        torch.save({**state, "rng": torch.get_rng_state()}, path)

    def load(self, path):
        state = torch.load(path)  # weights_only: nothing but tensors and numbers is in there
        for name, each in self.stateful.items():
            each.load_state_dict(state[name])
        torch.set_rng_state(state["rng"])

    def train(self, steps):
        losses = []
        for number in steps:
            images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(number))
            labels = torch.arange(number, number + 6) % K
            self.optimizer.zero_grad()
            if self.kind == "split":
                scores, cam_loss = self.regularizer.run(images, labels)
                loss = F.cross_entropy(scores, labels) + cam_loss
            else:
                with self.regularizer:
                    scores = self.model(images)
                task = F.cross_entropy(scores, labels)
                loss = task + self.regularizer(scores, labels, task_loss=task)
            loss.backward()
            self.optimizer.step()
            self.regularizer.step()
            losses.append(loss.detach())
            losses += [torch.tensor(weight) for weight in self.regularizer.read_weights().values()]
        return losses

    def left(self):
        optimizer = [value for state in self.optimizer.state.values() for value in state.values()]
        tensors = [v for v in self.regularizer.state_dict().values() if isinstance(v, torch.Tensor)]
        return [*self.model.state_dict().values(), *optimizer, *tensors, torch.get_rng_state()]


def check_resumed(tmp_path, kind, loss, weight, layers):
    through = Everything(kind, loss, weight, layers, seed=0)
    through.stream()
    torch.manual_seed(8)
    losses = through.train(range(10))

    first = Everything(kind, loss, weight, layers, seed=0)
    first.stream()
    torch.manual_seed(8)
    resumed_losses = first.train(range(5))
    first.save(tmp_path / "checkpoint.pt")

    second = Everything(kind, loss, weight, layers, seed=1)
    second.load(tmp_path / "checkpoint.pt")
    assert second.regularizer.steps == 5
    resumed_losses += second.train(range(5, 10))
    assert all(map(torch.equal, losses, resumed_losses))
    assert all(map(torch.equal, through.left(), second.left()))
    assert through.regularizer.state_dict().keys() == second.regularizer.state_dict().keys()

    # A checkpoint without the regularizer continues differently, unless there was nothing in it to lose.
    third = Everything(kind, loss, weight, layers, seed=1)
    third.regularizer.load_state_dict = lambda state: None
    third.stream()
    third.load(tmp_path / "checkpoint.pt")
    assert not all(map(torch.equal, losses[len(losses) // 2 :], third.train(range(5, 10))))


CASES = [
    *(("hooks", "maps", weight, "layer") for weight in WEIGHTS),
    *(("split", "maps", weight, None) for weight in WEIGHTS if "auto" not in weight),
    *((kind, loss, "warm-up", "layer") for kind in ("hooks", "split") for loss in LOSSES if loss != "maps"),
    ("hooks", "streamed", "auto", ["layer", "head.1"]),
]


@pytest.mark.parametrize(("kind", "loss", "weight", "layers"), CASES)
def test_a_resumed_run_continues_bit_for_bit(kind, loss, weight, layers, tmp_path):
    check_resumed(tmp_path, kind, loss, weight, layers)


def test_a_state_of_other_terms_is_refused(tmp_path):
    first = Everything("hooks", "maps", "auto", "layer", seed=0)
    other = Everything("hooks", "maps", "number", "layer", seed=0)
    with pytest.raises(RuntimeError, match=r"auto_weights.first.weight"):
        other.regularizer.load_state_dict(first.regularizer.state_dict())
