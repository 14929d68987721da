"""From scores to their gradients with respect to activations."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from .class_means import check_labels, wide_indices
from .common import full_precision, no_autocast

# The number of elements of the gradients of one chunk of classes. On a CPU larger chunks are no faster once a class takes a
# millisecond; a GPU is only busy with more.
_CHUNK_NUMBERS = {"cpu": 2**22}
_CHUNK_NUMBERS_ELSEWHERE = 2**26

ScoreKind = Literal["label", "predicted", "confused", "log_prob_sum"]
Score = ScoreKind | Callable[[Tensor, Tensor], Tensor]


def check_score(score: object) -> None:
    """Check the kind of score before there are any scores.

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
    """Return the scores that cams explain, one number per sample.

    Args:
        scores: (N, K), before any softmax.
        labels: (N,) class indices, or (N, K) soft labels. An index outside 0 … K−1, as of an ignored sample, selects class 0; the
            losses leave that sample out.
        score: ``"label"``, the score of the label (for soft labels the weighted sum of the scores); ``"predicted"``, the highest
            score; ``"confused"``, the highest score of a class other than the label (for soft labels, other than those of the
            largest weight); ``"log_prob_sum"``, Σ_c log softmax(scores)_c, which depends on every class (Ross et al. 2017,
            eq. 1); or a callable (scores, labels) -> (N,).

    Returns:
        (N,), float32, or float64 if the scores are.

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
                f"scores: expected (N, K), one score per class, got {tuple(scores.shape)}; pass the classifier's scores before "
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
            f"score: expected one number per sample, ({scores.shape[0]},), got {tuple(selected.shape)} from the callable"
        )
    return selected


def _is_label(labels: Tensor, num_classes: int) -> Tensor:
    """Return which classes each sample has, (N, K); none of them if no other class would be left."""
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
    """Return ∂(Σ selected)/∂A of the whole batch from one ``torch.autograd.grad``.

    Unless a layer after the activations mixes samples, as BatchNorm in train mode does, row i of the result is the gradient of
    the score of sample i.

    Args:
        selected: (N,), one score per sample, as :func:`select_scores` returns them; or (N, 1, …).
        activations: tensors or edges of the graph of ``selected``.
        create_graph: record the computation, so that a loss on the result reaches the weights after the activations (the
            second-order term).
        retain_graph: keep the graph of ``selected`` for another backward. Default: as ``create_graph``.
        **grad_kwargs: further arguments of ``torch.autograd.grad``; ``grad_outputs`` is a sequence of N tensors.

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
    """Call ``torch.autograd.grad`` on scores, parts of them or what they are computed from, with autocast off.

    Raises:
        RuntimeError: the scores have no graph, their graph is freed, or they do not depend on the activations.
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
                "scores: expected a graph, got one that an earlier backward() has freed; add all terms to "
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


def class_gradients(
    scores: Tensor,
    classes: Tensor,
    activations: Sequence[Tensor | GradientEdge],
    *,
    numbers_per_class: int,
    chunk_size: int | None = None,
    warn: Callable[[str], Any] = warnings.warn,
) -> Iterator[tuple[Tensor, ...]]:
    """Yield ∂(the score of the m-th class of each sample)/∂A for many m, vectorized over chunks with ``torch.vmap``.

    Unless a layer after the activations mixes samples, row i of a result is the gradient of the score of sample i.

    Args:
        scores: (N, K), whose graph is kept.
        classes: (N, M) indices in 0 … K−1.
        activations: tensors of that graph, or edges of it.
        numbers_per_class: the number of elements of the gradients of one class, from which the size of chunks is chosen.
        chunk_size: the number of classes per chunk. Default: as many as fit.
        warn: called with a message if an operator cannot be vectorized; the classes are then differentiated one by one.

    Yields:
        Chunk by chunk, in order, the gradients with respect to each of the activations, (chunk, *shape).

    Raises:
        RuntimeError: ``scores`` has no graph, its graph is freed, or it does not depend on the activations.
    """
    if chunk_size is None:
        budget = _CHUNK_NUMBERS.get(scores.device.type, _CHUNK_NUMBERS_ELSEWHERE)
        chunk_size = max(1, budget // max(numbers_per_class, scores.numel(), 1))
    last = _last_linear(scores, activations)
    vectorized, reason = True, ""
    for columns in classes.split(chunk_size, dim=1):
        if last is None:
            output: Tensor | GradientEdge = scores
            seeds = scores.new_zeros(columns.shape[1], *scores.shape)
            seeds.scatter_(2, columns.T.unsqueeze(2), 1)
        else:
            output, seeds = last.edge, last.rows[columns.T]
        if vectorized and len(seeds) > 1:
            try:
                yield take_gradients(
                    scores,
                    (output,),
                    activations,
                    grad_outputs=seeds,
                    is_grads_batched=True,
                    retain_graph=True,
                )
                continue
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                vectorized, reason = False, str(error).partition("\n")[0]
        singly = [
            take_gradients(scores, (output,), activations, grad_outputs=seed, retain_graph=True)
            for seed in seeds
        ]
        if reason:
            # Only now, as what also fails singly is not due to vectorizing.
            warn(
                f"attribute_classes: an operator after the layer cannot be vectorized over the classes, so they are "
                f"differentiated one by one ({reason})"
            )
            reason = ""
        yield tuple(torch.stack(gradients) for gradients in zip(*singly, strict=True))


class _LastLinear(NamedTuple):
    """Scores = features · rowsᵀ + bias."""

    edge: GradientEdge  #: of the features, (N, F)
    rows: Tensor  #: (K, F): the gradient of each class's score at the features of any sample


def _last_linear(scores: Tensor, activations: Sequence[Tensor | GradientEdge]) -> _LastLinear | None:
    """Return the linear layer that made the scores: its rows save a product of one-hot rows with the whole weight."""
    node = scores.grad_fn
    if scores._backward_hooks or node is None or node.name() not in ("AddmmBackward0", "MmBackward0"):
        return None
    *bias, (features, position), (weight, _) = node.next_functions
    if features is None or _is_leaf(features):
        return None
    explained = [activation for activation in activations if isinstance(activation, Tensor)]
    if not all(_is_constant(other, explained) for other in (weight, *(entry for entry, _ in bias))):
        return None
    try:
        rows = node._saved_mat2.detach().T * getattr(node, "_saved_alpha", 1)  # type: ignore[attr-defined]
    except RuntimeError:  # the graph is freed, as the gradient will say
        return None
    return _LastLinear(GradientEdge(features, position), rows)


def _is_leaf(node: Node) -> bool:
    return node.name() == "torch::autograd::AccumulateGrad"


def _is_constant(node: Node | None, explained: Sequence[Tensor]) -> bool:
    """Return True for a parameter, perhaps transposed or cast, and for what has no gradient."""
    while node is not None and node.name() in ("TBackward0", "ToCopyBackward0"):
        node = node.next_functions[0][0]
    if node is None:
        return True
    return _is_leaf(node) and not any(node.variable is tensor for tensor in explained)  # type: ignore[attr-defined]
