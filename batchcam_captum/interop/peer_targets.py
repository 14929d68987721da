"""The targets of pytorch-grad-cam's users: one function of an image's output per image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..attribution.targets import select_target

#: The target of one image: a function of its output, a class, or indices into an output of several dimensions.
PeerTarget = Callable[[Any], Tensor] | int | tuple[int, ...]
#: One per image; an integer for all; None, each image's highest score.
PeerTargets = None | int | Tensor | Iterable[PeerTarget]


def check_targets(targets: PeerTargets, samples: int) -> list[Any] | None:
    """Check the number and the types of targets, before the model runs.

    Args:
        targets: None; one integer for all images; an iterable with one function, integer or tuple of indices per image; or a
            tensor of N integers.
        samples: N, the number of images.

    Returns:
        A list of N entries, or None.

    Raises:
        TypeError: a target of a wrong type.
        ValueError: a number of targets other than N.
    """
    if targets is None:
        return None
    if isinstance(targets, Tensor):
        if targets.is_floating_point() or targets.dtype == torch.bool or targets.dim() > 1:
            raise TypeError(
                f"targets: expected class indices, an integer tensor ({samples},), got {targets.dtype} {tuple(targets.shape)}; "
                f"for one-hot rows pass targets.argmax(1)"
            )
        targets = targets.tolist()
    if _is_index(targets):
        return [targets] * samples
    if callable(targets) or isinstance(targets, str | Mapping) or not isinstance(targets, Iterable):
        kind = "a single function" if callable(targets) else type(targets).__name__
        raise TypeError(
            f"targets: expected None, an integer, or a list with one target per image, got {kind}; pass [target] * {samples} "
            f"for the same in all images"
        )
    given: list[Any] = list(targets)
    entries = [int(entry) if _is_index(entry) else entry for entry in given]
    if len(entries) != samples:
        raise ValueError(
            f"targets: expected {samples}, one per image, got {len(entries)}; pass [target] * {samples} for the same in all "
            f"images"
        )
    for position, entry in enumerate(entries):
        if not (_is_index(entry) or isinstance(entry, tuple) or callable(entry)):
            raise TypeError(
                f"targets: expected a function of an image's output, an integer or a tuple of integers, got "
                f"{type(entry).__name__} at position {position}"
            )
    return entries


def target_scores(output: Any, targets: list[Any] | None, samples: int) -> Tensor:
    """Return the explained score of each image.

    Args:
        output: the model's output: a tensor (N, …), or a list with one entry per image, as detection models return it.
        targets: from :func:`check_targets`. None selects the highest of the scores (N, K).
        samples: N.

    Returns:
        (N,), with the graph of ``output``.

    Raises:
        TypeError: an output without one row per image, or a function that returns no floating-point tensor.
        ValueError: a class that the output does not have, a function that returns more than one score, or scores without a
            graph.
    """
    if not isinstance(output, Tensor | list):
        raise TypeError(
            f"model: expected a tensor of scores (N, …), or a list with one entry per image, got {type(output).__name__}; wrap "
            f"the model in a module that returns the scores"
        )
    if targets is None:
        if isinstance(output, list) or output.dim() != 2:
            kind = "a list" if isinstance(output, list) else f"shape {tuple(output.shape)}"
            raise ValueError(
                f"targets: expected targets for an output that is {kind}, got None, which selects the highest of scores (N, K); "
                f"pass one function per image, of its output"
            )
        return output.gather(1, output.detach().argmax(1, keepdim=True)).squeeze(1)
    if isinstance(output, Tensor) and not any(map(callable, targets)):
        return select_target(output, targets).flatten()
    if len(output) != samples:
        raise ValueError(
            f"model: expected an output for each of {samples} images, got {len(output)}; return one row per image"
        )
    scores = torch.stack(
        [
            _score(target, row, position)
            for position, (target, row) in enumerate(zip(targets, output, strict=True))
        ]
    )
    recorded = any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_leaves(output))
    if recorded and not scores.requires_grad:
        raise ValueError(
            "targets: expected functions that compute their scores from the output, got scores without a graph; leave out "
            "detach(), item(), argmax() and torch.no_grad() (a box target without a matching box has no graph either)"
        )
    return scores


def _score(target: Any, row: Any, position: int) -> Tensor:
    if not callable(target):
        if not isinstance(row, Tensor):
            raise TypeError(
                f"targets: expected a function at position {position}, got {target!r}, and the model returned "
                f"{type(row).__name__} for this image; pass a function of it"
            )
        return select_target(row.unsqueeze(0), [target]).reshape(())
    score = target(row)
    name = getattr(target, "__name__", None) or type(target).__name__
    if not isinstance(score, Tensor) or not score.is_floating_point():
        kind = score.dtype if isinstance(score, Tensor) else type(score).__name__
        raise TypeError(
            f"targets: expected a floating-point tensor from {name} at position {position}, got {kind}; its gradient is explained"
        )
    if score.numel() != 1:
        raise ValueError(
            f"targets: expected a single score from {name} at position {position}, got shape {tuple(score.shape)}; select one "
            f"score, or sum them"
        )
    return score.reshape(())


def _is_index(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and value.dtype in (torch.int64, torch.int32)
    return isinstance(value, Integral) and not isinstance(value, bool)
