"""Distances between two batches of maps: (N, …), (N, …) -> (N,), at least 0, and 0 where the maps are equal."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .common import Registry, full_precision, no_autocast
from .maps import peak

Distance = Callable[[Tensor, Tensor], Tensor]

#: Distances by name. Your own: ``@DISTANCES.register("name")`` on a function (N, …), (N, …) -> (N,).
DISTANCES: Registry[Distance] = Registry("distance")


def get_distance(distance: str | Distance) -> Distance:
    """Return the distance of a name, or the callable that is given.

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
    r"""Return the mean absolute difference of each pair.

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
    r"""Return the mean squared difference of each pair, without a square root: smooth at zero.

    .. math:: \frac{1}{D} \sum_p (a_p - b_p)^2

    with p over the D elements of a map.

    Args:
        first: a, (N, …).
        second: b, of the same shape.

    Returns:
        (N,), at least 0; float32, or float64 where an input is.
    """
    return (full_precision(first) - full_precision(second)).square().flatten(1).mean(1)


def _default_window(shortest: int) -> int:
    """Return 11 as in the paper; for a small map an odd number near half of it, so that each pixel is in several windows."""
    window = min(11, max(3, shortest // 2 + 1), shortest)
    return window if window % 2 else window - 1


def gaussian_weights(window: int, sigma: float) -> list[float]:
    """Return the weights of a Gaussian at the places of a window, with a sum of 1."""
    # Plain numbers: torch.compile traces no floating tensor that becomes a list.
    weights = [math.exp(-((position - (window - 1) / 2) ** 2) / (2 * sigma**2)) for position in range(window)]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def blur(maps: Tensor, weights: list[float]) -> Tensor:
    """Return the weighted mean over every window that lies wholly inside, over the dimensions from 2 on.

    Sums of shifted slices instead of a convolution: they keep nothing for the backward, take any number of dimensions, and are
    never rounded to TF32.
    """
    for dim in range(2, maps.dim()):
        positions = maps.shape[dim] - len(weights) + 1
        blurred = maps.narrow(dim, 0, positions) * weights[0]
        for shift, weight in enumerate(weights[1:], start=1):
            blurred = torch.add(blurred, maps.narrow(dim, shift, positions), alpha=weight)
        maps = blurred
    return maps


def ssim(
    first: Tensor,
    second: Tensor,
    *,
    window_size: int | None = None,
    sigma: float = 1.5,
    data_range: float = 1.0,
) -> Tensor:
    """Return the structural similarity index of each pair of maps (Wang et al. 2004, eq. 13), 1 where they are equal.

    A Gaussian window, population covariances, C1 = (0.01 L)² and C2 = (0.03 L)², averaged over the windows that lie wholly
    inside the map. Computed in float32 or float64, with variances of at least 0.

    Args:
        first: (N, C, *spatial), any number of spatial dimensions.
        second: of the same shape.
        window_size: odd side of the window in pixels. Default: 11; for a map whose shortest side s is under 20, the largest
            odd number that is at most s // 2 + 1, and at least 3.
        sigma: standard deviation of the window in pixels.
        data_range: L, the range of the values; 1 for normalized cams and prototypes.

    Returns:
        (N,), in [-1, 1]; larger is closer.

    Raises:
        ValueError: shapes differ or have no spatial dimension, or the window is even or larger than the map.

    Example:
        >>> maps = torch.rand(2, 1, 7, 7)
        >>> ssim(maps, maps)
        tensor([1., 1.])
    """
    if first.shape != second.shape or first.dim() < 3:
        raise ValueError(
            f"ssim: expected two tensors of one shape (N, C, *spatial), got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    shortest = min(first.shape[2:])
    window = _default_window(shortest) if window_size is None else window_size
    if window % 2 == 0 or not 1 <= window <= shortest:
        raise ValueError(
            f"window_size: expected an odd number from 1 to the map's shortest side {shortest}, got {window}; "
            f"pass None to have it chosen"
        )
    with no_autocast(first):
        first, second = full_precision(first), full_precision(second)
        channels = first.shape[1]
        stacked = torch.cat([first, second, first * first, second * second, first * second], dim=1)
        blurred = blur(stacked, gaussian_weights(window, sigma)).unflatten(1, (5, channels))
        mean_1, mean_2, square_1, square_2, product = blurred.unbind(1)
        variance_1 = (square_1 - mean_1 * mean_1).clamp(min=0)
        variance_2 = (square_2 - mean_2 * mean_2).clamp(min=0)
        covariance = product - mean_1 * mean_2
        c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
        luminance = (2 * mean_1 * mean_2 + c1) / (mean_1 * mean_1 + mean_2 * mean_2 + c1)
        structure = (2 * covariance + c2) / (variance_1 + variance_2 + c2)
        values: Tensor = (luminance * structure).flatten(1).mean(1)
        return values


@DISTANCES.register("ssim")
def ssim_distance(first: Tensor, second: Tensor) -> Tensor:
    """Return 1 − SSIM of each pair, with the default window of :func:`~batchcam_captum.functional.ssim`.

    Args:
        first: (N, C, *spatial), in [0, 1].
        second: of the same shape.

    Returns:
        (N,), in [0, 2]; 0 where the maps are equal.

    Raises:
        ValueError: the shapes differ or have no spatial dimension.
    """
    return 1 - ssim(first, second)


def cosine_similarity(first: Tensor, second: Tensor) -> Tensor:
    r"""Return the cosine of the angle between the maps of each pair.

    .. math:: \frac{a \cdot b}{\|a\|\, \|b\|}

    Each map is first divided by its largest absolute value, so that neither the result nor its gradient needs an epsilon: every
    norm is at least 1.

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
    """Maps divided by their largest absolute value, on which no angle depends."""

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
    """Return 1 − cosine of each pair.

    Args:
        first: (N, …).
        second: of the same shape.

    Returns:
        (N,), in [0, 2]; 1 where a map is all zero.
    """
    return 1 - cosine_similarity(first, second)
