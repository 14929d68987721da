"""A faint mark near the border, with letters that give the class away."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from .arguments import another_class, check_arguments, choice, share_of, window
from .decoy import Place

WatermarkTest = Literal["other", "none"]
_MARGIN = 1  # pixels between the mark and the border

#: Letters of three by five pixels, a number of three bits a row.
_LETTERS = (
    (2, 5, 7, 5, 5),  # A
    (6, 5, 6, 5, 6),  # B
    (3, 4, 4, 4, 3),  # C
    (6, 5, 5, 5, 6),  # D
    (7, 4, 6, 4, 7),  # E
    (7, 4, 6, 4, 4),  # F
    (3, 4, 5, 5, 3),  # G
    (5, 5, 7, 5, 5),  # H
    (7, 2, 2, 2, 7),  # I
    (1, 1, 1, 5, 2),  # J
)


def watermark_glyphs(num_classes: int = 10, scale: int = 1) -> Tensor:
    """The marks: the class's number written with A for 0 to J for 9, so that a mark is never a digit itself.

    Args:
        num_classes: the number of classes, K; all marks have as many letters as the last class needs.
        scale: pixels a dot.

    Returns:
        (K, h, w), bool, with h = 5·scale and w = (4·letters − 1)·scale.
    """
    letters = torch.tensor([[[row >> bit & 1 for bit in (2, 1, 0)] for row in letter] for letter in _LETTERS])
    count = len(str(num_classes - 1))
    glyphs = torch.zeros(num_classes, 5, 4 * count - 1, dtype=torch.bool)
    for label in range(num_classes):
        for position, digit in enumerate(str(label).zfill(count)):
            glyphs[label, :, 4 * position : 4 * position + 3] = letters[int(digit)].bool()
    return glyphs.repeat_interleave(scale, 1).repeat_interleave(scale, 2)


def watermark(
    images: Tensor,
    labels: Tensor,
    *,
    train: bool,
    generator: torch.Generator,
    place: Place = "fixed",
    share: float = 1.0,
    opacity: float = 0.7,
    test: WatermarkTest = "other",
    num_classes: int = 10,
) -> tuple[Tensor, Tensor]:
    """Blend a small mark of the class into each image, near its border.

    This project's own data set, after the watermarks and source tags that classifiers were found to read (Lapuschkin et al.
    2019, "Unmasking Clever Hans predictors"); it follows no published recipe. Unlike the decoy's swatch, the mark's shape rather
    than its shade tells the class, and what is behind it stays visible.

    A mark is white and made of letters (:func:`watermark_glyphs`), with one pixel a dot for every 28 pixels of the image's
    shorter side. Its pixels become (1 − opacity)·image + opacity·white.

    Args:
        images: (N, 1, H, W), uint8 or floating from 0 to 1. They are not changed.
        labels: (N,), integers from 0 to K − 1.
        train: marks as in the training set, or as in the test set.
        generator: of the draws, on the CPU.
        place: ``"fixed"``: the bottom right, one pixel from the border; ``"random"``: anywhere along a side drawn for each image,
            one pixel from the border.
        share: of the training images that have a mark, from 0 to 1; in the test set with ``"other"`` as well.
        opacity: of the mark, above 0 and at most 1.
        test: in the test set, ``"other"``: the mark of another class, drawn uniformly; ``"none"``: no marks.
        num_classes: the number of classes, K, at least 2.

    Returns:
        Images of the same shape and dtype, and masks (N, 1, H, W), bool: the box around the mark, all false where there is none.

    Raises:
        TypeError: a dtype or the generator does not fit.
        ValueError: a shape, a value or a choice does not fit.
    """
    choice("place", place, get_args(Place))
    choice("test", test, get_args(WatermarkTest))
    share_of("share", share)
    if not 0 < opacity <= 1:
        raise ValueError(f"opacity: expected a number above 0 and at most 1, got {opacity}")
    if num_classes < 2:
        raise ValueError(f"num_classes: expected at least 2, got {num_classes}")
    check_arguments(images, labels, generator, num_classes=num_classes)
    scale = max(1, min(images.shape[2:]) // 28)
    glyphs = watermark_glyphs(num_classes, scale)
    height, width = glyphs.shape[1:]
    top, left = _places(len(images), images.shape[2:], (height, width), place, generator)
    samples, rows, columns = window(top, left, (height, width), images)
    shown = labels.cpu().long()
    marked = torch.rand(shown.shape, generator=generator) < share
    if not train:
        shown = another_class(shown, num_classes, generator)
        if test == "none":
            marked = torch.zeros_like(marked)
    marked = marked.to(images.device)[:, None, None]
    inked = glyphs[shown].to(images.device) & marked
    images = images.clone()
    masks = torch.zeros_like(images, dtype=torch.bool)
    behind = images[samples, 0, rows, columns]
    if images.dtype == torch.uint8:
        over = ((1 - opacity) * behind.float() + opacity * 255).round().to(torch.uint8)
    else:
        over = (1 - opacity) * behind + opacity
    images[samples, 0, rows, columns] = torch.where(inked, over, behind)
    masks[samples, 0, rows, columns] = marked.expand_as(inked)
    return images, masks


def _places(
    count: int, image: torch.Size, patch: tuple[int, int], place: Place, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Top and left of each mark, twice (N,)."""
    last = torch.tensor([side - size - _MARGIN for side, size in zip(image, patch, strict=True)])
    if int(last.min()) < _MARGIN:
        raise ValueError(
            f"images: expected at least {patch[0] + 2 * _MARGIN} by {patch[1] + 2 * _MARGIN} pixels for the mark, got "
            f"{image[0]} by {image[1]}; use larger images"
        )
    if place == "fixed":
        ends = last.expand(count, 2)
    else:
        # Anywhere inside, then one of the two coordinates is moved to one of its ends.
        inside = _MARGIN + (torch.rand(count, 2, generator=generator) * (last - _MARGIN + 1)).long()
        axis = torch.randint(2, (count, 1), generator=generator)
        end = torch.where(torch.randint(2, (count, 1), generator=generator).bool(), last, _MARGIN)
        ends = torch.where(torch.arange(2) == axis, end, inside)
    return ends[:, 0], ends[:, 1]
