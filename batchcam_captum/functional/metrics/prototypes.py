"""How near cams are to prototypes, per sample."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import ValueChecks
from ..distance import Distance, cosine_similarity, get_distance, unit
from ..losses.comparison import (
    Resolution,
    check_prototypes,
    fit,
    membership,
    nearest,
    own_prototypes,
)
from ..maps import prepare
from ..precision import exact_matmul_dtype, no_autocast
from .common import check_metric_cams, finite, raised, undefined

#: What :func:`nearest_prototype` compares by unless told otherwise.
CENTRED_COSINE = "centred_cosine"


class _Pairs(NamedTuple):
    maps: Tensor  #: (N, 1, *size), rectified and normalised
    own: Tensor  #: (N, P, *size), the prototypes of each sample's class
    counted: Tensor  #: (N,) booleans

    def compared(self, distance: Distance) -> Tensor:
        """Distances (N,) to the nearest of the own prototypes; NaN where a sample does not count."""
        return undefined(nearest(distance, self.maps, self.own), self.counted)


def _pairs(
    cams: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    seen: Tensor | None,
    resolution: Resolution,
    ignore_index: int,
    checks: ValueChecks | None,
) -> _Pairs:
    check_metric_cams(cams)
    check_prototypes(cams, prototypes)
    belongs = membership(cams, labels, prototypes, seen, ignore_index, None, checks)
    cams = finite(cams, belongs.counted, checks)
    prepared = prepare(cams)
    maps, prototypes = fit(prepared.maps, prototypes, resolution)
    return _Pairs(maps, own_prototypes(belongs, maps, prototypes, cams, prepared.dead), belongs.counted)


@torch.no_grad()
def prototype_distance(
    cams: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    distance: str | Distance = "l1",
    *,
    seen: Tensor | None = None,
    resolution: Resolution = "map",
    ignore_index: int = -100,
    checks: ValueChecks | None = None,
) -> Tensor:
    """Distance of each normalised cam relu(C) / max to the prototype of its class.

    Args:
        cams: (N, 1, *spatial), signed.
        labels: (N,) class indices, or (N, K) soft labels, by which prototypes are mixed.
        prototypes: (K, 1, *spatial), or P a class (K, P, *spatial), of which the nearest counts; divided by their maxima.
        distance: see :data:`~batchcam_captum.functional.DISTANCES`.
        seen: (K,) booleans, which classes have a prototype. Default: all.
        resolution: ``"map"`` resizes the prototypes to the cams, ``"prototype"`` the cams to the prototypes.
        ignore_index: integer labels of this value are left out.
        checks: where checks of values go; default: they raise at once on every device.

    Returns:
        (N,), at least 0 (``"l1"`` and ``"l2"`` at most 1, ``"ssim"`` and ``"cosine"`` at most 2); smaller is nearer. An all-zero
        or dead cam counts as the zero map, which is *near* to a dark prototype: report the dead fraction beside it. NaN where the
        label is ignored.

    Raises:
        ValueError: a shape or a value that does not fit, a class without a prototype, or a cam that is not finite.
        TypeError: cams or labels of a wrong kind.
    """
    with no_autocast(cams):
        pairs = _pairs(cams, labels, prototypes, seen, resolution, ignore_index, checks)
        values = pairs.compared(get_distance(distance))
    raised(checks).require(
        torch.isfinite(values) | ~pairs.counted,
        "distance: expected finite distances, got others; check the prototypes for NaN, or the distance",
    )
    return values


@torch.no_grad()
def prototype_cosine(
    cams: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    *,
    seen: Tensor | None = None,
    resolution: Resolution = "map",
    ignore_index: int = -100,
    checks: ValueChecks | None = None,
) -> Tensor:
    """Cosine of each normalised cam and the prototype of its class.

    Args:
        cams: (N, 1, *spatial), signed.
        labels: see :func:`prototype_distance`.
        prototypes: see :func:`prototype_distance`.
        seen: see :func:`prototype_distance`.
        resolution: see :func:`prototype_distance`.
        ignore_index: see :func:`prototype_distance`.
        checks: see :func:`prototype_distance`.

    Returns:
        (N,), in [0, 1]; larger is nearer. An all-zero or dead cam gets 0. NaN where the label is ignored.

    Raises:
        ValueError: see :func:`prototype_distance`.
        TypeError: see :func:`prototype_distance`.
    """
    with no_autocast(cams):
        pairs = _pairs(cams, labels, prototypes, seen, resolution, ignore_index, checks)
        values = -pairs.compared(lambda first, second: -cosine_similarity(first, second))
    raised(checks).require(
        torch.isfinite(values) | ~pairs.counted, "prototypes: expected finite numbers, got others"
    )
    return values


@torch.no_grad()
def nearest_prototype(
    cams: Tensor,
    prototypes: Tensor,
    distance: str | Distance = CENTRED_COSINE,
    *,
    seen: Tensor | None = None,
    resolution: Resolution = "map",
    counted: Tensor | None = None,
    checks: ValueChecks | None = None,
) -> Tensor:
    r"""The class whose prototype each cam is nearest to.

    By default by the cosine of centred maps,

    .. math:: \arg\max_c \mathrm{unit}(M - \bar M) \cdot \mathrm{unit}(P_c - \bar P), \qquad M = \mathrm{relu}(C) / \max

    with M̄ the map's mean over its pixels and P̄ the mean of the prototypes over the classes: what all prototypes have in common,
    the bright middle of nearly every data set, tells nothing of the class.

    Args:
        cams: (N, 1, *spatial), signed.
        prototypes: (K, 1, *spatial), or P a class (K, P, *spatial), of which the nearest counts; divided by their maxima.
        distance: ``"centred_cosine"``, or one of :data:`~batchcam_captum.functional.DISTANCES`, or a function of pairs of maps.
        seen: (K,) booleans, which classes take part. Default: those whose prototypes are not all zero.
        resolution: see :func:`prototype_distance`.
        counted: (N,) booleans, which samples count. Default: all.
        checks: see :func:`prototype_distance`.

    Returns:
        (N,) int64, 0 … K−1; of classes that are equally near the first. −1, which is no class and so never right: a dead or
        all-zero cam, with ``"centred_cosine"`` a flat one, which has no direction, and a sample that does not count.

    Raises:
        ValueError: see :func:`prototype_distance`; or no class takes part.
        TypeError: see :func:`prototype_distance`.
    """
    check_metric_cams(cams)
    check_prototypes(cams, prototypes)
    with no_autocast(cams):
        prepared = prepare(finite(cams, counted, checks))
        maps, prototypes = fit(prepared.maps, prototypes, resolution)
        raised(checks).require(torch.isfinite(prototypes), "prototypes: expected finite numbers, got others")
        if seen is None:
            seen = (prototypes.flatten(1) > 0).any(1)
        raised(checks).require(
            seen.any(), "prototypes: expected at least one class with a prototype, got none"
        )
        nowhere = prepared.dead  # and so is what does not count, of which zeros are left
        if distance == CENTRED_COSINE:
            apart, flat = _centred_cosines(maps, prototypes, seen)
            nowhere = nowhere | flat
        else:
            between = get_distance(distance)
            # One class at a time: all pairs at once would be N·K maps in memory.
            apart = torch.stack(
                [nearest(between, maps, own.expand(maps.shape[0], *own.shape)) for own in prototypes], 1
            )
        return apart.masked_fill(~seen, math.inf).argmin(1).masked_fill(nowhere, -1)


def _centred_cosines(maps: Tensor, prototypes: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Minus the cosines (N, K) of centred maps, up to a positive factor a map; and which maps are flat (N,)."""
    dtype = exact_matmul_dtype(maps)
    rows = maps.flatten(1).to(dtype)
    centred = rows - rows.mean(1, keepdim=True)
    # A flat map minus its mean is rounding noise, not a direction; its peak is 1.
    flat = centred.abs().amax(1) <= 8 * torch.finfo(maps.dtype).eps
    candidates = prototypes.flatten(0, 1).flatten(1).to(dtype)
    present = seen.to(dtype).repeat_interleave(prototypes.shape[1])
    candidates = unit(candidates - (present @ candidates) / present.sum().clamp(min=1))
    cosines = (centred @ candidates.T).unflatten(1, prototypes.shape[:2])
    return -cosines.amax(2), flat
