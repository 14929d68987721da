"""Whether cams lie where masks say, per sample.

Cams have the size of a layer, masks that of the images. ``resolution="mask"``, the default, rectifies the cams, divides them by
their maxima and resizes them to the masks (linearly where they grow, by area where they shrink), so that no mask is blurred.
``"map"`` resizes the masks to the cams by area and keeps their peaks.

The shares weight pixels by the mask's values; pointing game, IoU and rank accuracy count pixels above 0.5 as inside. A mask
without such a pixel is no annotation: the value is NaN, and the metric classes leave the sample out. Against the mask of an
object, a dead or all-zero cam gets the worst value. On a shortcut it counts as a flat cam, see :func:`shortcut_share`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_choice, check_integer, check_number
from ..losses.base import MaskResolution
from ..losses.masks import check_masks, fit_masks
from ..maps import normalize, prepare, resize
from .base import cam_metric, finite


class _Located(NamedTuple):
    """Maps and masks at one size, a row per sample."""

    maps: Tensor  #: (N, 1, *size), rectified
    masks: Tensor  #: (N, 1, *size) in [0, 1]
    dead: Tensor  #: (N,) booleans

    @property
    def inside(self) -> Tensor:
        """Pixels inside the mask: (N, 1, *size) booleans."""
        return self.masks > 0.5

    def share(self) -> Tensor:
        """Share of each map inside its mask: (N,), 0 where the cam is dead."""
        maps, masks = self.maps.flatten(1), self.masks.flatten(1)
        return ((masks * maps).sum(1) / maps.sum(1).masked_fill(self.dead, 1)).clamp(0, 1)

    def annotated(self, values: Tensor, *, above: float) -> Tensor:
        """Replace the values (N,) by NaN where no pixel of the mask exceeds ``above``."""
        return values.to(self.maps.dtype).masked_fill(~(self.masks.flatten(1) > above).any(1), math.nan)


def _locate(cams: Tensor, masks: Tensor, resolution: MaskResolution) -> _Located:
    check_choice("resolution", resolution, MaskResolution)
    check_masks(masks, cams)
    maps, dead = prepare(finite(cams))
    masks = masks.to(maps.dtype)
    if not bool(((masks >= 0) & (masks <= 1)).all()):
        raise ValueError(
            "masks: expected numbers from 0 to 1, got others or NaN; divide masks of bytes by 255"
        )
    if resolution == "mask":
        maps = resize(maps, masks.shape[2:])
        # Where one dimension grows and another shrinks, linear interpolation may skip every positive pixel.
        dead = dead | ~(maps.flatten(1) > 0).any(1)
    return _Located(maps, fit_masks(masks, maps), dead)


@cam_metric
def energy_in_mask(cams: Tensor, masks: Tensor, *, resolution: MaskResolution = "mask") -> Tensor:
    r"""Return the share of the positive evidence inside the mask (energy-based pointing game).

    .. math:: \frac{\sum m\, a}{\sum a}, \qquad a = \mathrm{relu}(C)

    (Wang et al. 2020, "Score-CAM", section 4.3; the relevance mass accuracy of Arras et al. 2022.)

    Args:
        cams: (N, 1, *spatial), signed.
        masks: m, (N, 1, *spatial) in [0, 1] or booleans, where the evidence should be.
        resolution: ``"mask"`` resizes the cams to the masks, ``"map"`` the masks to the cams.

    Returns:
        (N,), in [0, 1]; larger is better, a flat map gets the mask's share of the pixels. A dead or all-zero cam gets 0. NaN for
        an all-zero mask.

    Raises:
        ValueError: a shape, a value or an option that does not fit, or a cam that is not finite.
        TypeError: cams or masks of a wrong kind.
    """
    located = _locate(cams, masks, resolution)
    return located.annotated(located.share(), above=0)


def wrong_reason(cams: Tensor, masks: Tensor, *, resolution: MaskResolution = "mask") -> Tensor:
    r"""Return the share of the positive evidence outside the mask, 1 − :func:`energy_in_mask`.

    Args:
        cams: (N, 1, *spatial), signed.
        masks: (N, 1, *spatial) in [0, 1] or booleans, where the evidence *should* be; for the mask of a shortcut use
            :func:`shortcut_share`.
        resolution: ``"mask"`` resizes the cams to the masks, ``"map"`` the masks to the cams.

    Returns:
        (N,), in [0, 1]; smaller is better. A dead or all-zero cam gets 1, the worst value, as it has no evidence inside. NaN for
        an all-zero mask.

    Raises:
        ValueError: a shape, a value or an option that does not fit, or a cam that is not finite.
        TypeError: cams or masks of a wrong kind.
    """
    return 1 - energy_in_mask(cams, masks, resolution=resolution)


class ShortcutShare(NamedTuple):
    """How much of each cam lies on a shortcut; the result of :func:`shortcut_share`."""

    share: Tensor  #: (N,), of the positive evidence; smaller is better
    area: Tensor  #: (N,), of the pixels: the share that a flat map has

    @property
    def lift(self) -> Tensor:
        """(N,), share ÷ area: 1 is chance, smaller is better."""
        return self.share / self.area


@cam_metric
def shortcut_share(cams: Tensor, shortcuts: Tensor, *, resolution: MaskResolution = "mask") -> ShortcutShare:
    """Return the share of the positive evidence on a shortcut, and the share of the pixels that the shortcut covers.

    Args:
        cams: (N, 1, *spatial), signed.
        shortcuts: (N, 1, *spatial) in [0, 1] or booleans, where the evidence should *not* be.
        resolution: ``"mask"`` resizes the cams to the masks, ``"map"`` the masks to the cams.

    Returns:
        Both (N,), in [0, 1]. A dead or all-zero cam counts as a flat one, whose share is the area: it shows neither that the
        model uses the shortcut nor that it does not. That is less than a cam on the shortcut gets, so a model with dead cams
        looks better: report the dead fraction as well. NaN for a sample without a shortcut.

    Raises:
        ValueError: a shape, a value or an option that does not fit, or a cam that is not finite.
        TypeError: cams or shortcuts of a wrong kind.
    """
    located = _locate(cams, shortcuts, resolution)
    area = located.masks.flatten(1).mean(1)
    share = torch.where(located.dead, area, located.share())
    return ShortcutShare(located.annotated(share, above=0), located.annotated(area, above=0))


@cam_metric
def pointing_game(
    cams: Tensor, masks: Tensor, *, tolerance: int = 0, resolution: MaskResolution = "mask"
) -> Tensor:
    """Return whether the maximum of each cam lies in the mask.

    (Zhang et al. 2018, "Top-down Neural Attention by Excitation Backprop", section 4.2.)

    Args:
        cams: (N, 1, *spatial), signed.
        masks: (N, 1, *spatial) in [0, 1] or booleans; pixels above 0.5 are inside.
        tolerance: maxima up to this Euclidean distance from the mask count as inside, in pixels of the compared size. The
            authors use 15 on photographs.
        resolution: ``"mask"`` resizes the cams to the masks, ``"map"`` the masks to the cams.

    Returns:
        (N,), in [0, 1]; larger is better. 1 for a hit, 0 for a miss. Where several pixels share the maximum, the share of them
        that hit, so a flat map gets the value of chance. A dead or all-zero cam gets 0. NaN for an empty mask.

    Raises:
        ValueError: a shape, a value or an option that does not fit, or a cam that is not finite.
        TypeError: cams, masks or the tolerance of a wrong kind.
    """
    check_integer("tolerance", tolerance, 0)
    located = _locate(cams, masks, resolution)
    hits = _grow(located.inside, tolerance**2) if tolerance else located.inside
    maps = located.maps.flatten(1)
    highest = maps == maps.amax(1, keepdim=True)
    values = (highest & hits.flatten(1)).sum(1) / highest.sum(1)
    return located.annotated(values.masked_fill(located.dead, 0), above=0.5)


def _grow(inside: Tensor, reach: int, dim: int = 2) -> Tensor:
    """Return all pixels whose squared distance to one inside is at most ``reach``, over the dimensions from ``dim`` on."""
    radius = math.isqrt(reach)
    if dim == inside.dim() - 1:
        rows = inside.flatten(0, -2).unsqueeze(1).float()
        return (F.max_pool1d(rows, 2 * radius + 1, 1, radius) > 0).reshape(inside.shape)
    grown = _grow(inside, reach, dim + 1)
    size = inside.shape[dim]
    for shift in range(1, min(radius, size - 1) + 1):
        narrower = _grow(inside, reach - shift**2, dim + 1)
        grown.narrow(dim, shift, size - shift).logical_or_(narrower.narrow(dim, 0, size - shift))
        grown.narrow(dim, 0, size - shift).logical_or_(narrower.narrow(dim, shift, size - shift))
    return grown


@cam_metric
def mask_iou(
    cams: Tensor, masks: Tensor, *, threshold: float = 0.5, resolution: MaskResolution = "mask"
) -> Tensor:
    """Return the intersection over union of the mask and the cam's pixels above a threshold.

    The cam is rectified, resized, and mapped to [0, 1] by its own smallest and largest value; pixels *above* the threshold are
    compared with the mask.

    Args:
        cams: (N, 1, *spatial), signed.
        masks: (N, 1, *spatial) in [0, 1] or booleans; pixels above 0.5 are inside.
        threshold: in [0, 1).
        resolution: ``"mask"`` resizes the cams to the masks, ``"map"`` the masks to the cams.

    Returns:
        (N,), in [0, 1]; larger is better. A dead, all-zero or flat cam gets 0. NaN for an empty mask.

    Raises:
        ValueError: a shape, a value or an option that does not fit, or a cam that is not finite.
        TypeError: cams, masks or the threshold of a wrong kind.
    """
    check_number("threshold", threshold, zero=True, below=1)
    located = _locate(cams, masks, resolution)
    above = normalize(located.maps, "minmax") > threshold
    common, either = ((part.flatten(1).sum(1)) for part in (above & located.inside, above | located.inside))
    return located.annotated(common / either.clamp(min=1), above=0.5)


@cam_metric
def rank_accuracy(cams: Tensor, masks: Tensor, *, resolution: MaskResolution = "mask") -> Tensor:
    """Return the share of the |mask| highest pixels of the rectified cam that lie in the mask (relevance rank accuracy).

    (Arras et al. 2022, "CLEVR-XAI", eq. 2.)

    Args:
        cams: (N, 1, *spatial), signed.
        masks: (N, 1, *spatial) in [0, 1] or booleans; pixels above 0.5 are inside.
        resolution: ``"mask"`` resizes the cams to the masks, ``"map"`` the masks to the cams.

    Returns:
        (N,), in [0, 1]; larger is better. Pixels that tie for the last ranks, zeros included, count in part: the value is the
        mean over all their orders, and a flat map gets the value of chance. A dead or all-zero cam gets 0. NaN for an empty mask.

    Raises:
        ValueError: a shape, a value or an option that does not fit, or a cam that is not finite.
        TypeError: cams or masks of a wrong kind.
    """
    located = _locate(cams, masks, resolution)
    maps, inside = located.maps.flatten(1), located.inside.flatten(1)
    places = inside.sum(1, keepdim=True)
    last = maps.sort(dim=1, descending=True).values.gather(1, (places - 1).clamp(min=0))
    above, tied = maps > last, maps == last
    shared = (places - above.sum(1, keepdim=True)) / tied.sum(1, keepdim=True).clamp(min=1)
    hits = (above & inside).sum(1, keepdim=True) + shared * (tied & inside).sum(1, keepdim=True)
    values = (hits / places.clamp(min=1)).squeeze(1)
    return located.annotated(values.masked_fill(located.dead, 0), above=0.5)
