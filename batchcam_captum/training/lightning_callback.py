"""What cam losses do while Lightning trains: logged, and drawn."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attribution import BatchGradCam
from ..functional.overlay import gray_or_color, overlay
from .regularizer import CamRegularizer

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:
    _NAMES = ("lightning.pytorch", "pytorch_lightning")
    #: Of the Lightning that is in use already, or else of the one that is installed.
    Callback = import_module(
        next((name for name in _NAMES if name in sys.modules), _NAMES[find_spec("lightning") is None])
    ).Callback

_SMALLEST_SIDE = 64  # pixels; smaller pictures are enlarged by a whole number


class CamCallback(Callback):
    """Logs what the regularizers of a LightningModule do: term values, λ, the share of dead cams, and pictures of the maps.

    Between the steps in which it logs it reads nothing, so that the host does not wait for the GPU. In a step in which it does,
    value checks raise as well. The names are ``cam/<term>``, ``cam/weight/<term>`` and ``cam/dead_fraction``, each of the last
    step in which the term was computed; a term that has not been computed since the last log shows its λ alone. The means of
    what was logged in an epoch are in ``trainer.callback_metrics``, for checkpoints and early stopping. With several
    regularizers the attribute's name follows ``cam/``.

    Pictures (image beside overlay, a row a sample) show the same samples each time, in ``eval()``, and leave the model as it was.
    They go to TensorBoard and to Weights & Biases, whichever loggers the Trainer has; other loggers get numbers only.

    Args:
        every_n_steps: optimizer steps from one log of the numbers to the next, ≥ 1.
        pictures_every_n_steps: the same for pictures, which take a forward of their own; None draws none.
        num_pictures: how many samples a picture shows.
        samples: (images, labels) to show. Default: the first ones of the first batch.
        images_and_labels: finds images (N, C, H, W) and labels in a batch. Default: its first two entries.

    Raises:
        ValueError: a number that is not positive.
    """

    def __init__(
        self,
        every_n_steps: int = 50,
        *,
        pictures_every_n_steps: int | None = None,
        num_pictures: int = 8,
        samples: tuple[Tensor, Tensor] | None = None,
        images_and_labels: Callable[[Any], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        super().__init__()
        for name, value in (
            ("every_n_steps", every_n_steps),
            ("pictures_every_n_steps", 1 if pictures_every_n_steps is None else pictures_every_n_steps),
            ("num_pictures", num_pictures),
        ):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")
        self.every_n_steps = every_n_steps
        self.pictures_every_n_steps = pictures_every_n_steps
        self.num_pictures = num_pictures
        self.samples = samples
        self.images_and_labels = images_and_labels or _first_two
        self._shown: tuple[Tensor, Tensor] | None = None
        self._window: dict[str, float | Tensor] = {}
        self._last_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew.

        Raises:
            TypeError: the module has no regularizer.
        """
        if not _regularizers(pl_module):
            raise TypeError(
                f"CamCallback: expected a LightningModule with a CamRegularizer, got {type(pl_module).__name__} without one; set "
                f"it as self.regularizer"
            )
        self._shown = None if self.samples is None else self._choose(*self.samples)
        self._window = {}
        self._last_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note what there is; log it where it is due."""
        regularizers = _regularizers(pl_module)
        for prefix, regularizer in regularizers.items():
            self._note(prefix, regularizer)
        if self.pictures_every_n_steps is not None and self._shown is None:
            self._shown = self._choose(*self.images_and_labels(batch))
        before, self._last_step = self._last_step, trainer.global_step
        if _passed(self.every_n_steps, before, self._last_step):
            for regularizer in regularizers.values():
                regularizer.check()
            self._log(trainer, pl_module)
        if self.pictures_every_n_steps is not None and _passed(
            self.pictures_every_n_steps, before, self._last_step
        ):
            for prefix, regularizer in regularizers.items():
                if isinstance(regularizer.grad_cam, BatchGradCam):
                    self._draw(trainer, pl_module, prefix, regularizer)

    def _choose(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if not isinstance(images, Tensor) or images.dim() != 4:
            kind = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise ValueError(
                f"CamCallback: expected images (N, C, H, W) to draw, got {kind}; leave pictures_every_n_steps out, or pass "
                f"images_and_labels=, a function that makes some"
            )
        return images[: self.num_pictures].clone(), labels[: self.num_pictures].clone()

    def _note(self, prefix: str, regularizer: CamRegularizer) -> None:
        """Keep the values of the terms that were computed, and the λ that they had; a zero λ only where there is no other."""
        for name, weight in regularizer.current_weights.items():
            if name in regularizer.values or f"{prefix}/{name}" not in self._window:
                self._window[f"{prefix}/weight/{name}"] = weight
        self._window.update({f"{prefix}/{name}": value for name, value in regularizer.values.items()})

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        window, self._window = self._window, {}
        # Into the epoch's means, on the device: waits for nothing until the epoch ends.
        pl_module.log_dict(window, on_step=False, on_epoch=True, logger=False, batch_size=1, sync_dist=True)
        if trainer.loggers:  # at once: Lightning's own rhythm is another one
            numbers = {name: float(value) for name, value in window.items()}
            for logger in trainer.loggers:
                logger.log_metrics(numbers, step=trainer.global_step)

    def _draw(
        self, trainer: Trainer, pl_module: LightningModule, prefix: str, regularizer: CamRegularizer
    ) -> None:
        """On all ranks, as the forward of a sharded model needs them all; loggers write on rank 0."""
        assert self._shown is not None
        writers = [writer for logger in trainer.loggers if (writer := _picture_writer(logger)) is not None]
        if not writers:
            return
        images, labels = (tensor.to(pl_module.device) for tensor in self._shown)
        images = trainer.precision_plugin.convert_input(images)
        classes = (labels.argmax(1) if labels.dim() > 1 else labels).clamp(min=0)  # −100: no class of its own
        grad_cam = regularizer.grad_cam
        assert isinstance(grad_cam, BatchGradCam)
        with trainer.precision_plugin.forward_context(), _evaluating(grad_cam.forward_func):
            cams = grad_cam.attribute(images, target=classes)
        columns = [gray_or_color(images)]
        columns += [overlay(images, of_layer) for of_layer in (cams if isinstance(cams, list) else [cams])]
        picture = torch.cat([torch.cat(list(column), 1) for column in columns], 2)
        larger = max(1, -(-_SMALLEST_SIDE // min(images.shape[2:])))
        picture = F.interpolate(picture[None], scale_factor=float(larger))[0].cpu()
        for write in writers:
            write(f"{prefix}/maps", picture, trainer.global_step)


def _first_two(batch: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        raise TypeError(
            f"batch: expected (images, labels, …), got {type(batch).__name__}; pass images_and_labels= to CamCallback, a "
            f"function that finds them"
        )
    return batch[0], batch[1]


def _passed(every: int, before: int, now: int) -> bool:
    """Whether a multiple of ``every`` lies in (before, now]."""
    return now // every > before // every


def _regularizers(pl_module: LightningModule) -> dict[str, CamRegularizer]:
    """By the names that their figures go under."""
    found = [(name, each) for name, each in pl_module.named_modules() if isinstance(each, CamRegularizer)]
    return {"cam" if len(found) == 1 else f"cam/{name}": each for name, each in found}


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Each module in ``eval()``, and afterwards in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()] if isinstance(model, nn.Module) else []
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training


def _picture_writer(logger: Any) -> Callable[[str, Tensor, int], None] | None:
    """(name, picture (3, H, W), step) -> None, for loggers that take pictures.

    They are told by the names of their classes, as there are two Lightnings; and alike on all ranks.
    """
    kinds = {each.__name__ for each in type(logger).__mro__}
    if "WandbLogger" in kinds:

        def to_wandb(name: str, picture: Tensor, step: int) -> None:
            pixels = (picture * 255).round().to(torch.uint8).movedim(0, -1).numpy()
            logger.log_image(key=name, images=[pixels], step=step)

        return to_wandb
    if "TensorBoardLogger" in kinds:

        def to_tensorboard(name: str, picture: Tensor, step: int) -> None:
            logger.experiment.add_image(name, picture, step)

        return to_tensorboard
    return None
