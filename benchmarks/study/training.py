"""One training run by the protocol."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from batchcam_captum import BatchGradCam

from . import arms
from .data import StudyData
from .networks import NETWORKS
from .settings import Settings

_WARM_UP_STEPS = 5


class DivergedError(RuntimeError):
    """The loss is no longer a number."""


@dataclass
class Trained:
    """A trained model, in ``eval()``."""

    model: nn.Module
    layer: nn.Module
    seconds: list[float] = field(default_factory=list)  #: of each step
    losses: list[float] = field(default_factory=list)  #: the objective's mean over each epoch

    @property
    def seconds_per_step(self) -> float:
        """Median over the steps after the warm-up."""
        return median(self.seconds[_WARM_UP_STEPS:] or self.seconds)


def train(settings: Settings, data: StudyData, device: torch.device, *, progress: bool = True) -> Trained:
    """Train one arm.

    Args:
        settings: of the run.
        data: of the run, on the CPU.
        device: where to train.
        progress: show a bar.

    Raises:
        DivergedError: the loss is not finite at the end of an epoch.
    """
    torch.manual_seed(settings.seed)
    network = NETWORKS[settings.network]
    model = network.make(data.num_classes, data.channels)
    model = model.to(device, memory_format=torch.channels_last).train()
    layer = model.get_submodule(network.layer)
    images, labels, masks = (
        each.to(device)
        for each in (data.standardized(data.train.images), data.train.labels, data.train.masks)
    )
    steps = len(labels) // settings.batch_size
    regularizer = arms.regularizer(settings.arm, BatchGradCam(model, network.layer), data, steps)
    if regularizer is not None:
        regularizer.to(device)
    with_masks = arms.needs_masks(settings.arm)
    optimizer = network.optimizer(model, settings.learning_rate)
    generator = torch.Generator().manual_seed(settings.seed)
    trained = Trained(model, layer)
    with tqdm(total=settings.epochs * steps, desc=settings.name, unit="step", disable=not progress) as bar:
        for _ in range(settings.epochs):
            order = torch.randperm(len(labels), generator=generator).to(device)
            total = torch.zeros((), device=device)
            for chosen in order[: steps * settings.batch_size].split(settings.batch_size):
                batch = images[chosen].contiguous(memory_format=torch.channels_last)
                wait_for(device)
                start = time.perf_counter()
                optimizer.zero_grad(set_to_none=True)
                if regularizer is None:
                    loss = F.cross_entropy(model(batch), labels[chosen])
                else:
                    with regularizer:
                        scores = model(batch)
                    given: dict[str, Tensor] = {"masks": masks[chosen]} if with_masks else {}
                    loss = F.cross_entropy(scores, labels[chosen])
                    loss = loss + regularizer(scores, labels[chosen], images=batch, **given)
                loss.backward()
                optimizer.step()
                if regularizer is not None:
                    regularizer.step()
                wait_for(device)
                trained.seconds.append(time.perf_counter() - start)
                total += loss.detach()
                bar.update()
            trained.losses.append(float(total) / steps)
            if not math.isfinite(trained.losses[-1]):
                raise DivergedError(f"the loss was not finite in epoch {len(trained.losses)}")
    if regularizer is not None:
        regularizer.check()
    model.eval()
    return trained


def wait_for(device: torch.device) -> None:
    """Let a GPU finish, before the clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
