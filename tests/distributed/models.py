"""A small network, its training, and the same training in one process on the whole batch."""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from batchcam_captum import BatchCamLoss, BatchGradCam, CamRegularizer
from tests.distributed.group import WORLD

K = 3
STEPS = 4


class Net(nn.Module):
    """A curved head, nothing that mixes samples, and a part that no output depends on; in float64."""

    def __init__(self, output: str = "tensor") -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh())
        self.head = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(4 * 16, K))
        self.output = output
        self.register_buffer("steps", torch.zeros(1))  # which DDP sends around before each forward
        self.double()

    def forward(self, images):
        scores = self.head(self.layer(images))
        if self.output == "dict":
            return {"size": images.shape, "aside": scores.detach(), "scores": scores}
        return (images.mean(), (scores,)) if self.output == "tuple" else scores


class PooledNet(Net):
    """Global average pooling is all that reads the layer."""

    def __init__(self, output: str = "tensor") -> None:
        super().__init__(output)
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 8), nn.Softplus(), nn.Linear(8, K)
        )
        self.double()


class NetWithUnusedPart(Net):
    def __init__(self, output: str = "tensor") -> None:
        super().__init__(output)
        self.unused = nn.Linear(3, 3).double()


PICKED = {
    "tensor": lambda output: output,
    "dict": lambda output: output["scores"],
    "tuple": lambda output: output[1][0],
}


def batch(n=12):
    """The same on both ranks."""
    return torch.rand(n, 1, 8, 8, dtype=torch.float64), torch.arange(n) * 5 % 7 % K


def mine(tensor, rank):
    return tensor.chunk(WORLD)[rank]


def regularizer_of(model, layer, *, output="tensor", weight=3.0, **options):
    maps = torch.rand(K, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    grad_cam = BatchGradCam(model, layer, output=None if output == "tensor" else PICKED[output])
    return CamRegularizer(grad_cam, BatchCamLoss(maps, distance="l2", **options), weight=weight)


def objective(model, regularizer, images, labels, output="tensor"):
    with regularizer:
        scores = PICKED[output](model(images))
    return F.cross_entropy(scores, labels) + regularizer(scores, labels)


def train(model, regularizer, images, labels, *, steps=STEPS, output="tensor"):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        objective(model, regularizer, images, labels, output).backward()
        optimizer.step()


def in_one_process(model, images, labels, *, output="tensor", weight=3.0, steps=STEPS):
    """A copy of the model, trained on the whole batch, which no other process knows of."""
    model = copy.deepcopy(model)
    regularizer = regularizer_of(model, model.layer, output=output, weight=weight, sync=False)
    train(model, regularizer, images, labels, output=output, steps=steps)
    return model


def check_same(model, expected):
    """The parameters are those expected, and the same to the last bit on all ranks."""
    for (name, own), other in zip(model.named_parameters(), expected.parameters(), strict=True):
        every = [torch.empty_like(own) for _ in range(WORLD)]
        dist.all_gather(every, own.detach())
        assert torch.equal(*every), f"{name} differs between the ranks"
        assert_close(own, other, rtol=1e-9, atol=1e-11)


def check_term_matters(model, images, labels, trained):
    """The same training without the term ends elsewhere, or equality would show nothing."""
    plain = in_one_process(model, images, labels, weight=0.0)
    name = next(name for name, _ in model.named_parameters() if name.startswith("head"))
    assert (plain.get_parameter(name) - trained.get_parameter(name)).abs().max() > 1e-3
