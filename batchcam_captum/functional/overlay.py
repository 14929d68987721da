"""Cams over their images in color, as tensors. No plotting library is needed."""

from __future__ import annotations

import torch
from torch import Tensor

from .common import no_autocast
from .maps import normalize, prepare, resize

#: Viridis (Smith and van der Walt 2015) at 0, 1/16, …, 1. Linear interpolation between these differs from it by less than 0.03.
_COLORS = (
    (0.267, 0.005, 0.329),
    (0.282, 0.095, 0.417),
    (0.279, 0.175, 0.483),
    (0.259, 0.252, 0.525),
    (0.230, 0.322, 0.546),
    (0.199, 0.388, 0.555),
    (0.173, 0.449, 0.558),
    (0.149, 0.508, 0.557),
    (0.128, 0.567, 0.551),
    (0.121, 0.626, 0.533),
    (0.158, 0.684, 0.502),
    (0.246, 0.739, 0.452),
    (0.369, 0.789, 0.383),
    (0.516, 0.831, 0.294),
    (0.678, 0.864, 0.190),
    (0.846, 0.887, 0.100),
    (0.993, 0.906, 0.144),
)


def colors(maps: Tensor) -> Tensor:
    """Return maps in color, from dark violet at 0 to yellow at 1.

    Args:
        maps: (N, 1, H, W), in [0, 1]; other values are clamped.

    Returns:
        (N, 3, H, W), in [0, 1].
    """
    table = torch.tensor(_COLORS, dtype=maps.dtype, device=maps.device)
    place = maps[:, 0].clamp(0, 1) * (len(_COLORS) - 1)
    below = place.detach().long().clamp(max=len(_COLORS) - 2)
    mixed = torch.lerp(table[below], table[below + 1], (place - below).unsqueeze(-1))
    return mixed.movedim(-1, 1)


@torch.no_grad()
def overlay(images: Tensor, cams: Tensor, *, opacity: float = 0.7) -> Tensor:
    """Draw cams over their images; the larger a value, the more opaque it is.

    Args:
        images: (N, C, H, W), standardized or not. Each is scaled to [0, 1] by its own minimum and maximum, and shown in color if
            C is 3, in gray otherwise.
        cams: (N, 1, h, w), signed. Values that are not positive leave the image as it is, and so does a dead cam.
        opacity: of the map at its maximum, from 0 to 1.

    Returns:
        (N, 3, H, W) float32 in [0, 1], without a graph.

    Raises:
        ValueError: images and cams that do not fit or are not two-dimensional, or an opacity out of range.
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity: expected a number from 0 to 1, got {opacity}")
    if images.dim() != 4 or cams.dim() != 4 or cams.shape[1] != 1 or len(images) != len(cams):
        raise ValueError(
            f"overlay: expected images (N, C, H, W) and as many cams (N, 1, h, w), got {tuple(images.shape)} and "
            f"{tuple(cams.shape)}"
        )
    with no_autocast(images):
        heat = resize(prepare(cams.float()).maps, images.shape[2:], "linear").clamp(0, 1)
        shares = opacity * heat
        return (1 - shares) * gray_or_color(images) + shares * colors(heat)


def gray_or_color(images: Tensor) -> Tensor:
    """Return images (N, C, H, W) as (N, 3, H, W) float32, each scaled to [0, 1] by its own minimum and maximum."""
    images = images.detach().float()
    single = images if images.shape[1] == 3 else images.mean(1, keepdim=True)
    return normalize(single, "minmax").expand(-1, 3, -1, -1)
