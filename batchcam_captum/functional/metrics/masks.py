"""Whether cams lie where masks say: one number a sample.

Cams come at the size of a layer, masks at that of the images. Everywhere here ``resolution="mask"``, the default, rectifies the
cams, divides them by their maxima and resizes them to the masks (bilinearly where they grow, by area where they shrink), so
that no mask is blurred. ``"map"`` resizes the masks to the cams by area instead, without lowering their peaks.

The shares weigh pixels by the masks' values; what asks whether a pixel is inside (pointing game, IoU, rank accuracy) takes
those above one half. A mask without such a pixel is no annotation: the value is NaN, and the metric classes leave the sample
out. Against the masks of objects a dead cam, an all-zero one among them, gets the worst value; on a shortcut it counts as a
flat one, which is better than most cams of a model that uses the shortcut, see :func:`shortcut_share`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import ValueChecks
from ..losses.comparison import check_counted, check_resolution, without
from ..losses.masks import MaskResolution, check_masks, fit_masks
from ..maps import normalize, prepare, resize
from ..precision import full_precision, no_autocast
from .common import check_metric_cams, check_whole, finite, is_number, raised, undefined


class _Located(NamedTuple):
    maps: Tensor  #: (N, 1, *size), rectified, at least 0
    masks: Tensor  #: (N, 1, *size) in [0, 1]
    dead: Tensor  #: (N,) booleans
    counted: Tensor  #: (N,) booleans: which samples count, annotated or not

    def weighted(self) -> tuple[Tensor, Tensor]:
        """The share of each map inside its mask (N,), 0 where dead, and which masks are an annotation (N,)."""
        maps, masks = self.maps.flatten(1), self.masks.flatten(1)
        share = (masks * maps).sum(1) / maps.sum(1).masked_fill(self.dead, 1)
        # The mean of some numbers in [0, 1]; rounding alone takes it out.
        return share.clamp(0, 1), self.counted & (masks > 0).any(1)

    def inside(self) -> tuple[Tensor, Tensor]:
        """Which pixels are inside (N, 1, *size), and which masks have some (N,)."""
        inside = self.masks > 0.5
        return inside, self.counted & inside.flatten(1).any(1)


def _located(
    cams: Tensor,
    masks: Tensor,
    resolution: MaskResolution,
    counted: Tensor | None,
    checks: ValueChecks | None,
) -> _Located:
    check_metric_cams(cams)
    check_resolution(resolution, MaskResolution)
    check_masks(masks, cams)
    counted = check_counted(cams, counted, None, checks)
    masks = without(masks.detach().to(full_precision(cams).dtype), counted)
    raised(checks).require(
        (masks >= 0) & (masks <= 1),
        "masks: expected numbers from 0 to 1, got others, or NaN; divide masks of bytes by 255",
    )
    maps, dead = prepare(finite(cams, counted, checks))
    if resolution == "mask":
        maps = resize(maps, masks.shape[2:])
        # Where one dimension grows and another shrinks, linear interpolation may step over all that there was.
        dead = dead | ~(maps.flatten(1) > 0).any(1)
    return _Located(maps, fit_masks(masks, maps), dead, counted)


@torch.no_grad()
def energy_in_mask(
    cams: Tensor,
    masks: Tensor,
    *,
    resolution: MaskResolution = "mask",
    counted: Tensor | None = None,
    checks: ValueChecks | None = None,
) -> Tensor:
    r"""Energy-based pointing game: the share of the positive evidence that lies inside the mask.

    .. math:: \frac{\sum m\, a}{\sum a}, \qquad a = \mathrm{relu}(C)

    (Wang et al. 2020, "Score-CAM", section 4.3; the relevance mass accuracy of Arras et al. 2022.)

    Args:
        cams: (N, 1, *spatial), signed.
        masks: m, (N, 1, *spatial) in [0, 1] or booleans, where the evidence should be.
        resolution: ``"mask"`` compares at the masks' size, ``"map"`` at the cams'; see the module.
        counted: (N,) booleans, which samples count. Default: all.
        checks: where checks of values go; default: they raise at once on every device.

    Returns:
        (N,), in [0, 1]; larger is better, a flat map gets the mask's share of the pixels. An all-zero or dead cam gets 0. NaN
        for an empty mask, or where a sample does not count.

    Raises:
        ValueError: a shape, a value or an option that does not fit, or a cam that is not finite.
        TypeError: cams or masks of a wrong kind.
    """
    with no_autocast(cams):
        return undefined(*_located(cams, masks, resolution, counted, checks).weighted())


@torch.no_grad()
def wrong_reason(
    cams: Tensor,
    masks: Tensor,
    *,
    resolution: MaskResolution = "mask",
    counted: Tensor | None = None,
    checks: ValueChecks | None = None,
) -> Tensor:
    r"""The share of the positive evidence that lies outside the mask, 1 − :func:`energy_in_mask`.

    Args:
        cams: (N, 1, *spatial), signed.
        masks: (N, 1, *spatial) in [0, 1] or booleans, where the evidence *should* be; of a shortcut's mask take
            :func:`shortcut_share`.
        resolution: see :func:`energy_in_mask`.
        counted: (N,) booleans, which samples count. Default: all.
        checks: see :func:`energy_in_mask`.

    Returns:
        (N,), in [0, 1]; smaller is better. An all-zero or dead cam gets 1, the worst, as nothing of it is inside. NaN for an
        empty mask, or where a sample does not count.

    Raises:
        ValueError: see :func:`energy_in_mask`.
        TypeError: see :func:`energy_in_mask`.
    """
    return 1 - energy_in_mask(cams, masks, resolution=resolution, counted=counted, checks=checks)


class ShortcutShare(NamedTuple):
    """How much of each cam lies on a shortcut, see :func:`shortcut_share`."""

    share: Tensor  #: (N,), of the positive evidence; smaller is better
    area: Tensor  #: (N,), of the pixels: what a map that knows nothing would get

    @property
    def lift(self) -> Tensor:
        """(N,), share ÷ area: how many times as much as chance; 1 is chance, smaller is better."""
        return self.share / self.area


@torch.no_grad()
def shortcut_share(
    cams: Tensor,
    shortcuts: Tensor,
    *,
    resolution: MaskResolution = "mask",
    counted: Tensor | None = None,
    checks: ValueChecks | None = None,
) -> ShortcutShare:
    """The share of the positive evidence that lies on a shortcut, and the share of the pixels that the shortcut takes up.

    Args:
        cams: (N, 1, *spatial), signed.
        shortcuts: (N, 1, *spatial) in [0, 1] or booleans, where the evidence should *not* be.
        resolution: see :func:`energy_in_mask`.
        counted: (N,) booleans, which samples count. Default: all.
        checks: see :func:`energy_in_mask`.

    Returns:
        Both (N,), in [0, 1]. An all-zero or dead cam counts as a flat one, whose share is the area: it is neither evidence of the
        shortcut nor of its absence. That is less than a cam that uses the shortcut gets, so a model whose cams die looks better:
        report the share of dead cams beside it. NaN for a sample without a shortcut, or that does not count.

    Raises:
        ValueError: see :func:`energy_in_mask`.
        TypeError: see :func:`energy_in_mask`.
    """
    with no_autocast(cams):
        located = _located(cams, shortcuts, resolution, counted, checks)
        share, annotated = located.weighted()
        area = located.masks.flatten(1).mean(1)
        share = torch.where(located.dead, area, share)
        return ShortcutShare(undefined(share, annotated), undefined(area, annotated))


def check_tolerance(tolerance: int) -> None:
    """Check the tolerance of :func:`pointing_game`.

    Raises:
        TypeError: no integer.
        ValueError: negative.
    """
    check_whole("tolerance", tolerance, 0)


def check_threshold(threshold: float) -> None:
    """Check the threshold of :func:`mask_iou`.

    Raises:
        TypeError: no number.
        ValueError: out of range.
    """
    if not is_number(threshold):
        raise TypeError(f"threshold: expected a number in [0, 1), got {threshold!r}")
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold: expected a number in [0, 1), got {threshold}")


@torch.no_grad()
def pointing_game(
    cams: Tensor,
    masks: Tensor,
    *,
    tolerance: int = 0,
    resolution: MaskResolution = "mask",
    counted: Tensor | None = None,
    checks: ValueChecks | None = None,
) -> Tensor:
    """Pointing game: whether the maximum of the cam lies in the mask.

    (Zhang et al. 2018, "Top-down Neural Attention by Excitation Backprop", section 4.2.)

    Args:
        cams: (N, 1, *spatial), signed.
        masks: see :func:`energy_in_mask`; a pixel above one half is inside.
        tolerance: up to so many pixels from the mask, by the straight line, still count as inside. The authors take 15 on
            photographs. Pixels of the size at which the two are compared.
        resolution: see :func:`energy_in_mask`.
        counted: (N,) booleans, which samples count. Default: all.
        checks: see :func:`energy_in_mask`.

    Returns:
        (N,), in [0, 1]; larger is better. 1 for a hit, 0 for a miss; where several pixels share the maximum, the share of them
        that hit, so that a flat map gets what chance would. An all-zero or dead cam gets 0. NaN for an empty mask, or where a
        sample does not count.

    Raises:
        ValueError: see :func:`energy_in_mask`; or a negative tolerance.
        TypeError: see :func:`energy_in_mask`.
    """
    check_tolerance(tolerance)
    with no_autocast(cams):
        located = _located(cams, masks, resolution, counted, checks)
        inside, annotated = located.inside()
        hits = _grown(inside, tolerance**2).flatten(1) if tolerance else inside.flatten(1)
        maps = located.maps.flatten(1)
        highest = maps == maps.amax(1, keepdim=True)
        values = (highest & hits).sum(1) / highest.sum(1)
        return undefined(values.to(maps.dtype).masked_fill(located.dead, 0), annotated)


def _grown(inside: Tensor, reach: int, dim: int = 2) -> Tensor:
    """All pixels whose squared distance to one inside is at most ``reach``, over the dimensions from ``dim`` on."""
    radius = math.isqrt(reach)
    if dim == inside.dim() - 1:
        rows = inside.flatten(0, -2).unsqueeze(1).float()
        return (F.max_pool1d(rows, 2 * radius + 1, 1, radius) > 0).reshape(inside.shape)
    grown = _grown(inside, reach, dim + 1)
    size = inside.shape[dim]
    for shift in range(1, min(radius, size - 1) + 1):
        narrower = _grown(inside, reach - shift**2, dim + 1)
        grown.narrow(dim, shift, size - shift).logical_or_(narrower.narrow(dim, 0, size - shift))
        grown.narrow(dim, 0, size - shift).logical_or_(narrower.narrow(dim, shift, size - shift))
    return grown


@torch.no_grad()
def mask_iou(
    cams: Tensor,
    masks: Tensor,
    *,
    threshold: float = 0.5,
    resolution: MaskResolution = "mask",
    counted: Tensor | None = None,
    checks: ValueChecks | None = None,
) -> Tensor:
    """Intersection over union of the mask and the cam's pixels above a threshold.

    The cam is rectified, resized, and mapped to [0, 1] by its own smallest and largest value; what is *above* the threshold is
    compared with the mask.

    Args:
        cams: (N, 1, *spatial), signed.
        masks: see :func:`energy_in_mask`; a pixel above one half is inside.
        threshold: in [0, 1).
        resolution: see :func:`energy_in_mask`.
        counted: (N,) booleans, which samples count. Default: all.
        checks: see :func:`energy_in_mask`.

    Returns:
        (N,), in [0, 1]; larger is better. An all-zero or dead cam gets 0, and so does a flat one, which has no smallest and
        largest value to speak of. NaN for an empty mask, or where a sample does not count.

    Raises:
        ValueError: see :func:`energy_in_mask`; or a threshold out of range.
        TypeError: see :func:`energy_in_mask`.
    """
    check_threshold(threshold)
    with no_autocast(cams):
        located = _located(cams, masks, resolution, counted, checks)
        inside, annotated = located.inside()
        above = normalize(located.maps, "minmax") > threshold
        common, either = ((above & inside).flatten(1).sum(1), (above | inside).flatten(1).sum(1))
        values = common / either.clamp(min=1)
        return undefined(values.to(located.maps.dtype), annotated)


@torch.no_grad()
def rank_accuracy(
    cams: Tensor,
    masks: Tensor,
    *,
    resolution: MaskResolution = "mask",
    counted: Tensor | None = None,
    checks: ValueChecks | None = None,
) -> Tensor:
    """Relevance rank accuracy: of the |mask| highest pixels of the rectified cam, the share that lies in the mask.

    (Arras et al. 2022, "CLEVR-XAI", eq. 2.)

    Args:
        cams: (N, 1, *spatial), signed.
        masks: see :func:`energy_in_mask`; a pixel above one half is inside.
        resolution: see :func:`energy_in_mask`.
        counted: (N,) booleans, which samples count. Default: all.
        checks: see :func:`energy_in_mask`.

    Returns:
        (N,), in [0, 1]; larger is better. Of pixels that tie for the last places, zeros among them, each counts in part: the
        value is the mean over all orders they could be in, and a flat map gets what chance would. An all-zero or dead cam gets
        0. NaN for an empty mask, or where a sample does not count.

    Raises:
        ValueError: see :func:`energy_in_mask`.
        TypeError: see :func:`energy_in_mask`.
    """
    with no_autocast(cams):
        located = _located(cams, masks, resolution, counted, checks)
        inside, annotated = located.inside()
        maps, inside = located.maps.flatten(1), inside.flatten(1)
        places = inside.sum(1, keepdim=True)
        last = maps.sort(dim=1, descending=True).values.gather(1, (places - 1).clamp(min=0))
        above, tied = maps > last, maps == last
        shared = (places - above.sum(1, keepdim=True)) / tied.sum(1, keepdim=True).clamp(min=1)
        hits = (above & inside).sum(1, keepdim=True) + shared * (tied & inside).sum(1, keepdim=True)
        values = (hits / places.clamp(min=1)).squeeze(1).to(maps.dtype)
        return undefined(values.masked_fill(located.dead, 0), annotated)
