"""From scores to gradients with respect to activations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from .class_means import check_labels, wide_indices
from .precision import full_precision, no_autocast

ScoreKind = Literal["label", "predicted", "confused", "log_prob_sum"]
Score = ScoreKind | Callable[[Tensor, Tensor], Tensor]


def check_score(score: object) -> None:
    """Check which score is asked for, before there are any.

    Raises:
        ValueError: an unknown name.
        TypeError: neither a name nor a callable.
    """
    if callable(score):
        return
    if not isinstance(score, str):
        raise TypeError(
            f"score: expected 'label', 'predicted', 'confused', 'log_prob_sum' or a callable, got {type(score).__name__}"
        )
    if score not in get_args(ScoreKind):
        raise ValueError(
            f"score: expected 'label', 'predicted', 'confused', 'log_prob_sum' or a callable, got {score!r}"
        )


def select_scores(scores: Tensor, labels: Tensor, score: Score = "label") -> Tensor:
    """What a cam explains: one number a sample.

    Args:
        scores: (N, K), before any softmax.
        labels: (N,) class indices, or (N, K) soft labels. An index outside 0 … K−1 (an ignored sample) selects class 0;
            the losses leave that sample out.
        score: ``"label"``, the score of the label (of soft labels: the sum of the scores, weighted by them);
            ``"predicted"``, the highest score; ``"confused"``, the highest score of a class other than the label (of soft labels:
            other than those of the largest weight, so with several labels of none of them); ``"log_prob_sum"``, Σ_c log
            softmax(scores)_c, which sees every class (Ross et al. 2017, eq. 1); or a callable (scores, labels) -> (N,).

    Returns:
        (N,), float32 (float64 stays).

    Raises:
        ValueError: an unknown kind, scores that are not (N, K), labels that do not fit them, ``"confused"`` of a single class, or
            a callable's result that is not (N,).
        TypeError: labels or a score of a wrong kind.
    """
    if callable(score):
        selected = score(scores, labels)
    else:
        check_score(score)
        if scores.dim() != 2:
            raise ValueError(
                f"scores: expected (N, K), one score a class, got {tuple(scores.shape)}; pass the classifier's scores before "
                f"any softmax, or a callable as score="
            )
        check_labels(labels, *scores.shape)
        with no_autocast(scores):
            wide = full_precision(scores)
            if score == "label":
                if labels.dim() == 2:
                    selected = (wide * labels).sum(1)
                else:
                    indices, in_range = wide_indices(labels, scores.shape[1])
                    selected = wide.gather(1, indices.where(in_range, 0).unsqueeze(1)).squeeze(1)
            elif score == "predicted":
                selected = wide.amax(1)
            elif score == "confused":
                selected = wide.masked_fill(_is_label(labels, scores.shape[1]), -math.inf).amax(1)
            else:
                selected = wide.log_softmax(1).sum(1)
    if selected.shape != scores.shape[:1]:
        raise ValueError(
            f"score: expected one number a sample, ({scores.shape[0]},), got {tuple(selected.shape)} from the callable"
        )
    return selected


def _is_label(labels: Tensor, num_classes: int) -> Tensor:
    """Which classes a sample is of, (N, K); of none where nothing else would be left."""
    if num_classes < 2:
        raise ValueError(
            f"score: expected at least 2 classes for 'confused', got {num_classes}; with a single score there is no other class"
        )
    if labels.dim() == 2:
        is_label = labels == labels.amax(1, keepdim=True)
        return is_label & ~is_label.all(1, keepdim=True)
    classes = torch.arange(num_classes, device=labels.device)
    return labels.long().unsqueeze(1) == classes


def activation_gradients(
    selected: Tensor,
    activations: Sequence[Tensor | GradientEdge],
    *,
    create_graph: bool = False,
    retain_graph: bool | None = None,
    **grad_kwargs: Any,
) -> tuple[Tensor, ...]:
    """∂(Σ selected)/∂A for the whole batch in one ``torch.autograd.grad``.

    As long as no layer after the activations mixes samples (a BatchNorm in train mode does), row i of the result is the
    gradient of sample i's own score.

    Args:
        selected: (N,), one score a sample, see :func:`select_scores`; or (N, 1, …).
        activations: tensors of the graph that ``selected`` came from, or places in it.
        create_graph: record the computation, so that a loss on the result reaches the weights after the activations (the
            second-order term).
        retain_graph: keep the graph of ``selected`` for another backward. Default: as ``create_graph``.
        grad_kwargs: further arguments of ``torch.autograd.grad``; ``grad_outputs`` is a sequence of N tensors.

    Returns:
        One gradient for each of the activations, of its shape.

    Raises:
        RuntimeError: ``selected`` has no graph, its graph is freed, or it does not depend on the activations.
    """
    if "grad_outputs" in grad_kwargs and len(selected):
        outputs: tuple[Tensor, ...] = selected.unbind()
    else:
        outputs = (selected,)
        grad_kwargs["grad_outputs"] = (torch.ones_like(selected),)
    return take_gradients(
        selected, outputs, activations, create_graph=create_graph, retain_graph=retain_graph, **grad_kwargs
    )


def take_gradients(
    scores: Tensor,
    outputs: Sequence[Tensor | GradientEdge],
    activations: Sequence[Tensor | GradientEdge],
    **grad_kwargs: Any,
) -> tuple[Tensor, ...]:
    """``torch.autograd.grad`` of outputs that are scores, parts of them, or on the way to them, with autocast off.

    Its errors say what to do; see :func:`activation_gradients`.
    """
    if not scores.requires_grad:
        raise RuntimeError(
            "scores: expected scores with a graph, got scores without one; run the forward with gradients enabled, "
            "outside torch.no_grad() and torch.inference_mode(), and do not detach"
        )
    if not all(
        isinstance(activation, GradientEdge) or activation.requires_grad for activation in activations
    ):
        raise RuntimeError(
            "activations: expected activations with a graph, got some without one; run the layer with gradients enabled"
        )
    grad_kwargs.setdefault("allow_unused", True)
    with no_autocast(scores), torch.enable_grad():
        try:
            gradients: Sequence[Tensor | None] = torch.autograd.grad(
                cast(Sequence[Tensor], outputs), cast(Sequence[Tensor], tuple(activations)), **grad_kwargs
            )
        except RuntimeError as error:
            if "backward through the graph a second time" not in str(error):
                raise
            raise RuntimeError(
                "scores: expected a graph that is still there, got one that an earlier backward() has freed; add all terms to "
                "one loss, then call backward() once"
            ) from error
    for gradient, activation in zip(gradients, activations, strict=True):
        if gradient is None:
            shape = tuple(activation.shape) if isinstance(activation, Tensor) else ""
            raise RuntimeError(
                f"scores: expected scores that were computed from the captured activations {shape}, got "
                f"scores of another forward, or of a path around this layer; pass what the model returned in the very "
                f"forward in which the activations were captured"
            )
    return cast(tuple[Tensor, ...], gradients)
