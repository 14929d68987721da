"""Checks that the metrics share."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from ..common import full_precision, no_autocast

F = TypeVar("F", bound=Callable[..., Any])


def cam_metric(function: F) -> F:
    """Decorate a function of cams: check their shape, build no graph, and switch autocast off.

    Args:
        function: its first argument is cams (N, 1, *spatial).

    Returns:
        The decorated function. It raises a ``ValueError`` for cams of another shape and a ``TypeError`` for cams that are not a
        floating-point tensor.
    """

    @functools.wraps(function)
    def checked(cams: Tensor, *args: Any, **kwargs: Any) -> Any:
        check_shape(cams)
        with torch.no_grad(), no_autocast(cams):
            return function(cams, *args, **kwargs)

    return cast(F, checked)


def check_shape(cams: Tensor) -> None:
    """Check that cams are (N, 1, *spatial), floating, with 1 to 3 spatial dimensions of any size.

    Raises:
        ValueError: another shape.
        TypeError: not a floating-point tensor.
    """
    if not isinstance(cams, Tensor) or not cams.is_floating_point():
        kind = cams.dtype if isinstance(cams, Tensor) else type(cams).__name__
        raise TypeError(
            f"cams: expected floating-point cams (N, 1, *spatial), got {kind}; pass what attribute() returns"
        )
    shape = tuple(cams.shape)
    if not 3 <= len(shape) <= 5 or shape[1] != 1 or not math.prod(shape[2:]):
        remedy = "call cams.unsqueeze(1)" if len(shape) == 3 else "measure the cams of one score at a time"
        raise ValueError(
            f"cams: expected (N, 1, *spatial) with 1 to 3 spatial dimensions, got {shape}; {remedy}"
        )


def finite(cams: Tensor, counted: Tensor | None = None) -> Tensor:
    """Return the cams in float32 (float64 stays), after a check that they are finite.

    Args:
        cams: (N, 1, *spatial).
        counted: (N,) booleans; cams of the other samples are not checked and become zero. Default: all count.

    Raises:
        ValueError: a cam contains NaN or infinity.
    """
    cams = full_precision(cams)
    if counted is not None:
        cams = cams.masked_fill(~counted.reshape(-1, *[1] * (cams.dim() - 1)), 0)
    bad = ~torch.isfinite(cams).flatten(1).all(1)
    if bool(bad.any()):
        raise ValueError(
            f"cams: expected finite numbers, got NaN or infinity in samples {bad.nonzero().flatten().tolist()[:10]}; look for "
            f"an overflow of float16 or a model that has diverged"
        )
    return cams


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise a ``ValueError`` unless a value is one of the known names."""
    if value not in choices:
        raise ValueError(f"{name}: expected {' or '.join(map(repr, choices))}, got {value!r}")


def check_number(name: str, value: Any, *, zero: bool = False, below: float = math.inf) -> None:
    """Check a finite real number that is more than 0, or at least 0 with ``zero``, and less than ``below``.

    Raises:
        TypeError: not a number.
        ValueError: out of range.
    """
    if not _is_number(value, Real):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    if not (0 <= value < below if zero else 0 < value < below) or not math.isfinite(value):
        limit = f" and less than {below:g}" if below < math.inf else ""
        raise ValueError(
            f"{name}: expected a finite number, {'at least' if zero else 'more than'} 0{limit}, got {value}"
        )


def check_integer(name: str, value: Any, low: int) -> None:
    """Check an integer of at least ``low``.

    Raises:
        TypeError: not an integer.
        ValueError: less than ``low``.
    """
    if not _is_number(value, Integral):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if value < low:
        raise ValueError(f"{name}: expected at least {low}, got {value}")


def _is_number(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
