"""Everything that ``target=`` may be: Captum's kinds, with its meaning of each, and errors that say what to do."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch
from torch import Tensor

#: An output index for all samples, or one for each of them.
Target = None | int | tuple[int | slice, ...] | Tensor | list[int] | list[tuple[int | slice, ...]]


def select_target(output: Tensor, target: Target) -> Tensor:
    """Select the score that is explained.

    Args:
        output: what the model returned, (N, …).
        target: None, for a model with one score a sample; an integer or a tensor with a single one, for all samples; a list
            or a 1-D tensor of N integers, one a sample; for outputs of more than two dimensions a tuple of indices, or a
            list of N of them. Negative indices count from the end.

    Returns:
        The selected scores, (N,) or (N, 1, …), with the graph of ``output``.

    Raises:
        TypeError: ``output`` is no tensor, or a target of a wrong kind.
        ValueError: a target whose length or range does not fit the output, or that leaves more than one score a sample.
    """
    if not isinstance(output, Tensor):
        raise TypeError(
            f"forward_func: expected a tensor of scores, got {type(output).__name__}; wrap the model in a function that "
            f"returns the scores alone"
        )
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
            f"target: expected None, an integer, a tuple, a list or a tensor, got {type(target).__name__}"
        )
    if len(target) != output.shape[0]:
        raise ValueError(
            f"target: expected {output.shape[0]} entries, one a sample, got a list of {len(target)}; pass a single integer or "
            f"tuple for the same target in all samples"
        )
    if all(isinstance(entry, Integral) for entry in target):
        return _gather(output, torch.tensor(target, dtype=torch.long, device=output.device))
    if all(isinstance(entry, tuple) for entry in target):
        return _select_each(output, target)
    kinds = sorted({type(entry).__name__ for entry in target})
    raise TypeError(
        f"target: expected a list of integers or a list of tuples, got a list of {', '.join(kinds)}"
    )


def _select_by_tensor(output: Tensor, target: Tensor) -> Tensor:
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"target: expected integers, got {target.dtype}; pass class indices")
    if target.numel() == 1:
        return _select_column(output, (int(target.item()),))
    shape = tuple(target.shape)
    if shape != (output.shape[0],):
        one_hot = target.dim() == 2 and shape == tuple(output.shape)
        remedy = "pass class indices, not one-hot rows" if one_hot else "pass one class index a sample"
        raise ValueError(f"target: expected shape ({output.shape[0]},), got {shape}; {remedy}")
    return _gather(output, target.to(output.device, torch.long))


def _select_column(output: Tensor, index: tuple[int | slice, ...]) -> Tensor:
    if len(index) >= output.dim():
        raise ValueError(
            f"target: expected at most {max(output.dim() - 1, 0)} indices for an output of shape {tuple(output.shape)}, got "
            f"{index}; the first dimension is the batch"
        )
    for position, size in zip(index, output.shape[1:], strict=False):
        if not isinstance(position, slice) and not -size <= position < size:
            raise _out_of_range(size, position)
    return output[(slice(None), *index)]


def _gather(output: Tensor, indices: Tensor) -> Tensor:
    if output.dim() != 2:
        raise ValueError(
            f"target: expected tuples of {output.dim() - 1} indices for an output of shape {tuple(output.shape)}, got "
            f"integers; one integer a sample fits outputs of shape (N, K)"
        )
    size = output.shape[1]
    outside = (indices < -size) | (indices >= size)
    if bool(outside.any()):
        raise _out_of_range(size, int(indices[outside][0]))
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
            raise _out_of_range(size, outside[0])
    if any(isinstance(index, slice) for column in columns for index in column):
        selected = [scores[entry] for scores, entry in zip(output, target, strict=True)]
        if len({scores.shape for scores in selected}) > 1:
            raise ValueError(f"target: expected slices that select as much in every sample, got {target}")
        return torch.stack(selected)
    samples = torch.arange(output.shape[0], device=output.device)
    return output[(samples, *(torch.tensor(column, device=output.device) for column in columns))]


def _out_of_range(size: int, index: int) -> ValueError:
    return ValueError(
        f"target: expected indices from {-size} to {size - 1}, got {index}; the model returns {size} scores"
    )
