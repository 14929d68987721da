"""A colour that gives the class away, on the object or behind it."""

from __future__ import annotations

import colorsys
from typing import Literal, get_args

import torch
from torch import Tensor

from .arguments import another_class, check_arguments, choice, share_of

ColorVariant = Literal["foreground", "background"]
ColorTest = Literal["reversed", "random"]


def class_colors(num_classes: int = 10) -> Tensor:
    """One colour a class, from red through yellow, green and blue to purple.

    Equal steps of hue, saturation and lightness (HSL) from red, (0, 1, 0.5), to purple, (5/6, 1, 0.251). For ten classes
    these are the colours of CDEP's ColorMNIST, which takes them from the package ``colour``.

    Args:
        num_classes: the number of classes, K, at least 2.

    Returns:
        (K, 3), red, green and blue from 0 to 1.
    """
    steps = [index / (num_classes - 1) for index in range(num_classes)]
    purple = 128 / 255 / 2  # half of the greatest channel of #800080
    return torch.tensor(
        [colorsys.hls_to_rgb(step * 5 / 6, 0.5 + step * (purple - 0.5), 1.0) for step in steps]
    )


def color(
    images: Tensor,
    labels: Tensor,
    *,
    variant: ColorVariant = "foreground",
    train: bool,
    generator: torch.Generator,
    correlation: float = 1.0,
    spread: float = 0.0,
    test: ColorTest = "reversed",
    num_classes: int = 10,
) -> tuple[Tensor, Tensor]:
    """Colour each image by its class.

    ``"foreground"`` multiplies the image by the colour, so the object itself has it; ``"background"`` blends between the
    colour where the image is black and white where it is white. **With the foreground the shortcut lies on the object's own
    pixels**: where a map points then says nothing about whether the model uses colour or shape, and a loss that pushes maps
    off the mask pushes them off the object. Only the accuracy in the test set tells there; with the background the mask tells
    as well.

    Published variants, by options:

    - CDEP (Rieger et al. 2020; ``code/ColorMNIST/00_make_data.py`` of ``laura-rieger/deep-explanation-penalization``, which this
      follows): the defaults. Foreground, the class's colour in training, the colour of class 9 − y in the test set, these ten
      colours.
    - Kim et al. 2019 ("Learning not to learn") and Li and Vasconcelos 2019 ("REPAIR"): alike with ``spread`` (training colours
      scatter about the class's) and ``test="random"``. Their ten mean colours and their scatter differ from these.
    - Arjovsky et al. 2019 ("Invariant risk minimization") is another task, of two classes, two colours and noisy labels; it
      is not offered.

    Args:
        images: (N, 1, H, W), uint8 or floating from 0 to 1. They are not changed.
        labels: (N,), integers from 0 to K − 1.
        variant: ``"foreground"`` or ``"background"``.
        train: colours as in the training set, or as in the test set.
        generator: of the draws, on the CPU.
        correlation: in training, the share of images with their own class's colour, from 0 to 1; the others have one of another
            class, drawn uniformly.
        spread: standard deviation of normal noise on the channels of an image's colour, in both sets; cut off at 0 and 1.
        test: in the test set, ``"reversed"``: the colour of class K − 1 − y; ``"random"``: of a class drawn uniformly.
        num_classes: the number of classes, K, at least 2.

    Returns:
        Images (N, 3, H, W) of the same dtype, and masks (N, 1, H, W), bool: the coloured pixels. Foreground: those above 0;
        background: those at 0, so that an object's edge, which blends, counts as object.

    Raises:
        TypeError: a dtype or the generator does not fit.
        ValueError: a shape, a value or a choice does not fit.
    """
    choice("variant", variant, get_args(ColorVariant))
    choice("test", test, get_args(ColorTest))
    share_of("correlation", correlation)
    if spread < 0:
        raise ValueError(f"spread: expected a standard deviation of at least 0, got {spread}")
    if num_classes < 2:
        raise ValueError(f"num_classes: expected at least 2, got {num_classes}")
    check_arguments(images, labels, generator, num_classes=num_classes)
    own = labels.cpu().long()
    if train:
        others = another_class(own, num_classes, generator)
        shown = torch.where(torch.rand(own.shape, generator=generator) < correlation, own, others)
    elif test == "reversed":
        shown = num_classes - 1 - own
    else:
        shown = torch.randint(num_classes, own.shape, generator=generator)
    colors = class_colors(num_classes)[shown]
    if spread:
        colors = (colors + spread * torch.randn(colors.shape, generator=generator)).clamp(0, 1)
    integers = images.dtype == torch.uint8
    brightness = images.float() / 255 if integers else images
    colors = colors.to(brightness)[:, :, None, None]
    if variant == "foreground":
        colored = brightness * colors
        masks = images > 0
    else:
        colored = brightness + (1 - brightness) * colors
        masks = images == 0
    return ((colored * 255).round().to(torch.uint8) if integers else colored), masks
