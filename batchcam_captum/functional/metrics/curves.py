"""Orders of pixels, and areas under the curves that come from removing pixels in such an order."""

from __future__ import annotations

import torch
from torch import Tensor

from ..distance import cosine_similarity
from ..precision import full_precision


@torch.no_grad()
def pixel_ranks(maps: Tensor, *, seed: int = 0) -> Tensor:
    """The place of every pixel when a map's pixels are put in order, from the largest value to the smallest.

    Equal values are put in a random order that depends on the seed and the number of pixels alone: in a fixed order, such as by
    rows, a constant region would be gone through from the top down, which is no order that anybody's map has asked for. All maps
    share that order, so that the ranks of a map do not depend on the batch that it is in.

    Args:
        maps: (N, …), without NaN. The sign counts: the most negative pixel comes last.
        seed: of the order of equal values.

    Returns:
        (N, P) integers for the P pixels of a map in their own order, 0 for the largest value. An all-zero map gets a random
        order.

    Example:
        >>> pixel_ranks(torch.tensor([[[0.1, 0.9], [-2.0, 0.5]]]))
        tensor([[2, 0, 3, 1]])
    """
    values = maps.flatten(1)
    pixels = values.shape[1]
    # Drawn on the CPU: the same on every device.
    shuffle = torch.randperm(pixels, generator=torch.Generator().manual_seed(seed)).to(values.device)
    order = shuffle[values[:, shuffle].argsort(dim=1, descending=True, stable=True)]
    places = torch.arange(pixels, device=values.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


@torch.no_grad()
def average_ranks(maps: Tensor) -> Tensor:
    """The rank of every pixel, 1 for the smallest; equal values share the mean of their ranks.

    Args:
        maps: (N, …), without NaN.

    Returns:
        (N, P) for the P pixels of a map, float32 (float64 stays).

    Example:
        >>> average_ranks(torch.tensor([[0.5, 0.0, 0.0, 2.0]]))
        tensor([[3.0000, 1.5000, 1.5000, 4.0000]])
    """
    values = full_precision(maps).flatten(1).contiguous()
    ordered = values.sort(dim=1).values
    below = torch.searchsorted(ordered, values)
    up_to = torch.searchsorted(ordered, values, right=True)
    return (below + up_to + 1).to(values.dtype) / 2


@torch.no_grad()
def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's rank correlation of each pair of maps, over their pixels: the correlation of the ranks, ties averaged.

    Args:
        first: (N, …), without NaN.
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
            f"rank_correlation: expected two tensors of one shape, got {tuple(first.shape)} and {tuple(second.shape)}; "
            f"resize one of them"
        )
    ranks = average_ranks(first), average_ranks(second)
    # The mean of 1 … P; no rounding beyond halves, so a constant map is exactly zero.
    one, other = (each - (each.shape[1] + 1) / 2 for each in ranks)
    return cosine_similarity(one, other)


def area_under_curve(curves: Tensor, positions: Tensor | None = None) -> Tensor:
    """The area under each curve over [0, 1], by the trapezoidal rule.

    Args:
        curves: (N, S), values at S >= 2 positions.
        positions: (S,), rising from 0 to 1. Default: equally spaced.

    Returns:
        (N,): for a curve that stays at v the area is v.

    Raises:
        ValueError: fewer than two positions, or shapes that do not fit.

    Example:
        >>> area_under_curve(torch.tensor([[0.0, 1.0, 1.0]]))
        tensor([0.7500])
    """
    if curves.dim() != 2 or curves.shape[1] < 2:
        raise ValueError(
            f"curves: expected (N, S) with at least 2 positions, got {tuple(curves.shape)}; pass a row a curve"
        )
    curves = full_precision(curves)
    if positions is None:
        return torch.trapezoid(curves, dx=1 / (curves.shape[1] - 1), dim=1)
    if positions.shape != curves.shape[1:]:
        raise ValueError(
            f"positions: expected ({curves.shape[1]},), one a value of a curve, got {tuple(positions.shape)}"
        )
    return torch.trapezoid(curves, positions.to(curves), dim=1)
