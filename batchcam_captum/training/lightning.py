"""Cam losses in Lightning: one line in ``training_step``, and a callback that logs.

Works with ``lightning`` and with ``pytorch_lightning``, whose classes differ. The package itself never imports this module.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from ..attribution import BatchGradCam, Split, pick_output
from ..functional.overlay import gray_or_color, overlay
from .regularizer import CamRegularizer

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch import LightningModule as _Module
else:
    _Module = object  # the bases of a subclass hold one of the two LightningModules
    _NAMES = ("lightning.pytorch", "pytorch_lightning")
    #: Of the Lightning that is imported already, or else of the one that is installed.
    Callback = import_module(
        next((name for name in _NAMES if name in sys.modules), _NAMES[find_spec("lightning") is None])
    ).Callback

__all__ = ["CamCallback", "CamRegularizerMixin"]

_SMALLEST_PICTURE = 64  # pixels per side; smaller pictures are enlarged by a whole number


class CamRegularizerMixin(_Module):
    """For a LightningModule with a regularizer: its cam losses are one line in ``training_step``.

    ::

        class Classifier(CamRegularizerMixin, LightningModule):
            def __init__(self, prototypes):
                super().__init__()
                self.model = resnet18()
                grad_cam = BatchGradCam(self.model, "layer4")
                self.regularizer = CamRegularizer(grad_cam, BatchCamLoss(prototypes), weight=LinearWarmup(1.0, 500))

            def forward(self, images):
                return self.model(images)

            def training_step(self, batch, batch_idx):
                images, labels = batch
                return self.regularized(F.cross_entropy, images, labels)

    The mixin comes first among the bases. The regularizer is a submodule like any other: its prototypes and steps are in the
    checkpoint and move with the module, and it has no parameters of its own. Schedules advance when the optimizer steps, which is
    right also with gradient accumulation, with steps that a ``GradScaler`` skips, and in manual optimization. At the end of each
    epoch, failed value checks that have accumulated on a GPU raise.

    DDP would send all buffers from rank 0 in each forward, and overwrite the other ranks' prototypes. Here the buffers of
    regularizers are sent once, at the first step of a fit.
    """

    #: Set in ``__init__``.
    regularizer: CamRegularizer

    def regularized(
        self,
        task_loss: Callable[[Tensor, Tensor], Tensor],
        images: Tensor,
        labels: Tensor,
        *,
        masks: Tensor | None = None,
        sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Run the model once, and add the cam terms to the task's loss.

        Args:
            task_loss: (scores, labels) -> scalar, such as ``F.cross_entropy``; or a method of yours that also logs.
            images: (N, C, *spatial), from which ``self(images)`` makes scores.
            labels: (N,) class indices, or (N, K) soft labels or several labels per sample.
            masks: (N, 1, *spatial), for losses that compare with a mask.
            sample_weights: (N,) how much each sample counts in the cam terms.

        Returns:
            The objective, a scalar.

        Raises:
            AttributeError: no ``self.regularizer``.
            ValueError: what :meth:`CamRegularizer.forward` raises.
            TypeError: what :meth:`CamRegularizer.forward` raises.
            RuntimeError: what :meth:`CamRegularizer.forward` raises.
        """
        regularizer = self._regularizer_in_step()
        if isinstance(regularizer.grad_cam, Split):
            scores, loss = regularizer.run(images, labels, masks=masks, sample_weights=sample_weights)
            return task_loss(scores, labels) + loss
        with regularizer:
            output = self(images)
        scores = pick_output(output, regularizer.grad_cam.output)
        task = task_loss(scores, labels)
        term: Tensor = regularizer(
            scores, labels, images=images, masks=masks, task_loss=task, sample_weights=sample_weights
        )
        return task + term

    def on_train_start(self) -> None:
        """Let schedules follow the optimizer, also if ``training_step`` calls the regularizer itself."""
        super().on_train_start()
        self._regularizer_in_step()

    def on_train_epoch_end(self) -> None:
        """Raise if value checks have failed on a GPU."""
        super().on_train_epoch_end()
        self.regularizer.check()

    def _regularizer_in_step(self) -> CamRegularizer:
        """Return the regularizer, which follows the optimizer of this fit. Subclasses may replace the hooks that call this."""
        regularizer = getattr(self, "regularizer", None)
        if not isinstance(regularizer, CamRegularizer):
            raise AttributeError(
                f"{type(self).__name__}: expected a CamRegularizer as self.regularizer, got {type(regularizer).__name__}; set it "
                f"in __init__"
            )
        trainer = self._trainer
        if trainer is not None and trainer.training and not _follows(self, trainer.optimizers):
            # Where the step is taken: also inside of a GradScaler that may skip it, and in manual optimization.
            _optimizer_of(regularizer, trainer.optimizers).register_step_post_hook(_Advance(self))
            if distributed.is_available() and distributed.is_initialized():
                with torch.no_grad():
                    for buffer in regularizer.buffers():
                        distributed.broadcast(buffer, 0)
        return regularizer

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """Name what DistributedDataParallel leaves alone; it asks its module for this attribute."""
        return [
            f"{prefix}.{name}"
            for prefix, module in self.named_modules()
            if isinstance(module, CamRegularizer)
            for name, _ in module.named_buffers()
        ]


class _Advance:
    """An optimizer's hook that advances the schedules of a module's regularizer."""

    def __init__(self, module: CamRegularizerMixin) -> None:
        self.module = module

    def __call__(self, *_: Any) -> None:
        self.module.regularizer.step()


def _follows(module: CamRegularizerMixin, optimizers: list[Any]) -> bool:
    hooks = [hook for optimizer in optimizers for hook in optimizer._optimizer_step_post_hooks.values()]
    return any(isinstance(hook, _Advance) and hook.module is module for hook in hooks)


def _optimizer_of(regularizer: CamRegularizer, optimizers: list[Any]) -> Any:
    """Return the first optimizer that trains the explained model; schedules do not count the others' steps."""
    grad_cam = regularizer.grad_cam
    model = grad_cam.forward_func if isinstance(grad_cam, BatchGradCam) else None
    own = set(model.parameters()) if isinstance(model, nn.Module) else set()
    for optimizer in optimizers:
        if any(parameter in own for group in optimizer.param_groups for parameter in group["params"]):
            return optimizer
    return optimizers[0]


class CamCallback(Callback):
    """Logs what the regularizers of a LightningModule do: values of terms, λ, the share of dead cams, and pictures of the maps.

    Between the steps in which it logs it reads nothing on the host. In a step in which it does, failed value checks raise as
    well. The names are ``cam/<term>``, ``cam/weight/<term>`` and ``cam/dead_fraction``, each of the last step in which the term
    was computed; a term that has not been computed since the last log shows its λ alone. The means of what was logged in an epoch
    are in ``trainer.callback_metrics``, for checkpoints and early stopping. With several regularizers the attribute's name
    follows ``cam/``.

    Pictures (image beside overlay, one row per sample) show the same samples each time, in ``eval()``, and leave the model as it
    was. They go to TensorBoard and to Weights & Biases; other loggers get numbers only.

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
        self.every_n_steps = every_n_steps
        self.pictures_every_n_steps = pictures_every_n_steps
        self.num_pictures = num_pictures
        for name in ("every_n_steps", "pictures_every_n_steps", "num_pictures"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")
        self.samples = samples
        self.images_and_labels = images_and_labels or _first_two
        self._shown: tuple[Tensor, Tensor] | None = None
        self._window: dict[str, float | Tensor] = {}  # what will be logged
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
        """Note the values, log them, and draw pictures, if a step for that has come."""
        regularizers = _regularizers(pl_module)
        for prefix, regularizer in regularizers.items():
            self._note(prefix, regularizer)
        if self.pictures_every_n_steps is not None and self._shown is None:
            self._shown = self._choose(*self.images_and_labels(batch))
        before, self._last_step = self._last_step, trainer.global_step
        if self._last_step // self.every_n_steps > before // self.every_n_steps:
            for regularizer in regularizers.values():
                regularizer.check()
            self._log(trainer, pl_module)
        every = self.pictures_every_n_steps
        if every is not None and self._last_step // every > before // every:
            for prefix, regularizer in regularizers.items():
                self._draw(trainer, pl_module, prefix, regularizer)

    def _choose(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if not isinstance(images, Tensor) or images.dim() != 4:
            kind = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise ValueError(
                f"images_and_labels: expected images (N, C, H, W) to draw, got {kind}; leave pictures_every_n_steps out, or pass "
                f"a function that makes some"
            )
        return images[: self.num_pictures].clone(), labels[: self.num_pictures].clone()

    def _note(self, prefix: str, regularizer: CamRegularizer) -> None:
        """Keep the values of the terms that were computed and their λ; the λ of other terms only if none is noted."""
        for name, weight in regularizer.current_weights.items():
            if name in regularizer.values or f"{prefix}/{name}" not in self._window:
                self._window[f"{prefix}/weight/{name}"] = weight
        self._window.update({f"{prefix}/{name}": value for name, value in regularizer.values.items()})

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        window, self._window = self._window, {}
        # Into the epoch's means, on the device: waits for nothing until the epoch ends.
        pl_module.log_dict(window, on_step=False, on_epoch=True, logger=False, batch_size=1, sync_dist=True)
        if trainer.loggers:  # at once, as Lightning logs every log_every_n_steps only
            numbers = {name: float(value) for name, value in window.items()}
            for logger in trainer.loggers:
                logger.log_metrics(numbers, step=trainer.global_step)

    def _draw(
        self, trainer: Trainer, pl_module: LightningModule, prefix: str, regularizer: CamRegularizer
    ) -> None:
        """Draw on all ranks, as the forward of a sharded model needs them all; loggers write on rank 0."""
        writers = [writer for logger in trainer.loggers if (writer := _picture_writer(logger)) is not None]
        grad_cam = regularizer.grad_cam
        if not writers or not isinstance(grad_cam, BatchGradCam):
            return
        assert self._shown is not None
        images, labels = (tensor.to(pl_module.device) for tensor in self._shown)
        images = trainer.precision_plugin.convert_input(images)
        classes = (labels.argmax(1) if labels.dim() > 1 else labels).clamp(min=0)  # ignore_index is no class
        with trainer.precision_plugin.forward_context(), _evaluating(grad_cam.forward_func):
            cams = grad_cam.attribute(images, target=classes)
        columns = [gray_or_color(images)]
        columns += [overlay(images, of_layer) for of_layer in (cams if isinstance(cams, list) else [cams])]
        picture = torch.cat([torch.cat(list(column), 1) for column in columns], 2)
        larger = max(1, -(-_SMALLEST_PICTURE // min(images.shape[2:])))
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


def _regularizers(pl_module: LightningModule) -> dict[str, CamRegularizer]:
    """Return the regularizers by the prefixes of their names in logs."""
    found = [(name, each) for name, each in pl_module.named_modules() if isinstance(each, CamRegularizer)]
    return {"cam" if len(found) == 1 else f"cam/{name}": each for name, each in found}


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Put each module in ``eval()``, and afterwards in the mode that it was in."""
    modes = {module: module.training for module in model.modules()} if isinstance(model, nn.Module) else {}
    try:
        for module in modes:
            module.training = False
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _picture_writer(logger: Any) -> Callable[[str, Tensor, int], None] | None:
    """Return (name, picture (3, H, W), step) -> None, for loggers that take pictures, told by their classes' names."""
    kinds = {each.__name__ for each in type(logger).__mro__}
    if "TensorBoardLogger" in kinds:
        return lambda name, picture, step: logger.experiment.add_image(name, picture, step)
    if "WandbLogger" in kinds:
        return lambda name, picture, step: logger.log_image(
            key=name, images=[(picture * 255).round().to(torch.uint8).movedim(0, -1).numpy()], step=step
        )
    return None
