"""Histograms of the images of each class, one at every pixel, and what can be read from them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: How many numbers are worked on at once: values that are counted, bins that are added up.
_AT_ONCE = 2**22


def empty_histograms(
    num_classes: int, bins: int, size: Sequence[int], most_bytes: int, device: torch.device
) -> Tensor:
    """Histograms without an image: (K, bins, *size) int32.

    Args:
        num_classes: the number of classes, K.
        bins: how many bins there are, B.
        size: of the images.
        most_bytes: that they may take.
        device: where they lie.

    Raises:
        ValueError: they would take more.
    """
    shape = torch.Size((num_classes, bins, *size))
    needed = 4 * shape.numel()
    if needed > most_bytes:
        raise ValueError(
            f"bins: expected histograms of at most {most_bytes / 2**30:.3g} GiB, got {needed / 2**30:.3g} GiB for {num_classes} "
            f"classes, {bins} bins and images {tuple(size)}; pass a smaller size=, fewer bins=, or set most_bytes"
        )
    return torch.zeros(shape, dtype=torch.int32, device=device)


def count_values(histograms: Tensor, images: Tensor, labels: Tensor) -> None:
    """Add images to the histograms, in place. Integers, so that neither the batches nor their order change the result.

    Args:
        histograms: (K, B, *spatial) int32, contiguous.
        images: (N, 1, *spatial), floating; values out of [0, 1] count at its ends.
        labels: (N,) class indices.
    """
    flat, pixels, bins = histograms.view(-1), images[0].numel(), histograms.shape[1]
    first = torch.arange(pixels, device=flat.device)
    one = torch.ones((), dtype=flat.dtype, device=flat.device)
    at_once = max(1, _AT_ONCE // pixels)
    for some, classes in zip(images.split(at_once), labels.split(at_once), strict=True):
        nearest = (some.flatten(1).clamp(0, 1) * (bins - 1)).round().to(flat.device, torch.long)
        places = (nearest + classes.to(flat.device).unsqueeze(1) * bins) * pixels + first
        flat.scatter_add_(0, places.flatten(), one.expand(places.numel()))


def number_of_images(histograms: Tensor) -> Tensor:
    """How many images of each class there are, each of which counts once at every pixel: (K, B, *spatial) -> (K,) int64."""
    while histograms.dim() > 2:
        histograms = histograms[..., 0]
    return histograms.sum(1)


def quantiles(histograms: Tensor, classes: Tensor, quantile: float) -> Tensor:
    """The values at a quantile, between two of them linearly interpolated: Hyndman and Fan's definition 7, numpy's default.

    Args:
        histograms: (K, B, *spatial).
        classes: (M,) indices of classes, all of which have images.
        quantile: in [0, 1].

    Returns:
        (M, 1, *spatial) float32 in [0, 1]. Waits for the device.
    """
    if not len(classes):
        return torch.zeros(0, 1, *histograms.shape[2:], device=histograms.device)
    classes = classes.to(histograms.device)
    # Positions in the sorted values, in float64 on the host: not every accelerator has it.
    positions = (number_of_images(histograms)[classes].cpu().double() - 1) * quantile
    shape = (-1, *[1] * (histograms.dim() - 1))
    low, high, share = (
        each.to(histograms.device).reshape(shape)
        for each in (positions.floor().int(), positions.ceil().int(), positions.frac().float())
    )
    at_once = max(1, _AT_ONCE // histograms[0].numel())
    values = []
    for chosen, lower, upper, between in zip(
        *(each.split(at_once) for each in (classes, low, high, share)), strict=True
    ):
        up_to = histograms[chosen].cumsum(1, dtype=torch.int32)
        # The value at a position is in the first bin up to which there are more values than come before the position.
        below, above = ((up_to <= rank).sum(1, keepdim=True).float() for rank in (lower, upper))
        values.append(torch.lerp(below, above, between) / (histograms.shape[1] - 1))
    return torch.cat(values)
