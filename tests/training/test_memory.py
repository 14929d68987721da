"""Hundreds of steps keep memory flat, and so do steps of which every one raises."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from batchcam_captum import BatchCamLoss, BatchGradCam, CamRegularizer, PrototypeLoss
from batchcam_captum.attribution import Split
from batchcam_captum.training import AutoWeight, LinearWarmup
from tests.attribution.test_memory_growth import PLATEAU, allocated, assert_plateau, growth_of

STEPS = 600
IMAGES, LABELS = torch.rand(2, 1, 10, 10), torch.tensor([0, 2])
MAPS = torch.rand(3, 1, 8, 8)


class Tiny(nn.Module):
    def __init__(self, *, checkpointing: bool = False) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        self.layer = nn.Tanh()
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Flatten(), nn.Linear(128, 3))
        self.checkpointing = checkpointing

    def forward(self, x):
        x = self.layer(self.trunk(x))
        return checkpoint(self.head, x, use_reentrant=False) if self.checkpointing else self.head(x)


def hooks(**options) -> Callable[[], object]:
    weight = options.pop("weight", None) or LinearWarmup(1.0, steps=50)
    model = Tiny(**options)
    losses = [PrototypeLoss(MAPS), (BatchCamLoss(MAPS), weight)]
    regularizer = CamRegularizer(BatchGradCam(model, ["layer"]), losses)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def step() -> None:
        optimizer.zero_grad()
        with regularizer:
            scores = model(IMAGES)
        task = F.cross_entropy(scores, LABELS)
        (task + regularizer(scores, LABELS, task_loss=task)).backward()
        optimizer.step()
        regularizer.step()

    return step


def split() -> Callable[[], object]:
    model = Tiny()
    losses = [PrototypeLoss(MAPS), (BatchCamLoss(MAPS), LinearWarmup(1.0, steps=50))]
    regularizer = CamRegularizer(Split(nn.Sequential(model.trunk, model.layer), model.head), losses)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def step() -> None:
        optimizer.zero_grad()
        scores, cam_loss = regularizer.run(IMAGES, LABELS)
        (F.cross_entropy(scores, LABELS) + cam_loss).backward()
        optimizer.step()
        regularizer.step()

    return step


def evaluated() -> Callable[[], object]:
    model = Tiny()
    regularizer = CamRegularizer(BatchGradCam(model, "layer"), PrototypeLoss(MAPS))
    return lambda: regularizer.evaluate(IMAGES, LABELS)


CALLS: dict[str, tuple[Callable[[], Callable[[], object]], int]] = {
    "hooks": (hooks, STEPS),
    "split": (split, 200),
    "auto": (lambda: hooks(weight=AutoWeight(every=2)), 200),
    "checkpointing": (lambda: hooks(checkpointing=True), 200),
    "evaluate": (evaluated, 300),
}


@pytest.mark.parametrize(("make", "calls"), CALLS.values(), ids=CALLS)
def test_steps(make: Callable[[], Callable[[], object]], calls: int) -> None:
    assert_plateau(make(), calls)


def raising(how: str) -> Callable[[], object]:
    model = Tiny()
    losses = PrototypeLoss(MAPS)
    if how == "split":
        parts = Split(nn.Sequential(model.trunk, model.layer), model.head)
        by_parts = CamRegularizer(parts, losses)
        return lambda: by_parts.run(IMAGES, LABELS + 1)
    regularizer = CamRegularizer(BatchGradCam(model, "layer"), losses)

    def step() -> object:
        with regularizer:
            scores = model(IMAGES)
            if how == "in the block":
                raise ValueError
        if how == "scores":
            return regularizer(scores * torch.nan, LABELS)
        if how == "not called":
            raise ValueError
        return regularizer(scores, LABELS + 1)

    return step


@pytest.mark.parametrize(
    ("how", "calls"),
    [("labels", 200), ("in the block", 200), ("not called", 200), ("split", 200)],
)
def test_steps_that_raise(how: str, calls: int) -> None:
    step = raising(how)

    def call() -> None:
        try:
            step()
        except ValueError:
            return
        raise AssertionError("the step went through")

    assert_plateau(call, calls)


@pytest.mark.skipif(not allocated(), reason="asks glibc")
def test_losses_that_are_kept_show() -> None:
    """So that the tests above are known to be able to fail."""
    kept: list[object] = []
    model = Tiny()
    regularizer = CamRegularizer(BatchGradCam(model, "layer"), PrototypeLoss(MAPS))

    def step() -> None:
        with regularizer:
            scores = model(IMAGES)
        kept.append(regularizer(scores, LABELS))

    (size,) = growth_of(step, 100, allocated)
    assert size > 2 * PLATEAU
