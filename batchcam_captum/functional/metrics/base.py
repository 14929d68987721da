"""What the metrics share: no graph, no autocast, and checks of cams."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
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
