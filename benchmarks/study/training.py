"""One training run by the protocol."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from batchcam_captum import BatchGradCam
from batchcam_captum.files import written_whole

from ..common import synchronize
from . import arms
from .data import StudyData
from .networks import NETWORKS
from .settings import OtherStudyError, Settings

_WARM_UP_STEPS = 5


class DivergedError(RuntimeError):
    """The loss, a score or a weight is no longer a number."""


class OutOfTimeError(RuntimeError):
    """The limit is reached; what was trained is in the checkpoint."""


@dataclass
class Trained:
    """A trained model, in ``eval()``."""

    model: nn.Module
    layer: nn.Module
    seconds: list[float]  #: of each step
    losses: list[float]  #: the objective's mean over each epoch

    @property
    def seconds_per_step(self) -> float:
        """Median over the steps after the warm-up."""
        return median(self.seconds[_WARM_UP_STEPS:] or self.seconds)


def train(
    settings: Settings,
    data: StudyData,
    device: torch.device,
    *,
    checkpoint: Path | None = None,
    deadline: float = math.inf,
    progress: bool = True,
) -> Trained:
    """Train one arm.

    Args:
        settings: of the run.
        data: of the run, on the CPU.
        device: where to train.
        checkpoint: a file that is written after every epoch but the last, and gone on from where it is there.
        deadline: no epoch begins that would end after it, by :func:`time.monotonic`, if it took as long as the one before.
        progress: show a bar.

    Raises:
        DivergedError: the loss, a score, a cam or a weight is not finite.
        OutOfTimeError: the deadline came first.
    """
    training = _Training(settings, data, device)
    if checkpoint is not None and checkpoint.exists():
        training.load(checkpoint)
    total = settings.epochs * training.steps
    done = len(training.losses) * training.steps
    with tqdm(total=total, initial=done, desc=settings.name, unit="step", disable=not progress) as bar:
        while len(training.losses) < settings.epochs:
            began = time.monotonic()
            training.epoch(bar.update)
            if checkpoint is not None and len(training.losses) < settings.epochs:
                training.save(checkpoint)
                now = time.monotonic()
                if now + (now - began) > deadline:
                    raise OutOfTimeError(f"{settings.name}: stopped after epoch {len(training.losses)}")
    return training.finished()


class _Training:
    """One arm in training."""

    def __init__(self, settings: Settings, data: StudyData, device: torch.device) -> None:
        torch.manual_seed(settings.seed)
        network = NETWORKS[settings.network]
        model = network.make(data.num_classes, data.channels)
        self.settings = settings
        self.device = device
        self.model = model.to(device, memory_format=torch.channels_last).train()
        layer = settings.layer or network.layer
        self.layer = self.model.get_submodule(layer)
        self.images = data.standardized(data.train.images).to(device)
        self.labels = data.train.labels.to(device)
        masks = arms.masks_for(settings.arm, data.train)
        self.masks = None if masks is None else masks.to(device)
        self.steps = len(self.labels) // settings.batch_size
        grad_cam = BatchGradCam(self.model, layer)
        self.regularizer = arms.regularizer(settings.arm, grad_cam, data, self.steps)
        if self.regularizer is not None:
            self.regularizer.to(device)
        self.optimizer = network.optimizer(self.model, settings.learning_rate)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def epoch(self, after_step: Callable[[], object]) -> None:
        """Every image once."""
        order = torch.randperm(len(self.labels), generator=self.generator).to(self.device)
        total = torch.zeros((), device=self.device)
        size = self.settings.batch_size
        for chosen in order[: self.steps * size].split(size):
            images = self.images[chosen].contiguous(memory_format=torch.channels_last)
            synchronize(self.device)
            start = time.perf_counter()
            total += self.step(images, chosen)
            synchronize(self.device)
            self.seconds.append(time.perf_counter() - start)
            after_step()
        mean = float(total) / self.steps
        if not math.isfinite(mean):
            raise DivergedError(f"the loss was not finite in epoch {len(self.losses) + 1}")
        self.losses.append(mean)

    def step(self, images: Tensor, chosen: Tensor) -> Tensor:
        """One step; returns the detached loss."""
        labels = self.labels[chosen]
        self.optimizer.zero_grad(set_to_none=True)
        if self.regularizer is None:
            loss = F.cross_entropy(self.model(images), labels)
        else:
            with self.regularizer:
                scores = self.model(images)
            masks = None if self.masks is None else self.masks[chosen]
            loss = F.cross_entropy(scores, labels)
            try:
                loss = loss + self.regularizer(scores, labels, images=images, masks=masks, task_loss=loss)
            except ValueError as error:  # the losses refuse what is not finite
                if "finite" not in str(error):
                    raise
                raise DivergedError(f"{error} (epoch {len(self.losses) + 1})") from error
        loss.backward()
        self.optimizer.step()
        if self.regularizer is not None:
            self.regularizer.step()
        return loss.detach()

    def save(self, path: Path) -> None:
        """Write all that the rest of the run depends on."""
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "settings": asdict(self.settings),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "regularizer": None if self.regularizer is None else self.regularizer.state_dict(),
            "generator": self.generator.get_state(),
            "random": torch.get_rng_state(),
            "random_on_device": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "seconds": self.seconds,
            "losses": self.losses,
        }
        with written_whole(path) as temporary:
            torch.save(state, temporary)

    def load(self, path: Path) -> None:
        """Go on from what :meth:`save` has written.

        Raises:
            OtherStudyError: it is of another run.
        """
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except (UnpicklingError, RuntimeError, EOFError) as error:
            raise OSError(
                f"{path}: expected a checkpoint, got a damaged file ({type(error).__name__}); remove it"
            ) from error
        if state["settings"] != asdict(self.settings):
            raise OtherStudyError(f"{path}: expected a checkpoint of the same settings; remove it")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.regularizer is not None:
            self.regularizer.load_state_dict(state["regularizer"])
        self.generator.set_state(state["generator"].cpu())
        torch.set_rng_state(state["random"].cpu())
        if state["random_on_device"] is not None:
            torch.cuda.set_rng_state(state["random_on_device"].cpu(), self.device)
        self.seconds, self.losses = state["seconds"], state["losses"]

    def finished(self) -> Trained:
        """What was trained, to be measured."""
        if not all(torch.isfinite(each).all() for each in self.model.state_dict().values()):
            raise DivergedError("weights were not finite after the last step")
        if self.regularizer is not None:
            self.regularizer.check()
        return Trained(self.model.eval(), self.layer, self.seconds, self.losses)
