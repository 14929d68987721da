"""Structural similarity over any number of spatial dimensions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .precision import full_precision, no_autocast


def _default_window(shortest: int) -> int:
    """11 as in the paper; on a small map an odd number near half of it, so that every pixel is seen in several windows."""
    window = min(11, max(3, shortest // 2 + 1), shortest)
    return window if window % 2 else window - 1


def gaussian_weights(window: int, sigma: float) -> list[float]:
    """Weights of a Gaussian at the places of a window, with a sum of 1."""
    # Plain numbers: torch.compile traces no floating tensor that becomes a list.
    weights = [math.exp(-((position - (window - 1) / 2) ** 2) / (2 * sigma**2)) for position in range(window)]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def blur(maps: Tensor, weights: list[float]) -> Tensor:
    """Weighted mean over every window that lies wholly inside; dimensions 0 and 1 are left alone.

    Sums of shifted slices rather than a convolution: they keep nothing for the backward, know no limit on the number of
    dimensions, and no TF32.
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
    """Structural similarity index of each pair of maps (Wang et al. 2004, eq. 13), 1 where they are equal.

    A Gaussian window, population covariances, C1 = (0.01 L)² and C2 = (0.03 L)², averaged over the windows that lie wholly
    inside the map. Computed in float32 (float64 stays), variances never below zero.

    Args:
        first: (N, C, *spatial), any number of spatial dimensions.
        second: the same shape.
        window_size: odd side of the window in pixels. Default: 11; for a map whose shortest side s is under 20, the largest
            odd number that is at most s // 2 + 1, and at least 3.
        sigma: standard deviation of the window in pixels.
        data_range: L, the span of the values; normalised cams and prototypes have 1.

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
