"""What a removed pixel is replaced with."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ...functional import full_precision
from ...functional.ssim import blur, gaussian_weights

#: See :func:`filled_images`.
Fill = Literal["zero", "mean", "blur"]

# As in the authors' notebook of RISE, for images of 224 pixels.
_BLUR_RADIUS = 5
_BLUR_SIGMA = 5.0


def check_fill(name: str, fill: object) -> None:
    """Check a fill before anything is computed.

    Raises:
        ValueError: neither a tensor nor one of the known names.
    """
    if not isinstance(fill, Tensor) and fill not in get_args(Fill):
        raise ValueError(f"{name}: expected 'zero', 'mean', 'blur' or a tensor, got {fill!r}")


def gaussian_blur(images: Tensor) -> Tensor:
    """Blur with a Gaussian of σ = 5 pixels, cut to 11 pixels; edges are mirrored.

    Args:
        images: (N, C, *spatial); where a side has fewer than 6 pixels the window is smaller.

    Returns:
        The same shape, float32 (float64 stays).
    """
    images = full_precision(images)
    radius = min(_BLUR_RADIUS, *(side - 1 for side in images.shape[2:]))
    if not radius or not len(images):
        return images
    padded = F.pad(images, [radius] * 2 * (images.dim() - 2), mode="reflect")
    return blur(padded, gaussian_weights(2 * radius + 1, _BLUR_SIGMA))


def filled_images(images: Tensor, fill: Fill | Tensor, name: str = "fill") -> Tensor:
    """Images with nothing left of what is to be removed.

    Args:
        images: (N, C, *spatial).
        fill: ``"zero"``, 0 in the units that the model sees: black for raw images, the training set's mean for standardised
            ones; ``"mean"``, each image's own mean, one a channel; ``"blur"``, a Gaussian blur with σ = 5 pixels; or a tensor
            that broadcasts to one image (C, *spatial), such as the value of black after a standardisation, (C, 1, 1).
        name: of the argument, for the error.

    Returns:
        (N, C, *spatial), of the images' type and device.

    Raises:
        ValueError: an unknown name, or a tensor that does not broadcast.
    """
    check_fill(name, fill)
    if isinstance(fill, Tensor):
        try:
            return fill.to(images).expand_as(images)
        except RuntimeError as error:
            raise ValueError(
                f"{name}: expected a tensor that broadcasts to {tuple(images.shape[1:])}, got {tuple(fill.shape)}"
            ) from error
    if fill == "zero":
        return torch.zeros_like(images)
    if fill == "mean":
        return (
            images.flatten(2).mean(2).reshape(*images.shape[:2], *[1] * (images.dim() - 2)).expand_as(images)
        )
    return gaussian_blur(images).to(images.dtype)
