"""Noisy linear imputation: removed pixels are replaced with what their neighbours suggest, in whole batches on any device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...functional import full_precision

# Relative to the first residual; the noise that is added is four orders larger.
_TOLERANCE = 1e-6
# Looking at the residual makes a GPU wait.
_ITERATIONS_UNSEEN = 16


def linear_imputation(images: Tensor, removed: Tensor) -> Tensor:
    """Replace removed pixels by the weighted mean of their neighbours, be those known or replaced themselves.

    Rong et al. 2022, "A Consistent and Efficient Evaluation Strategy for Attribution Methods": weights of 1/6
    for the four nearest pixels and 1/12 for the diagonal ones; at the edges the weights that are left are scaled up. That is a
    sparse linear system for every channel. Its matrix is symmetric and positive definite as long as a pixel is known, so
    conjugate gradients solve the systems of a whole batch at once, without leaving the device.

    Args:
        images: (N, C, H, W).
        removed: (N, 1, H, W) booleans; at least one pixel of each image is not removed.

    Returns:
        (N, C, H, W), float32 (float64 stays); known pixels are those of ``images``.
    """
    images = full_precision(images)
    if not images.numel():
        return images
    missing = removed.to(images.dtype)
    known = images * (1 - missing)
    # The weights that are left at each place: all of them but at the edges.
    degree = _neighbours(torch.ones_like(images[:1, :1]))
    # Of the mean a system of this kind has nothing to change.
    mean = known.sum((2, 3), keepdim=True) / (1 - missing).sum((2, 3), keepdim=True)
    filled = missing * mean

    def applied(values: Tensor) -> Tensor:
        return missing * (degree * values - _neighbours(values))

    residual = missing * _neighbours(known) - applied(filled)
    direction = residual
    energy = _dot(residual, residual)
    enough = (_TOLERANCE**2 * energy).clamp(min=torch.finfo(images.dtype).tiny)
    for iteration in range(20 * sum(images.shape[2:])):
        if iteration % _ITERATIONS_UNSEEN == 0 and not bool((energy > enough).any()):
            break
        # A system that is done must not go on: its numbers are rounding errors of each other.
        active = energy > enough
        image_of = applied(direction)
        length = torch.where(active, energy / _dot(direction, image_of), 0)
        filled = filled + length * direction
        residual = residual - length * image_of
        next_energy = torch.where(active, _dot(residual, residual), energy)
        direction = residual + torch.where(active, next_energy / energy, 0) * direction
        energy = next_energy
    return torch.where(removed, filled, images)


def _neighbours(values: Tensor) -> Tensor:
    """Weighted sum of each pixel's neighbours and itself; nothing beyond the edges.

    The weights are (1, 2, 1) ⊗ (1, 2, 1) / 12: those of the paper, and 1/3 for the pixel itself, which cancels, as it counts in
    the degree, too. Sums of shifted slices rather than a convolution, which would be rounded to TF32 on a GPU.
    """
    padded = F.pad(values, (1, 1, 1, 1))
    rows = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    return (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 12


def _dot(first: Tensor, second: Tensor) -> Tensor:
    """One number a system: (N, C, H, W) twice -> (N, C, 1, 1)."""
    return (first * second).sum((2, 3), keepdim=True)
