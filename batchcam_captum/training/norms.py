"""How strongly two losses pull at a layer: for weights that are set by gradients."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from ..functional import full_precision
from ..functional.gradients import take_gradients
from .objective import GradientNorm


def gradient_norm(
    task_loss: Tensor | None, scores: Tensor, own: Tensor, activations: Sequence[Tensor]
) -> GradientNorm:
    """‖∂L/∂A‖ over all layers.

    Args:
        task_loss: a scalar with a graph.
        scores: what the training loop got, and made the task loss of.
        own: the same, as the model itself returned them, see :func:`~batchcam_captum.training.watch.own_scores`.
        activations: A, of each layer.

    Returns:
        A function of a term, or of None for the task, that gives the norm as a scalar without a graph.

    Raises:
        ValueError: no ``task_loss``, or one that is no scalar or has no graph.
    """
    if task_loss is None:
        raise ValueError(
            "task_loss: expected the task's loss, which a weight of 'auto' is set by, got none; call regularizer(scores, labels, "
            "task_loss=loss)"
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

    def of_task() -> Sequence[Tensor]:
        if own is scores:
            return take_gradients(task_loss, (task_loss,), activations, retain_graph=True)
        # Not through what lies between: see own_scores.
        (slopes,) = take_gradients(task_loss, (task_loss,), (scores,), retain_graph=True)
        return take_gradients(own, (own,), activations, retain_graph=True, grad_outputs=(slopes,))

    def length(gradients: Sequence[Tensor]) -> Tensor:
        squares = [full_precision(gradient).square().sum() for gradient in gradients]
        return torch.stack(squares).sum().sqrt()

    @cache  # several terms ask for the task's, each of which would be a backward
    def norm_of_task() -> Tensor:
        return length(of_task())

    def norm(term: Tensor | None) -> Tensor:
        if term is None:
            return norm_of_task()
        if not term.requires_grad:
            return torch.zeros((), device=own.device)
        return length(take_gradients(term, (term,), activations, retain_graph=True))

    return norm
