"""Gradients of many classes' scores, taken together."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

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
        ValueError: ``chunk_size`` is not positive.
    """
    if chunk_size is None:
        budget = _CHUNK_NUMBERS.get(scores.device.type, _CHUNK_NUMBERS_ELSEWHERE)
        chunk_size = max(1, budget // max(numbers_per_class, scores.numel(), 1))
    elif chunk_size < 1:
        raise ValueError(f"classes_per_chunk: expected at least 1, got {chunk_size}; None chooses")
    vectorised, reason = True, ""
    for columns in classes.split(chunk_size, dim=1):
        one_hot = scores.new_zeros(columns.shape[1], *scores.shape)
        one_hot.scatter_(2, columns.T.unsqueeze(2), 1)
        if vectorised and len(one_hot) > 1:
            try:
                yield take_gradients(
                    (scores,), activations, grad_outputs=one_hot, is_grads_batched=True, retain_graph=True
                )
                continue
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                vectorised, reason = False, str(error).partition("\n")[0]
        singly = [
            take_gradients((scores,), activations, grad_outputs=row, retain_graph=True) for row in one_hot
        ]
        if reason:
            # Only now: what fails singly as well is no matter of vectorising.
            warn(
                f"attribute_classes: an operator after the layer cannot be vectorised over the classes, so they are "
                f"differentiated one by one ({reason})"
            )
            reason = ""
        yield tuple(torch.stack(gradients) for gradients in zip(*singly, strict=True))
