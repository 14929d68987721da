"""Distances between two batches of maps: (N, …), (N, …) -> (N,), at least 0, zero when equal."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .precision import full_precision
from .registry import Registry
from .ssim import ssim

Distance = Callable[[Tensor, Tensor], Tensor]

#: Distances by name. Your own: ``@DISTANCES.register("name")`` on a function (N, …), (N, …) -> (N,).
DISTANCES: Registry[Distance] = Registry("distance")


def get_distance(distance: str | Distance) -> Distance:
    """Return the distance of this name, or the callable that was given.

    Raises:
        ValueError: an unknown name.
    """
    return distance if callable(distance) else DISTANCES[distance]


@DISTANCES.register("l1")
def l1_distance(first: Tensor, second: Tensor) -> Tensor:
    """Mean absolute difference over a pair's elements: (N, …), (N, …) -> (N,)."""
    return (full_precision(first) - full_precision(second)).abs().flatten(1).mean(1)


@DISTANCES.register("l2")
def l2_distance(first: Tensor, second: Tensor) -> Tensor:
    """Mean squared difference over a pair's elements: (N, …), (N, …) -> (N,). No square root: smooth at zero."""
    return (full_precision(first) - full_precision(second)).square().flatten(1).mean(1)


@DISTANCES.register("ssim")
def ssim_distance(first: Tensor, second: Tensor) -> Tensor:
    """1 − SSIM: (N, C, *spatial) twice -> (N,), in [0, 2]; see :func:`~batchcam_captum.functional.ssim`."""
    return 1 - ssim(first, second)


def cosine_similarity(first: Tensor, second: Tensor) -> Tensor:
    """Cosine of the angle between two maps: (N, …), (N, …) -> (N,), in [-1, 1]; larger is closer.

    Each map is divided by its largest absolute value first, so that neither the result nor its gradient needs an epsilon:
    every norm is at least 1. Where a map is all zero the similarity is 0, with a zero gradient.
    """
    return (unit(first) * unit(second)).flatten(1).sum(1)


def unit(maps: Tensor) -> Tensor:
    """Divide each map by its Euclidean norm: (N, …) -> (N, …); an all-zero map stays zero, with a zero gradient."""
    maps = full_precision(maps)
    shape = (-1, *[1] * (maps.dim() - 1))
    largest = (
        maps.detach().abs().flatten(1).amax(1)
    )  # the result does not depend on the scale, so no gradient through it
    zero = (largest < torch.finfo(maps.dtype).tiny).reshape(shape)
    scaled = maps / largest.reshape(shape).masked_fill(zero, 1)
    squared = scaled.square().flatten(1).sum(1).reshape(shape)
    return scaled.masked_fill(zero, 0) / squared.masked_fill(zero, 1).sqrt()


@DISTANCES.register("cosine")
def cosine_distance(first: Tensor, second: Tensor) -> Tensor:
    """1 − cosine similarity: (N, …), (N, …) -> (N,), in [0, 2]; 1 where a map is all zero."""
    return 1 - cosine_similarity(first, second)
