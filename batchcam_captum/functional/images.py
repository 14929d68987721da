"""Images as maps: standardization undone, one channel, min–max to [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .common import full_precision
from .maps import normalize

ToChannel = Callable[[Tensor], Tensor]
PerChannel = float | Sequence[float] | None


def per_channel(name: str, value: Any) -> float | tuple[float, ...] | None:
    """Convert a mean or a standard deviation, None or numbers of any kind, to None, a float or a tuple of floats.

    Raises:
        ValueError: anything else, or numbers that are not finite.
    """
    if value is None:
        return None
    try:
        plain = value.tolist() if hasattr(value, "tolist") else value
        numbers = plain if isinstance(plain, int | float) else tuple(map(float, plain))
        if isinstance(plain, str) or not all(
            map(math.isfinite, numbers if isinstance(numbers, tuple) else (numbers,))
        ):
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError(
            f"{name}: expected a finite number, or one for each channel, got {value!r}"
        ) from None
    return numbers if isinstance(numbers, tuple) else float(numbers)


def undo_standardization(images: Tensor, mean: PerChannel, std: PerChannel) -> Tensor:
    """Return images times ``std`` plus ``mean``, the inverse of ``torchvision.transforms.Normalize(mean, std)``.

    Args:
        images: (N, C, *spatial).
        mean: one number, or one per channel; None is 0.
        std: one number, or one per channel; None is 1.

    Returns:
        (N, C, *spatial), floating; the input itself where both are None.

    Raises:
        ValueError: neither one number nor one per channel.
    """
    for name, value, operation in (("std", std, torch.mul), ("mean", mean, torch.add)):
        numbers = per_channel(name, value)
        if numbers is None:
            continue
        if isinstance(numbers, float):
            images = operation(images, numbers)
            continue
        if len(numbers) not in (1, images.shape[1]):
            raise ValueError(
                f"{name}: expected one number or one for each of {images.shape[1]} channels, got {len(numbers)}"
            )
        # Filled on the device: a copy from the host would make the host wait.
        channels = torch.stack([images.new_full((), number) for number in numbers])
        images = operation(images, channels.reshape(1, -1, *[1] * (images.dim() - 2)))
    return images


def to_one_channel(
    images: Tensor,
    *,
    mean: PerChannel = None,
    std: PerChannel = None,
    to_channel: ToChannel | None = None,
) -> Tensor:
    """Reduce images with any number of channels to one channel.

    Args:
        images: (N, C, *spatial). Integer images are not scaled.
        mean: the ``mean`` that the images were standardized with, one number or one per channel; it is undone first.
        std: the ``std`` that the images were standardized with.
        to_channel: (N, C, *spatial) -> (N, 1, *spatial). Default: the mean over the channels.

    Returns:
        (N, 1, *spatial), float32, or float64 if the images are.

    Raises:
        ValueError: images without a spatial dimension, or a ``to_channel`` that returns another shape.
    """
    if images.dim() < 3:
        raise ValueError(
            f"images: expected (N, C, *spatial), got {tuple(images.shape)}; add the missing channel dimension, "
            f"images.unsqueeze(1)"
        )
    images = undo_standardization(full_precision(images), mean, std)
    if to_channel is None:
        return images.mean(1, keepdim=True)
    single = to_channel(images)
    expected = (images.shape[0], 1, *images.shape[2:])
    if tuple(single.shape) != expected:
        raise ValueError(f"to_channel: expected a result of shape {expected}, got {tuple(single.shape)}")
    return full_precision(single)


def image_maps(
    images: Tensor,
    *,
    mean: PerChannel = None,
    std: PerChannel = None,
    to_channel: ToChannel | None = None,
) -> Tensor:
    """Return images as maps in [0, 1]: reduced to one channel, then min–max of each.

    Args:
        images: (N, C, *spatial).
        mean: the ``mean`` that the images were standardized with, one number or one per channel; it is undone first.
        std: the ``std`` that the images were standardized with.
        to_channel: (N, C, *spatial) -> (N, 1, *spatial). Default: the mean over the channels.

    Returns:
        (N, 1, *spatial), from 0 to 1 in each image; a flat image is all zero.

    Raises:
        ValueError: images without a spatial dimension, a ``mean`` or ``std`` of another length, or a ``to_channel`` that returns
            another shape.
    """
    return normalize(to_one_channel(images, mean=mean, std=std, to_channel=to_channel), "minmax")
