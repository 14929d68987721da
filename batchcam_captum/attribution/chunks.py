"""Cut a batch into pieces, for inputs that do not fit at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def check_size(name: str, size: object, remedy: str) -> None:
    """Check the size of a piece.

    Raises:
        ValueError: the size is not positive.
        TypeError: the size is not an integer.
    """
    if not isinstance(size, int) or isinstance(size, bool):
        raise TypeError(f"{name}: expected an integer or None, got {type(size).__name__}")
    if size < 1:
        raise ValueError(f"{name}: expected at least 1, got {size}; {remedy}")


def row_chunks(samples: int, size: int | None) -> list[slice]:
    """Return slices of at most ``size`` rows that cover 0 … samples−1; a single one if ``size`` is None.

    Raises:
        ValueError: ``size`` is not positive.
        TypeError: ``size`` is no integer.
    """
    if size is None:
        return [slice(0, samples)]
    check_size("internal_batch_size", size, "None takes all samples at once")
    return [slice(start, min(start + size, samples)) for start in range(0, max(samples, 1), size)]


def rows_of(value: Any, rows: slice, samples: int) -> Any:
    """Return the rows of a tensor that has one per sample; anything else as it is."""
    if isinstance(value, Tensor) and value.dim() and value.shape[0] == samples:
        return value[rows]
    return value


def joined(parts: Sequence[Any]) -> Any:
    """Concatenate tensors, or the tensors in lists and tuples, of several pieces."""
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    return type(parts[0])(joined(entries) for entries in zip(*parts, strict=True))
