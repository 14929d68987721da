"""What the metrics have in common: checks of cams, and what stands where there is nothing to measure."""

from __future__ import annotations

import math
from numbers import Integral, Real

import torch
from torch import Tensor

from ..checks import ValueChecks
from ..losses.comparison import without
from ..precision import full_precision


def check_metric_cams(cams: Tensor) -> None:
    """Check that cams are (N, 1, *spatial), floating, with 1 to 3 spatial dimensions. Unlike a loss, a metric takes any size.

    Raises:
        ValueError: another shape.
        TypeError: no tensor, or not floating.
    """
    if not isinstance(cams, Tensor) or not cams.is_floating_point():
        kind = cams.dtype if isinstance(cams, Tensor) else type(cams).__name__
        raise TypeError(
            f"cams: expected floating cams (N, 1, *spatial), got {kind}; pass what attribute() returns"
        )
    shape = tuple(cams.shape)
    if not 3 <= len(shape) <= 5 or shape[1] != 1 or not math.prod(shape[2:]):
        remedy = "call cams.unsqueeze(1)" if len(shape) == 3 else "measure the cams of one score at a time"
        raise ValueError(
            f"cams: expected (N, 1, *spatial) with 1 to 3 spatial dimensions, got {shape}; {remedy}"
        )


def is_number(value: object) -> bool:
    """Whether this is a real number, of Python or NumPy, and no boolean."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_whole(name: str, value: object, at_least: int | None = None) -> None:
    """Check a whole number.

    Raises:
        TypeError: no integer.
        ValueError: less than ``at_least``.
    """
    if not is_number(value) or not isinstance(value, Integral):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if at_least is not None and int(value) < at_least:
        raise ValueError(f"{name}: expected at least {at_least}, got {value}")


def raised(checks: ValueChecks | None) -> ValueChecks:
    """The checks that were given, or such as raise at once on every device."""
    return ValueChecks(synchronize=True) if checks is None else checks


def finite(cams: Tensor, counted: Tensor | None, checks: ValueChecks | None) -> Tensor:
    """The cams in float32 (float64 stays), detached, zero where a sample does not count; the others have to be finite."""
    cams = full_precision(cams.detach())
    if counted is not None:
        cams = without(cams, counted)
    finite_ones = torch.isfinite(cams)
    raised(checks).require(
        finite_ones,
        "cams: expected finite numbers, got NaN or infinity; look for an overflow of float16, or a model that has diverged",
        lambda: f"samples {(~finite_ones).flatten(1).any(1).nonzero().flatten().tolist()[:10]}",
    )
    return cams


def undefined(values: Tensor, counted: Tensor | None) -> Tensor:
    """The values (N,), NaN where there is nothing to measure, so that no mean takes it for a number."""
    return values if counted is None else values.masked_fill(~counted, math.nan)


def wide_dtype(device: torch.device) -> torch.dtype:
    """What long sums are kept in: float64, or float32 on a device that has no other."""
    return torch.float32 if device.type == "mps" else torch.float64
