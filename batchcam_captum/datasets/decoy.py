"""A grey swatch in a corner whose shade gives the class away: the decoy of RRR, and that of CDEP."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from .arguments import check_arguments, choice, corners, grey, window

DecoyVariant = Literal["rrr", "cdep"]
Place = Literal["random", "fixed"]
#: Side of the swatch in pixels.
DECOY_SIDES: dict[str, int] = {"rrr": 4, "cdep": 5}


def decoy(
    images: Tensor,
    labels: Tensor,
    *,
    variant: DecoyVariant = "rrr",
    train: bool,
    generator: torch.Generator,
    place: Place = "random",
) -> tuple[Tensor, Tensor]:
    """Put a swatch whose shade depends on the class y into a corner of each image.

    ======== ===== ==================== ===================================================
    variant  side  shade in training    shade in the test set
    ======== ===== ==================== ===================================================
    ``rrr``  4     255 − 25·y           255 − 25·z, z drawn uniformly from 0 … 9, y included
    ``cdep`` 5     255 − 25·y           25·y
    ======== ===== ==================== ===================================================

    Both were read off the authors' code (RRR: ``rrr/decoy_mnist.py`` of the repository ``dtak/rrr``, for Ross, Hughes and
    Doshi-Velez 2017, "Right for the Right Reasons"; CDEP: ``code/DecoyMNIST/00_make_data.py`` of
    ``laura-rieger/deep-explanation-penalization``, for Rieger et al. 2020, "Interpretations are Useful"): sides, shades, and
    that the swatch covers a corner drawn anew for each image, each of the four equally likely, in both sets. CDEP's swatch in
    the test set is black for the class 0 and thus not to be seen on MNIST; the mask marks it nevertheless. The sequence of
    random numbers is this project's own, so the images are distributed as the authors' and not equal to them; CDEP's
    standardising to [−1, 1] is left to the caller. ``place="fixed"`` is this project's as well.

    Args:
        images: (N, 1, H, W), uint8 or floating from 0 to 1. They are not changed.
        labels: (N,), integers from 0 to 9.
        variant: ``"rrr"`` or ``"cdep"``.
        train: the shades of the training set, or those of the test set.
        generator: of the draws, on the CPU. One seed draws the same corners for both variants, and with ``train`` and without.
        place: ``"random"`` corner, or ``"fixed"``: always top left.

    Returns:
        The images with swatches, of the same shape and dtype, and the masks of the swatches, (N, 1, H, W), bool.

    Raises:
        TypeError: a dtype or the generator does not fit.
        ValueError: a shape, a value or a choice does not fit.
    """
    choice("variant", variant, get_args(DecoyVariant))
    choice("place", place, get_args(Place))
    check_arguments(images, labels, generator, num_classes=10)
    patch = (DECOY_SIDES[variant],) * 2
    top, left = corners(len(images), images.shape[2:], patch, generator)
    if place == "fixed":
        top, left = torch.zeros_like(top), torch.zeros_like(left)
    where = window(top, left, patch, images)
    samples, rows, columns = where
    digits = labels
    if variant == "rrr" and not train:
        digits = torch.randint(10, labels.shape, generator=generator)
    shades = 25 * digits.long() if variant == "cdep" and not train else 255 - 25 * digits.long()
    images = images.clone()
    masks = torch.zeros_like(images, dtype=torch.bool)
    images[samples, 0, rows, columns] = grey(shades, images)[:, None, None]
    masks[samples, 0, rows, columns] = True
    return images, masks
