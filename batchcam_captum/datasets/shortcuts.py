"""Shortcuts: a swatch in a corner, a color, a faint mark, each of which gives the class away."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

DecoyVariant = Literal["rrr", "cdep"]
Place = Literal["random", "fixed"]
ColorVariant = Literal["foreground", "background"]
ColorTest = Literal["reversed", "random"]
WatermarkTest = Literal["other", "none"]

#: Side of the decoy's swatch in pixels.
DECOY_SIDES: dict[str, int] = {"rrr": 4, "cdep": 5}
_MARGIN = 1  # pixels between a watermark and the border

#: The letters A to J of 3 × 5 pixels, each row a number of three bits.
_LETTERS = (
    *((2, 5, 7, 5, 5), (6, 5, 6, 5, 6), (3, 4, 4, 4, 3), (6, 5, 5, 5, 6), (7, 4, 6, 4, 7)),
    *((7, 4, 6, 4, 4), (3, 4, 5, 5, 3), (5, 5, 7, 5, 5), (7, 2, 2, 2, 7), (1, 1, 1, 5, 2)),
)


def decoy(
    images: Tensor,
    labels: Tensor,
    *,
    variant: DecoyVariant = "rrr",
    train: bool,
    generator: torch.Generator,
    place: Place = "random",
) -> tuple[Tensor, Tensor]:
    """Put a gray swatch, whose shade depends on the class y, into a corner of each image.

    ======== ===== ==================== =============================================
    variant  side  shade in training    shade in the test set
    ======== ===== ==================== =============================================
    ``rrr``  4     255 − 25·y           255 − 25·z, z drawn uniformly from 0 to 9
    ``cdep`` 5     255 − 25·y           25·y
    ======== ===== ==================== =============================================

    Sides, shades and places follow the authors' code: ``rrr/decoy_mnist.py`` of ``dtak/rrr`` (Ross, Hughes and Doshi-Velez 2017,
    "Right for the Right Reasons") and ``code/DecoyMNIST/00_make_data.py`` of ``laura-rieger/deep-explanation-penalization``
    (Rieger et al. 2020, "Interpretations are Useful"). Each of the four corners is equally likely, in both sets. The swatch of
    ``cdep`` in the test set is black for class 0, and thus invisible on MNIST; the mask marks it nevertheless. The random
    numbers are this package's own, so the images have the authors' distribution, not their pixels; CDEP's normalization to
    [−1, 1] is left to the caller. ``place="fixed"`` is this package's own, too.

    Args:
        images: (N, 1, H, W), uint8, or floating point in [0, 1]. They are not changed.
        labels: (N,), integers from 0 to 9.
        variant: ``"rrr"`` or ``"cdep"``.
        train: the shades of the training set, or those of the test set.
        generator: on the CPU. A seed gives the same corners for both variants and both values of ``train``.
        place: ``"random"`` corner, or ``"fixed"``: top left.

    Returns:
        The images with swatches, of the same shape and dtype, and the masks of the swatches, (N, 1, H, W), bool.

    Raises:
        TypeError: a dtype or the generator does not fit.
        ValueError: a shape, a value or a choice does not fit.
    """
    _check_choice("variant", variant, get_args(DecoyVariant))
    _check_choice("place", place, get_args(Place))
    _check_inputs(images, labels, generator, num_classes=10)
    patch = (DECOY_SIDES[variant],) * 2
    far = torch.tensor([side - size for side, size in zip(images.shape[2:], patch, strict=True)])
    corners = torch.randint(2, (len(images), 2), generator=generator) * far
    window = _window(corners if place == "random" else torch.zeros_like(corners), patch, images)
    digits = labels
    if variant == "rrr" and not train:
        digits = torch.randint(10, labels.shape, generator=generator)
    digits = digits.to(images.device)
    shades = 25 * digits if variant == "cdep" and not train else 255 - 25 * digits
    images, masks = images.clone(), torch.zeros_like(images, dtype=torch.bool)
    scale = 1 if images.dtype == torch.uint8 else 255
    images[window] = (shades / scale).to(images.dtype)[:, None, None]
    masks[window] = True
    return images, masks


def class_colors(num_classes: int = 10) -> Tensor:
    """Return one color per class, from red through yellow, green and blue to purple.

    Hue, saturation and lightness go in equal steps from red, (0, 1, 0.5), to purple, (5/6, 1, 0.251). For ten classes these are
    the colors of CDEP's ColorMNIST, which takes them from the package ``colour``.

    Args:
        num_classes: the number of classes, K, at least 2.

    Returns:
        (K, 3), red, green and blue in [0, 1].
    """
    steps = [index / (num_classes - 1) for index in range(num_classes)]
    purple = 128 / 255 / 2  # half of the largest channel of #800080
    colors = [colorsys.hls_to_rgb(step * 5 / 6, 0.5 + step * (purple - 0.5), 1.0) for step in steps]
    return torch.tensor(colors)


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
    """Color each image by its class.

    ``"foreground"`` multiplies the image by the color, so the object itself has it; ``"background"`` blends between the color,
    where the image is black, and white, where it is white. **With the foreground the shortcut lies on the object's own
    pixels**: where a map points then does not tell whether the model uses color or shape, and a loss that pushes maps off the
    mask pushes them off the object. Only the accuracy in the test set tells; with the background the mask tells as well.

    Published variants, by options:

    - CDEP (Rieger et al. 2020; ``code/ColorMNIST/00_make_data.py`` of ``laura-rieger/deep-explanation-penalization``, which this
      follows): the defaults. Foreground; in training the color of class y, in the test set that of class 9 − y.
    - Kim et al. 2019 ("Learning not to learn") and Li and Vasconcelos 2019 ("REPAIR"): similar with ``spread`` and
      ``test="random"``. Their ten mean colors and their noise differ.
    - Arjovsky et al. 2019 ("Invariant risk minimization") is another task, with two classes and noisy labels; it is not offered.

    Args:
        images: (N, 1, H, W), uint8, or floating point in [0, 1]. They are not changed.
        labels: (N,), integers from 0 to K − 1.
        variant: ``"foreground"`` or ``"background"``.
        train: the colors of the training set, or those of the test set.
        generator: on the CPU.
        correlation: the share of training images with the color of their own class; the others get that of another class, drawn
            uniformly.
        spread: standard deviation of normal noise on the channels of an image's color, in both sets, clipped to [0, 1].
        test: in the test set, ``"reversed"``: the color of class K − 1 − y; ``"random"``: of a class drawn uniformly.
        num_classes: the number of classes, K, at least 2.

    Returns:
        Images (N, 3, H, W) of the same dtype, and masks (N, 1, H, W), bool: the colored pixels. In the foreground those above 0;
        in the background those at 0, so that the blended edge of an object counts as object.

    Raises:
        TypeError: a dtype or the generator does not fit.
        ValueError: a shape, a value or a choice does not fit.
    """
    _check_choice("variant", variant, get_args(ColorVariant))
    _check_choice("test", test, get_args(ColorTest))
    _check_share("correlation", correlation)
    if spread < 0:
        raise ValueError(f"spread: expected a standard deviation of at least 0, got {spread}")
    _check_inputs(images, labels, generator, num_classes=num_classes)
    own = labels.cpu().long()
    if train:
        others = _another_class(own, num_classes, generator)
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
        colored, masks = brightness * colors, images > 0
    else:
        colored, masks = brightness + (1 - brightness) * colors, images == 0
    return ((colored * 255).round().to(torch.uint8) if integers else colored), masks


def watermark_glyphs(num_classes: int = 10, scale: int = 1) -> Tensor:
    """Return the marks: the number of the class in letters, A for 0 to J for 9, so that no mark is itself a digit.

    Args:
        num_classes: the number of classes, K; all marks have as many letters as the last class needs.
        scale: pixels per dot.

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

    This package's own data set, after the watermarks and source tags that classifiers were found to read (Lapuschkin et al.
    2019, "Unmasking Clever Hans predictors"). Unlike a decoy's swatch, the mark's shape rather than its shade gives the class
    away, and what is behind it stays visible. A mark is white and made of letters (:func:`watermark_glyphs`), with one pixel
    per dot for every 28 pixels of the image's shorter side; its pixels become (1 − opacity)·image + opacity·white.

    Args:
        images: (N, 1, H, W), uint8, or floating point in [0, 1]. They are not changed.
        labels: (N,), integers from 0 to K − 1.
        train: the marks of the training set, or those of the test set.
        generator: on the CPU.
        place: ``"fixed"``: bottom right, one pixel from the border; ``"random"``: anywhere along a side drawn for each image, one
            pixel from the border.
        share: the share of images with a mark, in training and in the test set.
        opacity: of the mark, above 0 and at most 1.
        test: in the test set, ``"other"``: the mark of another class, drawn uniformly; ``"none"``: no marks.
        num_classes: the number of classes, K, at least 2.

    Returns:
        Images of the same shape and dtype, and masks (N, 1, H, W), bool: the box around the mark; False everywhere without one.

    Raises:
        TypeError: a dtype or the generator does not fit.
        ValueError: a shape, a value or a choice does not fit.
    """
    _check_choice("place", place, get_args(Place))
    _check_choice("test", test, get_args(WatermarkTest))
    _check_share("share", share)
    if not 0 < opacity <= 1:
        raise ValueError(f"opacity: expected a number above 0 and at most 1, got {opacity}")
    _check_inputs(images, labels, generator, num_classes=num_classes)
    glyphs = watermark_glyphs(num_classes, max(1, min(images.shape[2:]) // 28))
    patch = glyphs.shape[1:]
    window = _window(_watermark_corners(images, patch, place, generator), patch, images)
    shown = labels.cpu().long()
    marked = torch.rand(shown.shape, generator=generator) < share
    if not train:
        shown = _another_class(shown, num_classes, generator)
        marked = marked & (test == "other")
    marked = marked.to(images.device)[:, None, None]
    inked = glyphs[shown].to(images.device) & marked
    images, masks = images.clone(), torch.zeros_like(images, dtype=torch.bool)
    behind = images[window]
    if images.dtype == torch.uint8:
        over = ((1 - opacity) * behind.float() + opacity * 255).round().to(torch.uint8)
    else:
        over = (1 - opacity) * behind + opacity
    images[window] = torch.where(inked, over, behind)
    masks[window] = marked.expand_as(inked)
    return images, masks


def _watermark_corners(
    images: Tensor, patch: Sequence[int], place: Place, generator: torch.Generator
) -> Tensor:
    """Return top and left of each mark, (N, 2)."""
    last = torch.tensor([side - size - _MARGIN for side, size in zip(images.shape[2:], patch, strict=True)])
    if int(last.min()) < _MARGIN:
        raise ValueError(
            f"images: expected at least {patch[0] + 2 * _MARGIN} by {patch[1] + 2 * _MARGIN} pixels for the mark, got "
            f"{images.shape[2]} by {images.shape[3]}; use larger images"
        )
    count = len(images)
    if place == "fixed":
        return last.expand(count, 2)
    # Anywhere inside; then one of the two coordinates moves to one of its ends.
    inside = _MARGIN + (torch.rand(count, 2, generator=generator) * (last - _MARGIN + 1)).long()
    axis = torch.randint(2, (count, 1), generator=generator)
    end = torch.where(torch.randint(2, (count, 1), generator=generator).bool(), last, _MARGIN)
    return torch.where(torch.arange(2) == axis, end, inside)


def _window(corners: Tensor, patch: Sequence[int], images: Tensor) -> tuple[Tensor, ...]:
    """Return the index of one window per image: ``images[window]`` is (N, h, w).

    Args:
        corners: (N, 2), first row and first column.
        patch: h and w.
        images: (N, 1, H, W).

    Raises:
        ValueError: the window is larger than the images.
    """
    if patch[0] > images.shape[2] or patch[1] > images.shape[3]:
        raise ValueError(
            f"images: expected at least {patch[0]} by {patch[1]} pixels for the shortcut, got {images.shape[2]} by "
            f"{images.shape[3]}; use larger images"
        )
    device = images.device
    top, left = corners.to(device)[:, :, None, None].unbind(1)
    samples = torch.arange(len(images), device=device)[:, None, None]
    rows = top + torch.arange(patch[0], device=device)[:, None]
    columns = left + torch.arange(patch[1], device=device)
    return samples, torch.zeros_like(samples), rows, columns


def _another_class(labels: Tensor, num_classes: int, generator: torch.Generator) -> Tensor:
    """Draw for each label one of the K − 1 other classes: (N,) -> (N,)."""
    return (labels + torch.randint(1, num_classes, labels.shape, generator=generator)) % num_classes


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected {' or '.join(map(repr, choices))}, got {value!r}")


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: expected a number from 0 to 1, got {value}")


def _check_inputs(images: Tensor, labels: Tensor, generator: torch.Generator, *, num_classes: int) -> None:
    if num_classes < 2:
        raise ValueError(f"num_classes: expected at least 2, got {num_classes}")
    if images.dim() != 4 or images.shape[1] != 1:
        raise ValueError(
            f"images: expected grayscale images of shape (N, 1, H, W), got {tuple(images.shape)}; unsqueeze(1) adds the channel"
        )
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(
            f"images: expected uint8, or floating point in [0, 1], got {images.dtype}; convert them"
        )
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"labels: expected one class index per image, ({len(images)},), got {tuple(labels.shape)}"
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(f"labels: expected integers, got {labels.dtype}; pass class indices")
    if not isinstance(generator, torch.Generator) or generator.device.type != "cpu":
        raise TypeError(
            f"generator: expected a torch.Generator on the CPU, got {generator!r}; pass torch.Generator().manual_seed(0)"
        )
    if not len(images):
        return
    low, high = (float(value) for value in images.aminmax())
    if images.is_floating_point() and not (low >= 0 and high <= 1):
        raise ValueError(
            f"images: expected values in [0, 1], got {low:.3g} to {high:.3g}; add the shortcut before normalizing"
        )
    first, last = (int(value) for value in labels.aminmax())
    if first < 0 or last >= num_classes:
        raise ValueError(f"labels: expected classes from 0 to {num_classes - 1}, got {first} to {last}")
