"""Targets as pytorch-grad-cam's users write them: one function of one image's output for each image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..attribution.targets import select_target

#: What one image's target may be: a function of its output, a class, or indices into an output of several dimensions.
PeerTarget = Callable[[Any], Tensor] | int | tuple[int, ...]
#: One for each image; an integer for all; None, each image's highest category.
PeerTargets = None | int | Tensor | Iterable[PeerTarget]


def check_targets(targets: PeerTargets, samples: int) -> list[Any] | None:
    """Check the number and the kinds of targets, before the model runs.

    Args:
        targets: None; one integer for all images; a sequence, one entry an image, of functions of one image's output (the classes
            of ``pytorch_grad_cam.utils.model_targets`` are such), integers, or tuples of indices; or N integers in a tensor.
        samples: N, how many images there are.

    Returns:
        A list of N entries, or None.

    Raises:
        TypeError: targets of a wrong kind.
        ValueError: a number of targets other than N.
    """
    if targets is None:
        return None
    if _is_index(targets):
        return [targets] * samples
    if isinstance(targets, Tensor):
        entries = _indices(targets, samples)
    elif callable(targets) or isinstance(targets, str | Mapping) or not isinstance(targets, Iterable):
        kind = "a single function" if callable(targets) else type(targets).__name__
        raise TypeError(
            f"targets: expected None, an integer, or a list with one target an image, got {kind}; pass [target] * {samples} for "
            f"the same in all of them"
        )
    else:
        entries = list(targets)
    if len(entries) != samples:
        raise ValueError(
            f"targets: expected {samples}, one an image, got {len(entries)}; pass [target] * {samples} for the same in all of "
            f"them"
        )
    return [_checked_entry(entry, position) for position, entry in enumerate(entries)]


def target_scores(output: Any, targets: list[Any] | None, samples: int) -> Tensor:
    """The score of each image that is explained.

    Args:
        output: what the model returned: a tensor (N, …), or a list with an entry for each image, as detection models return it.
        targets: from :func:`check_targets`; None is the highest of the scores (N, K), the first one of several.
        samples: how many samples there are, N.

    Returns:
        (N,), with the graph of ``output``.

    Raises:
        TypeError: an output without a row for each image, or a function that returns no floating-point tensor.
        ValueError: a class that the output does not have, or a function that returns anything but a single score, or only
            scores without a graph.
        Exception: what a function raises, with the image's position and the output's shape.
    """
    if not isinstance(output, Tensor | list):
        raise TypeError(
            f"model: expected a tensor of scores (N, …), or a list with an entry an image, got {type(output).__name__}; wrap the "
            f"model in a module that returns the scores alone"
        )
    if isinstance(output, Tensor) and (targets is None or not any(map(callable, targets))):
        return _by_index(output, targets)
    if targets is None:
        raise ValueError(
            "targets: expected targets for a model that returns a list, got None; pass one function an image, of its entry"
        )
    rows = list(output)
    if len(rows) != samples:
        raise ValueError(f"model: expected an output for each of {samples} images, got {len(rows)} of them")
    scores = torch.stack(
        [
            _score(target, row, position)
            for position, (target, row) in enumerate(zip(targets, rows, strict=True))
        ]
    )
    recorded = any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_leaves(output))
    if recorded and not scores.requires_grad:
        raise ValueError(
            "targets: expected functions that compute their scores from the output, got scores without a graph; leave out "
            "detach(), item(), argmax() and torch.no_grad() (a box target whose boxes are all gone has none either)"
        )
    return scores


def _by_index(output: Tensor, targets: list[Any] | None) -> Tensor:
    if targets is not None:
        return select_target(output, targets).flatten()
    if output.dim() != 2:
        raise ValueError(
            f"targets: expected targets for an output of shape {tuple(output.shape)}, got None, which is the highest of scores "
            f"(N, K); pass one function an image, of its output"
        )
    return output.gather(1, output.detach().argmax(1, keepdim=True)).squeeze(1)


def _score(target: Any, row: Any, position: int) -> Tensor:
    if not callable(target):
        if not isinstance(row, Tensor):
            raise TypeError(
                f"targets: expected a function at position {position}, got {target!r}; the model returned "
                f"{type(row).__name__} for this image"
            )
        return select_target(row.unsqueeze(0), [target]).reshape(())
    name = getattr(target, "__name__", None) or type(target).__name__
    score = _called(target, name, row, position)
    if not isinstance(score, Tensor) or not score.is_floating_point():
        kind = score.dtype if isinstance(score, Tensor) else type(score).__name__
        raise TypeError(
            f"targets: expected a floating-point tensor from {name} at position {position}, got {kind}; its gradient is what is "
            f"explained"
        )
    if score.numel() != 1:
        raise ValueError(
            f"targets: expected a single score from {name} at position {position}, got shape {tuple(score.shape)}; select one of "
            f"the image's scores, or sum them"
        )
    return score.reshape(())


def _called(target: Callable[[Any], Any], name: str, row: Any, position: int) -> Any:
    """The target's result; what it raises says for which image.

    An IndexError or ValueError is raised anew with its cause, everything else is the target's own, with a note.
    """
    try:
        return target(row)
    except Exception as error:
        given = f"a tensor of shape {tuple(row.shape)}" if isinstance(row, Tensor) else type(row).__name__
        text = f"targets: expected {name} at position {position} to take this image's output, {given}"
        remedy = "check its classes and indices against that shape"
        if type(error) not in (IndexError, ValueError):
            note = f"{text}; {remedy}"
            if note not in getattr(error, "__notes__", ()):  # one object may be raised again and again
                error.add_note(note)
            raise
        raise type(error)(f"{text}, got {type(error).__name__} ({error}); {remedy}") from error


def _is_index(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _indices(targets: Tensor, samples: int) -> list[Any]:
    if (
        targets.is_floating_point()
        or targets.is_complex()
        or targets.dtype == torch.bool
        or targets.dim() > 1
    ):
        raise TypeError(
            f"targets: expected class indices, an integer tensor ({samples},), got {targets.dtype} {tuple(targets.shape)}; for "
            f"one-hot rows pass targets.argmax(1)"
        )
    found: Any = targets.tolist()
    return found if isinstance(found, list) else [found] * samples


def _checked_entry(entry: Any, position: int) -> Any:
    if isinstance(entry, Tensor) and entry.numel() == 1 and not entry.is_floating_point():
        return int(entry.item())
    if _is_index(entry):
        return int(entry)
    if callable(entry) or (isinstance(entry, tuple) and entry and all(map(_is_index, entry))):
        return entry
    raise TypeError(
        f"targets: expected a function of one image's output, an integer or a tuple of them, got {type(entry).__name__} at "
        f"position {position}"
    )
