"""Everything that ``target=`` may be: Captum's kinds, with its meaning of each, and errors that say what to do."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from .output import pick_output
from .target_kinds import RowTarget, check_index, out_of_range

#: An output index for all samples, or one for each of them; or a function of the output, for all samples or one for each.
Target = (
    None
    | int
    | tuple[int | slice, ...]
    | Tensor
    | list[int]
    | list[tuple[int | slice, ...]]
    | Callable[[Tensor], Tensor]
    | list[Callable[[Tensor], Tensor]]
)


def select_target(output: Tensor, target: Target) -> Tensor:
    """Select the score that is explained.

    Args:
        output: what the model returned, (N, …).
        target: None, for a model with one score a sample; an integer or a tensor with a single one, for all samples; a list
            or a 1-D tensor of N integers, one a sample; for outputs of more than two dimensions a tuple of indices, or a
            list of N of them. Negative indices count from the end. Or a function of the output that returns one score a sample,
            such as :class:`~batchcam_captum.attribution.MaskTarget`; or a list of N functions, each of its own sample's output
            without the batch dimension, that return a single score (pytorch-grad-cam's targets are such functions).

    Returns:
        The selected scores, (N,) or (N, 1, …), with the graph of ``output``.

    Raises:
        TypeError: ``output`` is no tensor, or a target of a wrong kind, or a function that returns something else than scores.
        ValueError: a target whose length or range does not fit the output, or that leaves more than one score a sample; or a
            function that returns scores without a graph.

    Example:
        >>> output = torch.tensor([[1.0, 2.0, 5.0], [4.0, 3.0, 0.0]])
        >>> select_target(output, [2, 0])
        tensor([5., 4.])
        >>> select_target(output, lambda scores: scores[:, 0] - scores[:, 1])
        tensor([-1.,  1.])
    """
    output = pick_output(output)
    if callable(target):
        return _select_by_function(output, target)
    selected = output if target is None else _select(output, target)
    if selected.dim() == 0 or selected.shape[1:].numel() != 1:
        what = "no target" if target is None else f"target {target!r}"
        raise ValueError(
            f"target: expected one score a sample, got shape {tuple(selected.shape)} for {what} and an output of shape "
            f"{tuple(output.shape)}; pass an index for each dimension after the first"
        )
    return selected


def _select(output: Tensor, target: Any) -> Tensor:
    if isinstance(target, Tensor):
        return _select_by_tensor(output, target)
    if isinstance(target, tuple):
        return _select_column(output, target)
    if isinstance(target, Integral):
        return _select_column(output, (int(target),))
    if not isinstance(target, list):
        raise TypeError(
            f"target: expected None, an integer, a tuple, a list, a tensor or a function, got {type(target).__name__}"
        )
    _check_length(target, output.shape[0])
    if all(isinstance(entry, Integral) for entry in target):
        return _gather(output, torch.tensor(target, dtype=torch.long, device=output.device))
    if all(isinstance(entry, tuple) for entry in target):
        return _select_each(output, target)
    if all(callable(entry) for entry in target):
        return _select_by_functions(output, target)
    kinds = sorted({type(entry).__name__ for entry in target})
    raise TypeError(
        f"target: expected a list of integers, of tuples or of functions, got a list of {', '.join(kinds)}"
    )


def _check_length(target: list[Any], samples: int) -> None:
    if len(target) != samples:
        raise ValueError(
            f"target: expected {samples} entries, one a sample, got a list of {len(target)}; pass a single integer or "
            f"tuple for the same target in all samples"
        )


def _select_by_function(output: Tensor, function: Callable[[Tensor], Any]) -> Tensor:
    selected = _scores_of(function, output)
    samples = output.shape[:1]
    if selected.shape[:1] != samples or not samples or selected.shape[1:].numel() != 1:
        remedy = "sum over everything but the first dimension"
        if not selected.dim():
            remedy += "; a function of one sample's output goes into a list, one a sample"
        raise ValueError(
            f"target: expected a function that returns one score a sample, ({', '.join(map(str, samples))},), got shape "
            f"{tuple(selected.shape)} for an output of shape {tuple(output.shape)}; {remedy}"
        )
    return selected


def _select_by_functions(output: Tensor, functions: list[Callable[[Tensor], Any]]) -> Tensor:
    scores = []
    for row, function in zip(output, functions, strict=True):
        score = _scores_of(function, row)
        if score.numel() != 1:
            raise ValueError(
                f"target: expected functions of one sample's output that return a single score, got shape "
                f"{tuple(score.shape)} for a sample of shape {tuple(row.shape)}"
            )
        scores.append(score.reshape(()))
    return torch.stack(scores) if scores else output.new_zeros(0)


def _scores_of(function: Callable[[Tensor], Any], output: Tensor) -> Tensor:
    scores = function(output)
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        kind = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
        raise TypeError(
            f"target: expected a function that returns a tensor of floating-point scores, got {kind}; its gradient is what is "
            f"explained"
        )
    if output.requires_grad and not scores.requires_grad:
        raise ValueError(
            "target: expected a function that computes its scores from the output, got scores without a graph; leave out "
            "detach(), item(), argmax() and torch.no_grad()"
        )
    return scores


def target_rows(target: Any, rows: slice, samples: int) -> Any:
    """Cut a target to some of the samples, for a batch that is run in pieces.

    Args:
        target: see :func:`select_target`.
        rows: which samples.
        samples: how many there are in all.

    Returns:
        A list, a tensor of N integers and a :class:`~batchcam_captum.attribution.RowTarget`: their part for these samples.
        Anything else is the same for all samples, also a plain function: it sees the output of one piece after the other.

    Raises:
        ValueError: a list or a tensor of another length than ``samples``.

    Example:
        >>> target_rows([4, 0, 2], slice(1, 3), 3)
        [0, 2]
        >>> target_rows(7, slice(1, 3), 3)
        7
    """
    if rows == slice(0, samples):  # nothing to cut; and an output may have other rows than the inputs
        return target
    if isinstance(target, list):
        _check_length(target, samples)
        return target[rows]
    if isinstance(target, Tensor) and target.numel() != 1:
        if tuple(target.shape) != (samples,):
            raise _wrong_shape(target, samples, one_hot=False)
        return target[rows]
    # A class has the method as well, and is no target.
    if isinstance(target, RowTarget) and not isinstance(target, type):
        return target.for_rows(rows, samples)
    return target


def _select_by_tensor(output: Tensor, target: Tensor) -> Tensor:
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"target: expected integers, got {target.dtype}; pass class indices")
    if target.numel() == 1:
        return _select_column(output, (int(target.item()),))
    shape = tuple(target.shape)
    if shape != (output.shape[0],):
        raise _wrong_shape(
            target, output.shape[0], one_hot=target.dim() == 2 and shape == tuple(output.shape)
        )
    return _gather(output, target.to(output.device, torch.long))


def _wrong_shape(target: Tensor, samples: int, *, one_hot: bool) -> ValueError:
    remedy = "pass class indices, not one-hot rows" if one_hot else "pass one class index a sample"
    return ValueError(f"target: expected shape ({samples},), got {tuple(target.shape)}; {remedy}")


def _select_column(output: Tensor, index: tuple[int | slice, ...]) -> Tensor:
    if len(index) >= output.dim():
        raise ValueError(
            f"target: expected at most {max(output.dim() - 1, 0)} indices for an output of shape {tuple(output.shape)}, got "
            f"{index}; the first dimension is the batch"
        )
    for position, size in zip(index, output.shape[1:], strict=False):
        if not isinstance(position, slice) and not -size <= position < size:
            raise out_of_range(size, position)
    return output[(slice(None), *index)]


def _gather(output: Tensor, indices: Tensor) -> Tensor:
    if output.dim() != 2:
        raise ValueError(
            f"target: expected tuples of {output.dim() - 1} indices for an output of shape {tuple(output.shape)}, got "
            f"integers; one integer a sample fits outputs of shape (N, K)"
        )
    size = output.shape[1]
    check_index(indices, size)
    return output.gather(1, indices.remainder(size).unsqueeze(1)).squeeze(1)


def _select_each(output: Tensor, target: list[tuple[int | slice, ...]]) -> Tensor:
    lengths = {len(entry) for entry in target}
    kinds_fit = all(isinstance(index, Integral | slice) for entry in target for index in entry)
    if len(lengths) != 1 or not kinds_fit:
        raise ValueError(f"target: expected tuples of integers of one length, got {target}")
    (length,) = lengths
    if length >= output.dim():
        raise ValueError(
            f"target: expected tuples of at most {output.dim() - 1} indices for an output of shape {tuple(output.shape)}, got "
            f"{length}; the first dimension is the batch"
        )
    columns = list(zip(*target, strict=True))
    for column, size in zip(columns, output.shape[1:], strict=False):
        outside = [index for index in column if not isinstance(index, slice) and not -size <= index < size]
        if outside:
            raise out_of_range(size, outside[0])
    if any(isinstance(index, slice) for column in columns for index in column):
        selected = [scores[entry] for scores, entry in zip(output, target, strict=True)]
        if len({scores.shape for scores in selected}) > 1:
            raise ValueError(f"target: expected slices that select as much in every sample, got {target}")
        return torch.stack(selected)
    samples = torch.arange(output.shape[0], device=output.device)
    return output[(samples, *(torch.tensor(column, device=output.device) for column in columns))]
