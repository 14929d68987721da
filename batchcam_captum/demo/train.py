"""Train the same network twice in lockstep: with cross-entropy alone, and with a cam loss added."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..attribution import BatchGradCam
from ..training import CamRegularizer
from .data import DemoData
from .model import SimpleCNN

#: The first steps pay for warming up and are not timed.
_WARM_UP_STEPS = 5


@dataclass
class Arm:
    """One of the two models in training."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    regularizer: CamRegularizer | None = None
    seconds: list[float] = field(default_factory=list)

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """One training step; returns the detached loss."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.regularizer is None:
            loss = F.cross_entropy(self.model(images), labels)
        else:
            with self.regularizer:
                scores = self.model(images)
            loss = F.cross_entropy(scores, labels) + self.regularizer(scores, labels, images=images)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def timed_step(self, images: Tensor, labels: Tensor) -> Tensor:
        """:meth:`step`, with its duration noted."""
        _wait_for(images)
        start = time.perf_counter()
        loss = self.step(images, labels)
        _wait_for(images)
        self.seconds.append(time.perf_counter() - start)
        return loss

    @property
    def seconds_per_step(self) -> float:
        """Median over the steps after the warm-up."""
        return median(self.seconds[_WARM_UP_STEPS:] or self.seconds)


def layer_of(model: nn.Module) -> nn.Module:
    """The layer that the demo explains."""
    return model.get_submodule("features")


def train_both(
    data: DemoData,
    make_regularizer: Callable[[BatchGradCam], CamRegularizer],
    *,
    seed: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    device: torch.device,
    progress: bool,
) -> tuple[Arm, Arm]:
    """Train both arms from the same weights on the same batches.

    Every batch is shown to both, one step each, in alternating order, so that whatever else the machine does slows both alike and
    the ratio of their times is fair.

    Args:
        data: images.
        make_regularizer: makes the regularizer of the second arm.
        seed: of the weights and of the order of the batches.
        epochs: passes over the training images.
        batch_size: how many samples a batch has, N.
        learning_rate: of Adam.
        device: where to train.
        progress: show a progress bar.

    Returns:
        The arm with cross-entropy alone, and the regularised one; their models in ``eval()``.
    """
    torch.manual_seed(seed)
    model = SimpleCNN(len(data.class_names), data.image_size).to(device)
    twin = copy.deepcopy(model)
    arms = (
        Arm(model, torch.optim.Adam(model.parameters(), lr=learning_rate)),
        Arm(
            twin,
            torch.optim.Adam(twin.parameters(), lr=learning_rate),
            make_regularizer(BatchGradCam(twin, layer_of(twin))),
        ),
    )
    generator = torch.Generator().manual_seed(seed)
    total = epochs * max(len(data.train) // batch_size, 1)
    with tqdm(total=total, desc=f"seed {seed}: train", unit="step", disable=not progress) as bar:
        for _ in range(epochs):
            for images, labels in data.train.batches(batch_size, generator, device):
                order = arms if bar.n % 2 == 0 else arms[::-1]
                for arm in order:
                    arm.timed_step(images, labels)
                bar.update()
    for arm in arms:
        if arm.regularizer is not None:
            arm.regularizer.check()
        arm.model.eval()
    return arms


def _wait_for(tensor: Tensor) -> None:
    if tensor.device.type == "cuda":
        torch.cuda.synchronize(tensor.device)
