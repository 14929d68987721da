"""Weight 0, and the steps that a schedule leaves out: training bit for bit as without a regularizer, and nothing computed."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from batchcam_captum import BatchCamLoss, BatchGradCam, CamRegularizer, PrototypeLoss
from batchcam_captum.attribution import Split
from batchcam_captum.training import Cosine, EveryKSteps, LinearWarmup
from tests.training.models import K, Net, prototypes

STEPS = 5
ZERO = {
    "number": 0.0,
    "function": lambda step: 0.0,
    "warm-up": LinearWarmup(0.0, steps=3),
    "cosine": Cosine(0.0, steps=3),
    "every k": EveryKSteps(0.0, k=2),
}


class Deep(Net):
    """Net with a BatchNorm and a dropout before the layer, too."""

    def __init__(self) -> None:
        super().__init__(dropout=0.4)
        self.trunk.append(nn.Dropout(0.3))


def counted(monkeypatch):
    """How often gradients are taken besides backward(): by torch.autograd.grad, and through torch.func."""
    calls = []
    for owner, name in ((torch.autograd, "grad"), (torch.func, "vjp")):
        original = getattr(owner, name)

        def counting(*args, original=original, **kwargs):
            calls.append(1)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)
    return calls


def make(model, kind, losses, weight):
    if kind == "split":
        return CamRegularizer(Split(nn.Sequential(model.trunk, model.layer), model.head), losses, weight)
    return CamRegularizer(BatchGradCam(model, "layer"), losses, weight)


def scores_and_cam_loss(regularizer, model, images, labels):
    if regularizer is None:
        return model(images), None
    if isinstance(regularizer.grad_cam, Split):
        return regularizer.run(images, labels)
    with regularizer:
        scores = model(images)
    return scores, regularizer(scores, labels)


def train(model, regularizer, steps=STEPS):
    """Everything that training leaves behind: losses, parameters, gradients, statistics, the optimizer's and the RNG's state."""
    torch.manual_seed(7)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    left = []
    for _ in range(steps):
        images, labels = torch.rand(6, 1, 8, 8), torch.randint(K, (6,))
        optimizer.zero_grad()
        scores, cam_loss = scores_and_cam_loss(regularizer, model, images, labels)
        loss = F.cross_entropy(scores, labels)
        if cam_loss is not None:
            loss = loss + cam_loss
        loss.backward()
        optimizer.step()
        if regularizer is not None:
            regularizer.step()
        left += [loss.detach().clone(), *(p.grad.clone() for p in model.parameters())]
    left += [*model.state_dict().values(), torch.get_rng_state()]
    for state in optimizer.state.values():
        left += list(state.values())
    return left


def same(first, second):
    return len(first) == len(second) and all(map(torch.equal, first, second))


@pytest.mark.parametrize("kind", ["hooks", "split"])
@pytest.mark.parametrize("weight", ZERO.values(), ids=ZERO)
def test_training_is_bit_identical_and_nothing_is_computed(weight, kind, monkeypatch):
    model = Deep()
    plain, other = copy.deepcopy(model), copy.deepcopy(model)
    calls = counted(monkeypatch)
    maps = prototypes()
    regularizer = make(model, kind, [BatchCamLoss(maps), PrototypeLoss(maps)], weight)
    ours, theirs = train(model, regularizer), train(plain, None)
    assert same(ours, theirs)
    assert not calls
    assert regularizer.values == {}
    assert set(regularizer.read_weights().values()) == {0.0}
    # So that this is known to be able to fail.
    assert not same(train(other, make(other, kind, BatchCamLoss(maps), 1e-3)), theirs)
    assert len(calls) >= STEPS


@pytest.mark.parametrize("kind", ["hooks", "split"])
def test_the_steps_in_between_are_bit_identical_and_compute_nothing(kind, monkeypatch):
    model = Deep()
    plain, maps = copy.deepcopy(model), prototypes()
    calls = counted(monkeypatch)
    # On at steps 3, 6, …: the three before are those of plain training.
    regularizer = make(model, kind, BatchCamLoss(maps), EveryKSteps(lambda step: float(step > 0), k=3))
    assert same(train(model, regularizer, 3), train(plain, None, 3))
    assert not calls
    assert regularizer.values == {}
    train(model, regularizer, 1)
    taken = len(calls)
    assert taken
    assert set(regularizer.values) == {"batch_cam", "dead_fraction"}
    train(model, regularizer, 2)
    assert len(calls) == taken
    assert regularizer.values == {}
    assert regularizer.steps == 6


@pytest.mark.parametrize("kind", ["hooks", "split"])
def test_only_terms_with_a_weight_are_computed(kind):
    class Never(PrototypeLoss):
        def evaluate(self, *_, **__):
            raise AssertionError("computed")

    model, maps = Deep(), prototypes()
    terms = {"off": (Never(maps), EveryKSteps(1.0, k=100)), "on": (BatchCamLoss(maps), 1.0)}
    regularizer = make(model, kind, terms, 1.0)
    regularizer.step()
    train(model, regularizer, 2)
    assert set(regularizer.values) == {"on", "dead_fraction"}
    assert regularizer.read_weights() == {"off": 0.0, "on": 1.0}
