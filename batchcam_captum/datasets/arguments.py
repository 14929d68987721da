"""What the shortcuts have in common: checks of their arguments, draws, and pasting of patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def check_arguments(images: Tensor, labels: Tensor, generator: torch.Generator, *, num_classes: int) -> None:
    """Check what every shortcut is given.

    Args:
        images: (N, 1, H, W), uint8 from 0 to 255, or floating from 0 to 1.
        labels: (N,), integers from 0 to K − 1.
        generator: of the draws; on the CPU, so that they are the same for every device.
        num_classes: the number of classes, K.

    Raises:
        TypeError: a dtype or the generator does not fit.
        ValueError: a shape or a value does not fit.
    """
    if images.dim() != 4 or images.shape[1] != 1:
        raise ValueError(
            f"images: expected grey images of shape (N, 1, H, W), got {tuple(images.shape)}; unsqueeze(1) adds the channel"
        )
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(
            f"images: expected uint8 from 0 to 255 or floating point from 0 to 1, got {images.dtype}; convert them"
        )
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"labels: expected shape ({len(images)},), got {tuple(labels.shape)}; pass one class index an image"
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(f"labels: expected integers, got {labels.dtype}; pass class indices")
    if not isinstance(generator, torch.Generator) or generator.device.type != "cpu":
        got = f"one on {generator.device}" if isinstance(generator, torch.Generator) else repr(generator)
        raise TypeError(
            f"generator: expected a torch.Generator on the CPU, got {got}; pass torch.Generator().manual_seed(0)"
        )
    if not len(images):
        return
    if images.is_floating_point():
        low, high = (float(value) for value in images.aminmax())
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"images: expected values from 0 to 1, got {low:.3g} to {high:.3g}; put the shortcut in before standardising"
            )
    low, high = (int(value) for value in labels.aminmax())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"labels: expected classes from 0 to {num_classes - 1}, got {low} to {high}; this shortcut has a mark for "
            f"{num_classes} classes"
        )


def choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise unless the value is one of the choices.

    Raises:
        ValueError: it is not.
    """
    if value not in choices:
        raise ValueError(f"{name}: expected {' or '.join(map(repr, choices))}, got {value!r}")


def positions(indices: Any, count: int) -> Tensor:
    """The positions that integers or a mask choose.

    Args:
        indices: integers from 0 to N − 1, or N booleans, as a sequence, an array or a tensor.
        count: how many samples there are, N.

    Returns:
        (M,), int64, on the CPU.

    Raises:
        IndexError: a position is outside.
        TypeError: neither integers nor booleans.
        ValueError: a mask of another length, or another shape.
    """
    expected = f"expected integers from 0 to {count - 1} or {count} booleans"
    try:
        given = torch.as_tensor(indices).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"indices: {expected}, got {type(indices).__name__} ({error}); pass a list or a tensor"
        ) from error
    if given.dim() != 1:
        raise ValueError(
            f"indices: {expected} in one dimension, got shape {tuple(given.shape)}; flatten them"
        )
    if not len(given) and given.dtype != torch.bool:
        return given.long()  # an empty list becomes a tensor of floats
    if given.dtype == torch.bool:
        if len(given) != count:
            raise ValueError(
                f"indices: {expected}, got {len(given)} booleans; make the mask of the labels of this data set"
            )
        return given.nonzero().flatten()
    if given.dtype == torch.uint8:
        raise TypeError(
            f"indices: {expected}, got torch.uint8, which may mean either; pass a mask with .bool(), positions with .long()"
        )
    if given.is_floating_point() or given.is_complex():
        raise TypeError(f"indices: {expected}, got {given.dtype}; pass positions with .long(), or a mask")
    given = given.long()
    outside = given[(given < 0) | (given >= count)]
    if len(outside):
        raise IndexError(f"indices: expected positions from 0 to {count - 1}, got {int(outside[0])}")
    return given


def share_of(name: str, value: float, low: float = 0.0) -> None:
    """Raise unless the value is a number from ``low`` to 1.

    Raises:
        ValueError: it is not.
    """
    if not low <= value <= 1:
        raise ValueError(f"{name}: expected a number from {low:g} to 1, got {value}")


def grey(value: Tensor, like: Tensor) -> Tensor:
    """Shades from 0 to 255 in the dtype, and on the scale and the device, of the images."""
    value = value.to(like.device)
    return value.to(like.dtype) if like.dtype == torch.uint8 else value.to(like.dtype) / 255


def another_class(labels: Tensor, num_classes: int, generator: torch.Generator) -> Tensor:
    """For each label a class drawn uniformly from the K − 1 others: (N,) -> (N,), on the CPU."""
    steps = torch.randint(1, num_classes, labels.shape, generator=generator)
    return (labels.cpu() + steps) % num_classes


def corners(
    count: int, image: Sequence[int], patch: Sequence[int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Top and left of a patch in a corner, each of the four equally likely: twice (N,)."""
    far = torch.tensor([side - size for side, size in zip(image, patch, strict=True)])
    ends = torch.randint(2, (count, 2), generator=generator) * far
    return ends[:, 0], ends[:, 1]


def window(top: Tensor, left: Tensor, patch: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of one window an image, to read or write ``images[samples, 0, rows, columns]``.

    Args:
        top: (N,), first row.
        left: (N,), first column.
        patch: height and width of the window.
        like: (N, 1, H, W), the images.

    Returns:
        samples (N, 1, 1), rows (N, h, 1) and columns (N, 1, w), which broadcast to (N, h, w).

    Raises:
        ValueError: the window is larger than the images.
    """
    height, width = patch
    if height > like.shape[2] or width > like.shape[3]:
        raise ValueError(
            f"images: expected at least {height} by {width} pixels for the shortcut, got {like.shape[2]} by "
            f"{like.shape[3]}; use larger images"
        )
    samples = torch.arange(len(like), device=like.device)[:, None, None]
    rows = top.to(like.device)[:, None, None] + torch.arange(height, device=like.device)[:, None]
    columns = left.to(like.device)[:, None, None] + torch.arange(width, device=like.device)
    return samples, rows, columns
