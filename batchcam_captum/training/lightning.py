"""Cam losses in Lightning: one line in ``training_step``, and a callback that logs.

Works with ``lightning`` and with ``pytorch_lightning``, whose classes are not each other's. Nothing imports this module but you.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn

from ..attribution import BatchGradCam, Split, pick_output
from .lightning_callback import CamCallback
from .regularizer import CamRegularizer

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule as _Module
else:
    _Module = object  # either Lightning's module stands beside it

__all__ = ["CamCallback", "CamRegularizerMixin"]


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
    checkpoint and move with the module, and it has no parameters of its own. Schedules advance where the optimizer steps, not
    with the batches: gradient accumulation, a step that a ``GradScaler`` skips and manual optimization need no thought. At the
    end of each epoch, what value checks have accumulated on a GPU raises.

    Under DDP the wrapper would send all prototypes to all ranks in each forward, and put one rank's memory in the place of
    another's; here it does not: buffers of regularizers are sent once, at the first step of a fit, from rank 0.
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
            images: (N, C, *spatial), which ``self(images)`` makes scores of.
            labels: (N,) class indices, or (N, K) soft labels or several labels a sample.
            masks: (N, 1, *spatial), for losses that compare with a mask.
            sample_weights: (N,) how much each sample counts in the cam terms.

        Returns:
            The objective, a scalar.

        Raises:
            AttributeError: no ``self.regularizer``.
            ValueError: see :meth:`CamRegularizer.forward`.
            TypeError: see :meth:`CamRegularizer.forward`.
            RuntimeError: see :meth:`CamRegularizer.forward`.
        """
        regularizer = self._regularizer_ready()
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
        """Have schedules follow the optimizer, also where ``training_step`` calls the regularizer itself."""
        super().on_train_start()
        self._regularizer_ready()

    def on_train_epoch_end(self) -> None:
        """Raise what value checks have accumulated on a GPU."""
        super().on_train_epoch_end()
        self.regularizer.check()

    def _regularizer_ready(self) -> CamRegularizer:
        """The regularizer, in step with the optimizer of this fit; not left to a hook alone, which a subclass may replace."""
        regularizer = getattr(self, "regularizer", None)
        if not isinstance(regularizer, CamRegularizer):
            raise AttributeError(
                f"{type(self).__name__}: expected a CamRegularizer as self.regularizer, got {type(regularizer).__name__}; set it "
                f"in __init__"
            )
        trainer = self._trainer
        if trainer is not None and trainer.training:
            following: _Following = self.__dict__.setdefault("_following", _Following())
            if not following.one_of(trainer.optimizers):
                following.begin(_optimizer_of(regularizer, trainer.optimizers), self)
                _send_buffers(regularizer)
        return regularizer

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """What DistributedDataParallel leaves alone: it asks its module for this name."""
        others: list[str] = self.__dict__.get("_also_ignored", [])
        return others + [
            f"{prefix}.{name}"
            for prefix, module in self.named_modules()
            if isinstance(module, CamRegularizer)
            for name, _ in module.named_buffers()
        ]

    @_ddp_params_and_buffers_to_ignore.setter
    def _ddp_params_and_buffers_to_ignore(self, names: list[str]) -> None:
        self.__dict__["_also_ignored"] = list(names)


class _Following:
    """Advances a module's regularizer where an optimizer steps. A copy follows nothing."""

    def __init__(self) -> None:
        self._optimizer: weakref.ref[Any] | None = None
        self._handle: Any = None

    def one_of(self, optimizers: list[Any]) -> bool:
        """Whether the optimizer that is followed is among these."""
        followed = None if self._optimizer is None else self._optimizer()
        return followed is not None and any(optimizer is followed for optimizer in optimizers)

    def begin(self, optimizer: Any, module: CamRegularizerMixin) -> None:
        """Follow this optimizer and no other."""
        if self._handle is not None:
            self._handle.remove()
        # Where the step is really taken: also inside of a GradScaler that may skip it, and in manual optimization.
        self._handle = optimizer.register_step_post_hook(lambda *_: module.regularizer.step())
        self._optimizer = weakref.ref(optimizer)

    def __reduce__(self) -> tuple[type[_Following], tuple[()]]:
        return _Following, ()


def _optimizer_of(regularizer: CamRegularizer, optimizers: list[Any]) -> Any:
    """The first one that trains the explained model; of the others' steps schedules know nothing."""
    grad_cam = getattr(regularizer, "grad_cam", None)
    model = grad_cam.forward_func if isinstance(grad_cam, BatchGradCam) else None
    own = set(model.parameters()) if isinstance(model, nn.Module) else set()
    for optimizer in optimizers:
        if any(parameter in own for group in optimizer.param_groups for parameter in group["params"]):
            return optimizer
    return optimizers[0]


@torch.no_grad()
def _send_buffers(regularizer: CamRegularizer) -> None:
    if distributed.is_available() and distributed.is_initialized():
        for buffer in regularizer.buffers():
            distributed.broadcast(buffer, 0)
