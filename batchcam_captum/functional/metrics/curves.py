"""Orders of pixels, and areas under the curves that follow from removing pixels in such an order."""

from __future__ import annotations

import torch
from torch import Tensor

from ..common import full_precision
from ..distance import cosine_similarity


@torch.no_grad()
def pixel_ranks(maps: Tensor, *, seed: int = 0) -> Tensor:
    """Return the rank of every pixel of a map, from the largest value to the smallest.

    Equal values are ranked in a random order that depends on the seed and the number of pixels alone. A fixed order, such as row
    by row, would be an order that the map does not have, and the ranks would depend on the rest of the batch if each map had an
    order of its own.

    Args:
        maps: (N, ...), without NaN. The sign counts: the most negative pixel comes last.
        seed: of the order of equal values.

    Returns:
        (N, P) integers for the P pixels of a map, 0 for the largest value. An all-zero map gets a random order.

    Example:
        >>> pixel_ranks(torch.tensor([[[0.1, 0.9], [-2.0, 0.5]]]))
        tensor([[2, 0, 3, 1]])
    """
    values = maps.flatten(1)
    # Drawn on the CPU: the same on every device.
    shuffle = torch.randperm(values.shape[1], generator=torch.Generator().manual_seed(seed)).to(values.device)
    order = shuffle[values[:, shuffle].argsort(dim=1, descending=True, stable=True)]
    return order.argsort(dim=1)


def _average_ranks(maps: Tensor) -> Tensor:
    """Return the rank of every pixel, 1 for the smallest: (N, P); equal values share the mean of their ranks."""
    values = full_precision(maps).flatten(1).contiguous()
    ordered = values.sort(dim=1).values
    below, up_to = (torch.searchsorted(ordered, values, right=right) for right in (False, True))
    return (below + up_to + 1).to(values.dtype) / 2


@torch.no_grad()
def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Return Spearman's rank correlation of each pair of maps over their pixels; ties get their average rank.

    Args:
        first: (N, ...), without NaN.
        second: the same shape.

    Returns:
        (N,), in [−1, 1]; larger is closer. 0 where a map is constant, such as an all-zero one.

    Raises:
        ValueError: shapes differ.

    Example:
        >>> first = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
        >>> rank_correlation(first, first.exp()), rank_correlation(first, -first)
        (tensor([1.]), tensor([-1.]))
    """
    if first.shape != second.shape:
        raise ValueError(
            f"second: expected the shape of first, {tuple(first.shape)}, got {tuple(second.shape)}; resize one of them"
        )
    # The mean of 1 ... P has no rounding error, so a constant map becomes exactly zero.
    one, other = (
        ranks - (ranks.shape[1] + 1) / 2 for ranks in (_average_ranks(first), _average_ranks(second))
    )
    return cosine_similarity(one, other)


def area_under_curve(curves: Tensor, positions: Tensor | None = None) -> Tensor:
    """Return the area under each curve over [0, 1], by the trapezoidal rule.

    Args:
        curves: (N, S), values at S >= 2 positions.
        positions: (S,), rising from 0 to 1. Default: equally spaced.

    Returns:
        (N,); a curve that stays at v has the area v.

    Raises:
        ValueError: fewer than two positions, or shapes that do not fit.

    Example:
        >>> area_under_curve(torch.tensor([[0.0, 1.0, 1.0]]))
        tensor([0.7500])
    """
    if curves.dim() != 2 or curves.shape[1] < 2:
        raise ValueError(
            f"curves: expected (N, S) with at least 2 positions, got {tuple(curves.shape)}; pass one row per curve"
        )
    curves = full_precision(curves)
    if positions is None:
        return torch.trapezoid(curves, dx=1 / (curves.shape[1] - 1), dim=1)
    if positions.shape != curves.shape[1:]:
        raise ValueError(
            f"positions: expected ({curves.shape[1]},), one for each value of a curve, got {tuple(positions.shape)}"
        )
    return torch.trapezoid(curves, positions.to(curves), dim=1)
