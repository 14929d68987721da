"""Whether cams lie where masks say, per sample.

Cams have the size of a layer, masks that of the images. The cams are rectified, divided by their maxima and resized to the masks
(linearly where they grow, by area where they shrink), so that no mask is blurred.

The shares weight pixels by the mask's values; pointing game, IoU and rank accuracy count pixels above 0.5 as inside. A mask
without such a pixel is no annotation: the value is NaN, and the metric classes leave the sample out. Against the mask of an
object, a dead or all-zero cam gets the worst value. On a shortcut it counts as a flat cam, see :func:`shortcut_share`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import check_number
from ..losses.masks import check_masks
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


def _locate(cams: Tensor, masks: Tensor) -> _Located:
    check_masks(masks, cams)
    maps, dead = prepare(finite(cams))
    masks = masks.to(maps.dtype)
    if not bool(((masks >= 0) & (masks <= 1)).all()):
        raise ValueError(
            "masks: expected numbers from 0 to 1, got others or NaN; divide masks of bytes by 255"
        )
    maps = resize(maps, masks.shape[2:])
    # Where one dimension grows and another shrinks, linear interpolation may skip every positive pixel.
    dead = dead | ~(maps.flatten(1) > 0).any(1)
    return _Located(maps, masks, dead)


@cam_metric
def energy_in_mask(cams: Tensor, masks: Tensor) -> Tensor:
    r"""Return the share of the positive evidence inside the mask (energy-based pointing game).

    .. math:: \frac{\sum m\, a}{\sum a}, \qquad a = \mathrm{relu}(C)

    (Wang et al. 2020, "Score-CAM", section 4.3; the relevance mass accuracy of Arras et al. 2022.)

    Args:
        cams: (N, 1, *spatial), signed.
        masks: m, (N, 1, *spatial) in [0, 1] or booleans, where the evidence should be.

    Returns:
        (N,), in [0, 1]; larger is better, a flat map gets the mask's share of the pixels. A dead or all-zero cam gets 0. NaN for
        an all-zero mask.

    Raises:
        ValueError: a shape, a value or an option that does not fit, or a cam that is not finite.
        TypeError: cams or masks of a wrong kind.
    """
    located = _locate(cams, masks)
    return located.annotated(located.share(), above=0)


def wrong_reason(cams: Tensor, masks: Tensor) -> Tensor:
    r"""Return the share of the positive evidence outside the mask, 1 − :func:`energy_in_mask`.

    Args:
        cams: (N, 1, *spatial), signed.
        masks: (N, 1, *spatial) in [0, 1] or booleans, where the evidence *should* be; for the mask of a shortcut use
            :func:`shortcut_share`.

    Returns:
        (N,), in [0, 1]; smaller is better. A dead or all-zero cam gets 1, the worst value, as it has no evidence inside. NaN for
        an all-zero mask.

    Raises:
        ValueError: a shape, a value or an option that does not fit, or a cam that is not finite.
        TypeError: cams or masks of a wrong kind.
    """
    return 1 - energy_in_mask(cams, masks)


class ShortcutShare(NamedTuple):
    """How much of each cam lies on a shortcut; the result of :func:`shortcut_share`."""

    share: Tensor  #: (N,), of the positive evidence; smaller is better
    area: Tensor  #: (N,), of the pixels: the share that a flat map has

    @property
    def lift(self) -> Tensor:
        """(N,), share ÷ area: 1 is chance, smaller is better."""
        return self.share / self.area


@cam_metric
def shortcut_share(cams: Tensor, shortcuts: Tensor) -> ShortcutShare:
    """Return the share of the positive evidence on a shortcut, and the share of the pixels that the shortcut covers.

    Args:
        cams: (N, 1, *spatial), signed.
        shortcuts: (N, 1, *spatial) in [0, 1] or booleans, where the evidence should *not* be.

    Returns:
        Both (N,), in [0, 1]. A dead or all-zero cam counts as a flat one, whose share is the area: it shows neither that the
        model uses the shortcut nor that it does not. That is less than a cam on the shortcut gets, so a model with dead cams
        looks better: report the dead fraction as well. NaN for a sample without a shortcut.

    Raises:
        ValueError: a shape, a value or an option that does not fit, or a cam that is not finite.
        TypeError: cams or shortcuts of a wrong kind.
    """
    located = _locate(cams, shortcuts)
    area = located.masks.flatten(1).mean(1)
    share = torch.where(located.dead, area, located.share())
    return ShortcutShare(located.annotated(share, above=0), located.annotated(area, above=0))


@cam_metric
def pointing_game(cams: Tensor, masks: Tensor) -> Tensor:
    """Return whether the maximum of each cam lies in the mask.

    (Zhang et al. 2018, "Top-down Neural Attention by Excitation Backprop", section 4.2, without their tolerance of 15 pixels.)

    Args:
        cams: (N, 1, *spatial), signed.
        masks: (N, 1, *spatial) in [0, 1] or booleans; pixels above 0.5 are inside.

    Returns:
        (N,), in [0, 1]; larger is better. 1 for a hit, 0 for a miss. Where several pixels share the maximum, the share of them
        that hit, so a flat map gets the value of chance. A dead or all-zero cam gets 0. NaN for an empty mask.

    Raises:
        ValueError: a shape, a value or an option that does not fit, or a cam that is not finite.
        TypeError: cams or masks of a wrong kind.
    """
    located = _locate(cams, masks)
    maps = located.maps.flatten(1)
    highest = maps == maps.amax(1, keepdim=True)
    values = (highest & located.inside.flatten(1)).sum(1) / highest.sum(1)
    return located.annotated(values.masked_fill(located.dead, 0), above=0.5)


@cam_metric
def mask_iou(cams: Tensor, masks: Tensor, *, threshold: float = 0.5) -> Tensor:
    """Return the intersection over union of the mask and the cam's pixels above a threshold.

    The cam is rectified, resized, and mapped to [0, 1] by its own smallest and largest value; pixels *above* the threshold are
    compared with the mask.

    Args:
        cams: (N, 1, *spatial), signed.
        masks: (N, 1, *spatial) in [0, 1] or booleans; pixels above 0.5 are inside.
        threshold: in [0, 1).

    Returns:
        (N,), in [0, 1]; larger is better. A dead, all-zero or flat cam gets 0. NaN for an empty mask.

    Raises:
        ValueError: a shape, a value or an option that does not fit, or a cam that is not finite.
        TypeError: cams, masks or the threshold of a wrong kind.
    """
    check_number("threshold", threshold, zero=True, below=1)
    located = _locate(cams, masks)
    above = normalize(located.maps, "minmax") > threshold
    common, either = ((part.flatten(1).sum(1)) for part in (above & located.inside, above | located.inside))
    return located.annotated(common / either.clamp(min=1), above=0.5)


@cam_metric
def rank_accuracy(cams: Tensor, masks: Tensor) -> Tensor:
    """Return the share of the |mask| highest pixels of the rectified cam that lie in the mask (relevance rank accuracy).

    (Arras et al. 2022, "CLEVR-XAI", eq. 2.)

    Args:
        cams: (N, 1, *spatial), signed.
        masks: (N, 1, *spatial) in [0, 1] or booleans; pixels above 0.5 are inside.

    Returns:
        (N,), in [0, 1]; larger is better. Pixels that tie for the last ranks, zeros included, count in part: the value is the
        mean over all their orders, and a flat map gets the value of chance. A dead or all-zero cam gets 0. NaN for an empty mask.

    Raises:
        ValueError: a shape, a value or an option that does not fit, or a cam that is not finite.
        TypeError: cams or masks of a wrong kind.
    """
    located = _locate(cams, masks)
    maps, inside = located.maps.flatten(1), located.inside.flatten(1)
    places = inside.sum(1, keepdim=True)
    last = maps.sort(dim=1, descending=True).values.gather(1, (places - 1).clamp(min=0))
    above, tied = maps > last, maps == last
    shared = (places - above.sum(1, keepdim=True)) / tied.sum(1, keepdim=True).clamp(min=1)
    hits = (above & inside).sum(1, keepdim=True) + shared * (tied & inside).sum(1, keepdim=True)
    values = (hits / places.clamp(min=1)).squeeze(1)
    return located.annotated(values.masked_fill(located.dead, 0), above=0.5)
