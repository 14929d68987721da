"""Train the same network twice in lockstep: with cross-entropy alone, and with a cam loss added."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, field
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..attribution import BatchGradCam
from ..losses import CamLoss
from ..training import CamRegularizer
from .data import DemoData
from .model import SimpleCNN

_WARM_UP_STEPS = 5  # not timed


@dataclass
class Arm:
    """One of the two models in training."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    regularizer: CamRegularizer | None = None
    seconds: list[float] = field(default_factory=list)

    @property
    def grad_cam(self) -> BatchGradCam:
        """Explains the last convolution of the demo's network."""
        return BatchGradCam(self.model, "features")

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Train on a batch, and return the detached loss."""
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

    def timed_step(self, images: Tensor, labels: Tensor) -> None:
        """Train on a batch, and note how long it takes."""
        _wait_for(images)
        start = time.perf_counter()
        self.step(images, labels)
        _wait_for(images)
        self.seconds.append(time.perf_counter() - start)

    @property
    def seconds_per_step(self) -> float:
        """The median over the steps after the warm-up."""
        return median(self.seconds[_WARM_UP_STEPS:] or self.seconds)


def train_both(
    data: DemoData,
    loss: CamLoss,
    weight: float,
    *,
    seed: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    device: torch.device,
    progress: bool,
) -> tuple[Arm, Arm]:
    """Train both arms from the same weights on the same batches.

    Both see every batch, in alternating order, so that whatever else the machine does slows both alike and the ratio of their
    times is fair.

    Args:
        data: images.
        loss: of the second arm.
        weight: λ.
        seed: of the weights and of the order of the batches.
        epochs: passes over the training images.
        batch_size: samples per batch, N.
        learning_rate: of Adam.
        device: where to train.
        progress: show a progress bar.

    Returns:
        The arm with cross-entropy alone, and the regularized one, in eval mode.
    """
    torch.manual_seed(seed)
    model = SimpleCNN(len(data.class_names), data.image_size).to(device)
    arms = tuple(
        Arm(each, torch.optim.Adam(each.parameters(), lr=learning_rate))
        for each in (model, copy.deepcopy(model))
    )
    plain, regularized = arms
    regularized.regularizer = CamRegularizer(regularized.grad_cam, loss, weight)
    generator = torch.Generator().manual_seed(seed)
    total = epochs * max(len(data.train) // batch_size, 1)
    with tqdm(total=total, desc=f"seed {seed}: train", unit="step", disable=not progress) as bar:
        for _ in range(epochs):
            for images, labels in data.train.batches(batch_size, generator, device):
                for arm in arms if bar.n % 2 == 0 else arms[::-1]:
                    arm.timed_step(images, labels)
                bar.update()
    regularized.regularizer.check()
    for arm in arms:
        arm.model.eval()
    return plain, regularized


def _wait_for(tensor: Tensor) -> None:
    if tensor.device.type == "cuda":
        torch.cuda.synchronize(tensor.device)
