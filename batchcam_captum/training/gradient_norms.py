"""The gradients of two losses at a layer, for weights that are set by them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..functional import full_precision
from ..functional.gradients import take_gradients
from .parallel import MidStepGradients


class GradientNorms:
    """‖∂L/∂A‖ over all layers, of the task's loss and of terms, as scalars without a graph.

    Args:
        task_loss: a scalar with a graph.
        scores: what the task loss was computed from.
        own: the same, as the model itself returned them; see :func:`~batchcam_captum.training.parallel.own_scores`.
        activations: A, of each layer.
        mid_step: entered around each gradient.

    Raises:
        ValueError: no ``task_loss``, or one that is no scalar or has no graph.
    """

    def __init__(
        self,
        task_loss: Tensor | None,
        scores: Tensor,
        own: Tensor,
        activations: Sequence[Tensor],
        mid_step: MidStepGradients,
    ) -> None:
        if task_loss is None:
            raise ValueError(
                "task_loss: expected the task's loss, by which a weight of 'auto' is set, got none; call regularizer(scores, "
                "labels, task_loss=loss)"
            )
        if not isinstance(task_loss, Tensor) or task_loss.dim():
            kind = tuple(task_loss.shape) if isinstance(task_loss, Tensor) else type(task_loss).__name__
            raise ValueError(
                f"task_loss: expected a scalar tensor with a graph, got {kind}; reduce it to its mean"
            )
        if not task_loss.requires_grad:
            raise ValueError(
                "task_loss: expected a scalar tensor with a graph, got one without; pass the loss itself, not detached"
            )
        self._task_loss, self._scores, self._own = task_loss, scores, own
        self._activations, self._mid_step = activations, mid_step
        self._task_norm: Tensor | None = None

    def of_task(self) -> Tensor:
        """Return the norm of the task's gradient; it is taken once."""
        if self._task_norm is None:
            outputs, seeds = self._task_loss, None
            with self._mid_step.taken():
                if self._own is not self._scores:
                    # Not through the wrapper's own operator, which lies between.
                    (slopes,) = take_gradients(outputs, (outputs,), (self._scores,), retain_graph=True)
                    outputs, seeds = self._own, (slopes,)
                gradients = take_gradients(
                    outputs, (outputs,), self._activations, retain_graph=True, grad_outputs=seeds
                )
            self._task_norm = _length(gradients)
        return self._task_norm

    def of_term(self, term: Tensor) -> Tensor:
        """Return the norm of a term's gradient."""
        if not term.requires_grad:
            return torch.zeros((), device=self._own.device)
        with self._mid_step.taken():
            return _length(take_gradients(term, (term,), self._activations, retain_graph=True))


def _length(gradients: Sequence[Tensor]) -> Tensor:
    squares = [full_precision(gradient).square().sum() for gradient in gradients]
    return torch.stack(squares).sum().sqrt()
