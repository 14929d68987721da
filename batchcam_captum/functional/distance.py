"""Distances between two batches of maps: (N, …), (N, …) -> (N,), at least 0, zero when equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .maps import peak
from .precision import full_precision
from .registry import Registry
from .ssim import ssim

Distance = Callable[[Tensor, Tensor], Tensor]

#: Distances by name. Your own: ``@DISTANCES.register("name")`` on a function (N, …), (N, …) -> (N,).
DISTANCES: Registry[Distance] = Registry("distance")


def get_distance(distance: str | Distance) -> Distance:
    """Return the distance of this name, or the callable that was given.

    Args:
        distance: a name of :data:`DISTANCES`, or a function (N, …), (N, …) -> (N,).

    Returns:
        The function.

    Raises:
        ValueError: an unknown name.
    """
    return distance if callable(distance) else DISTANCES[distance]


@DISTANCES.register("l1")
def l1_distance(first: Tensor, second: Tensor) -> Tensor:
    r"""Mean absolute difference over a pair's elements.

    .. math:: \frac{1}{D} \sum_p |a_p - b_p|

    with p over the D elements of a map.

    Args:
        first: a, (N, …).
        second: b, of the same shape.

    Returns:
        (N,), at least 0; float32, or float64 where an input is.
    """
    return (full_precision(first) - full_precision(second)).abs().flatten(1).mean(1)


@DISTANCES.register("l2")
def l2_distance(first: Tensor, second: Tensor) -> Tensor:
    r"""Mean squared difference over a pair's elements. No square root: smooth at zero.

    .. math:: \frac{1}{D} \sum_p (a_p - b_p)^2

    with p over the D elements of a map.

    Args:
        first: a, (N, …).
        second: b, of the same shape.

    Returns:
        (N,), at least 0; float32, or float64 where an input is.
    """
    return (full_precision(first) - full_precision(second)).square().flatten(1).mean(1)


@DISTANCES.register("ssim")
def ssim_distance(first: Tensor, second: Tensor) -> Tensor:
    """1 − SSIM, see :func:`~batchcam_captum.functional.ssim`.

    Args:
        first: (N, C, *spatial), in [0, 1].
        second: of the same shape.

    Returns:
        (N,), in [0, 2]; 0 where the maps are equal.

    Raises:
        ValueError: see :func:`~batchcam_captum.functional.ssim`.
    """
    return 1 - ssim(first, second)


def cosine_similarity(first: Tensor, second: Tensor) -> Tensor:
    r"""Cosine of the angle between two maps.

    .. math:: \frac{a \cdot b}{\|a\|\, \|b\|}

    Each map is divided by its largest absolute value first, so that neither the result nor its gradient needs an epsilon:
    every norm is at least 1.

    Args:
        first: a, (N, …).
        second: b, of the same shape.

    Returns:
        (N,), in [-1, 1]; larger is closer. Where a map is all zero the similarity is 0, with a zero gradient.
    """
    one, other = _scaled(first), _scaled(second)
    norms: Tensor = torch.linalg.vector_norm(one.rows, dim=1) * torch.linalg.vector_norm(other.rows, dim=1)
    zero = (one.zero | other.zero).squeeze(1)
    products = (one.rows * other.rows).sum(1)
    return products.masked_fill(zero, 0) / norms.masked_fill(zero, 1)


def scaled(maps: Tensor) -> Tensor:
    """Divide each map by its largest absolute value, taken as a constant: (N, …) -> (N, …); an all-zero map stays zero."""
    return _scaled(maps).rows.reshape(maps.shape)


class _Scaled(NamedTuple):
    """Maps divided by their largest absolute value, which the angle between two does not depend on."""

    rows: Tensor  #: (N, D)
    zero: Tensor  #: (N, 1) booleans: nothing to divide by


def _scaled(maps: Tensor) -> _Scaled:
    rows = full_precision(maps).flatten(1)
    # No gradient through the scale, on which no result depends.
    largest = peak(rows.detach())
    zero = largest < torch.finfo(rows.dtype).tiny
    return _Scaled(rows / largest.masked_fill(zero, 1), zero)


def unit(maps: Tensor) -> Tensor:
    """Divide each map by its Euclidean norm: (N, …) -> (N, …); an all-zero map stays zero, with a zero gradient."""
    rows, zero = _scaled(maps)
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return (rows.masked_fill(zero, 0) / norms.masked_fill(zero, 1)).reshape(maps.shape)


@DISTANCES.register("cosine")
def cosine_distance(first: Tensor, second: Tensor) -> Tensor:
    """1 − cosine, see :func:`cosine_similarity`.

    Args:
        first: (N, …).
        second: of the same shape.

    Returns:
        (N,), in [0, 2]; 1 where a map is all zero.
    """
    return 1 - cosine_similarity(first, second)
