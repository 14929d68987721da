"""Gradients of many classes' scores, taken together."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from .gradients import take_gradients

# How many numbers the gradients of one chunk of classes have. On a CPU larger chunks are no faster once a class takes a
# millisecond; a GPU is busy only with more.
_CHUNK_NUMBERS = {"cpu": 2**22}
_CHUNK_NUMBERS_ELSEWHERE = 2**26


def class_gradients(
    scores: Tensor,
    classes: Tensor,
    activations: Sequence[Tensor | GradientEdge],
    *,
    numbers_per_class: int,
    chunk_size: int | None = None,
    warn: Callable[[str], Any] = warnings.warn,
) -> Iterator[tuple[Tensor, ...]]:
    """∂(the score of each sample's m-th class)/∂A for many m, vectorised over chunks of them with ``torch.vmap``.

    As long as no layer after the activations mixes samples, row i of a result is the gradient of sample i's own score.

    Args:
        scores: (N, K), of a graph that is kept.
        classes: (N, M) indices in 0 … K−1.
        activations: tensors of that graph, or edges of it.
        numbers_per_class: how many numbers the gradients of one class have; chunks are made of as many classes as fit.
        chunk_size: the number of classes in a chunk; None chooses.
        warn: called with a message where an operator cannot be vectorised; the classes then go one by one.

    Yields:
        Chunk by chunk, in order, the gradients with respect to each of the activations, (chunk, *shape).

    Raises:
        RuntimeError: ``scores`` has no graph, its graph is freed, or it does not depend on the activations.
    """
    if chunk_size is None:
        budget = _CHUNK_NUMBERS.get(scores.device.type, _CHUNK_NUMBERS_ELSEWHERE)
        chunk_size = max(1, budget // max(numbers_per_class, scores.numel(), 1))
    last = _last_linear(scores, activations)
    vectorised, reason = True, ""
    for columns in classes.split(chunk_size, dim=1):
        if last is None:
            output: Tensor | GradientEdge = scores
            seeds = scores.new_zeros(columns.shape[1], *scores.shape)
            seeds.scatter_(2, columns.T.unsqueeze(2), 1)
        else:
            output, seeds = last.edge, last.rows[columns.T]
        if vectorised and len(seeds) > 1:
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
                vectorised, reason = False, str(error).partition("\n")[0]
        singly = [
            take_gradients(scores, (output,), activations, grad_outputs=seed, retain_graph=True)
            for seed in seeds
        ]
        if reason:
            # Only now: what fails singly as well is no matter of vectorising.
            warn(
                f"attribute_classes: an operator after the layer cannot be vectorised over the classes, so they are "
                f"differentiated one by one ({reason})"
            )
            reason = ""
        yield tuple(torch.stack(gradients) for gradients in zip(*singly, strict=True))


class _LastLinear(NamedTuple):
    """Scores = features · rowsᵀ + bias."""

    edge: GradientEdge  #: of the features, (N, F)
    rows: Tensor  #: (K, F): the gradient of each class's score at the features of any sample


def _last_linear(scores: Tensor, activations: Sequence[Tensor | GradientEdge]) -> _LastLinear | None:
    """The linear layer that made the scores. Its rows save a product of K one-hot rows a sample with the whole weight."""
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
    except RuntimeError:  # the graph is freed, which the gradient itself will say
        return None
    return _LastLinear(GradientEdge(features, position), rows)


def _is_leaf(node: Node) -> bool:
    return node.name() == "torch::autograd::AccumulateGrad"


def _is_constant(node: Node | None, explained: Sequence[Tensor]) -> bool:
    """Whether this is a parameter as it is, perhaps transposed or cast, or nothing that has a gradient."""
    while node is not None and node.name() in ("TBackward0", "ToCopyBackward0"):
        node = node.next_functions[0][0]
    if node is None:
        return True
    return _is_leaf(node) and not any(node.variable is tensor for tensor in explained)  # type: ignore[attr-defined]
