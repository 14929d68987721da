"""How close cams are to prototypes, per sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..checks import ValueChecks
from ..class_means import class_weights
from ..common import exact_matmul_dtype
from ..distance import Distance, cosine_similarity, get_distance, unit
from ..losses.base import check_prototypes, check_seen, fit_references, nearest
from ..maps import prepare
from .base import cam_metric, finite


@cam_metric
def prototype_distance(
    cams: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    distance: str | Distance = "l1",
    *,
    seen: Tensor | None = None,
    ignore_index: int = -100,
) -> Tensor:
    """Return the distance of each normalized cam relu(C) / max to the prototype of its class.

    Args:
        cams: (N, 1, *spatial), signed.
        labels: (N,) class indices.
        prototypes: (K, 1, *spatial), or P per class (K, P, *spatial), of which the closest counts; divided by their maxima.
        distance: a name of :data:`~batchcam_captum.functional.DISTANCES`, or a function (N, ...), (N, ...) -> (N,).
        seen: (K,) booleans, which classes have a prototype. Default: all.
        ignore_index: samples with this label get NaN.

    Returns:
        (N,), at least 0 (``"l1"`` and ``"l2"`` at most 1, ``"ssim"`` and ``"cosine"`` at most 2); smaller is closer. A dead or
        all-zero cam counts as the zero map, which is *close* to a dark prototype: report the dead fraction as well.

    Raises:
        ValueError: a shape or a value that does not fit, a class without a prototype, or a cam that is not finite.
        TypeError: cams or labels of a wrong kind; soft labels among them.
    """
    check_prototypes(cams, prototypes)
    indices, counted = labels_with_prototype(labels, len(cams), prototypes, seen, ignore_index)
    maps = prepare(finite(cams, counted)).maps
    prototypes = fit_references(prototypes, maps.shape[2:], maps.dtype)
    values = nearest(get_distance(distance), maps, prototypes[indices])
    if not bool((torch.isfinite(values) | ~counted).all()):
        raise ValueError(
            "distance: expected finite distances, got others; check the prototypes for NaN, and the distance"
        )
    return values.masked_fill(~counted, math.nan)


def labels_with_prototype(
    labels: Tensor, samples: int, prototypes: Tensor, seen: Tensor | None = None, ignore_index: int = -100
) -> tuple[Tensor, Tensor]:
    """Check that labels are class indices (N,) of classes with a prototype.

    Returns:
        The indices (N,), 0 where ignored, and which samples are not ignored (N,).
    """
    belongs = class_weights(labels, len(prototypes), num_samples=samples, ignore_index=ignore_index)
    if belongs.indices is None:
        raise TypeError(
            f"labels: expected class indices ({samples},), got soft labels {tuple(labels.shape)}; pass labels.argmax(1)"
        )
    check_seen(belongs, seen, ValueChecks(synchronize=True))
    return belongs.indices, belongs.counted


def prototype_cosine(
    cams: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    *,
    seen: Tensor | None = None,
    ignore_index: int = -100,
) -> Tensor:
    """Return the cosine of each normalized cam and the prototype of its class.

    Args:
        cams: (N, 1, *spatial), signed.
        labels: (N,) class indices.
        prototypes: (K, 1, *spatial), or P per class (K, P, *spatial), of which the closest counts.
        seen: (K,) booleans, which classes have a prototype. Default: all.
        ignore_index: samples with this label get NaN.

    Returns:
        (N,), in [0, 1]; larger is closer. A dead or all-zero cam gets 0.

    Raises:
        ValueError: a shape or a value that does not fit, a class without a prototype, or a cam that is not finite.
        TypeError: cams or labels of a wrong kind; soft labels among them.
    """
    return -prototype_distance(
        cams,
        labels,
        prototypes,
        lambda first, second: -cosine_similarity(first, second),  # keeps the digits that 1 − cosine loses
        seen=seen,
        ignore_index=ignore_index,
    )


@cam_metric
def nearest_prototype(
    cams: Tensor,
    prototypes: Tensor,
    distance: str | Distance = "centered_cosine",
    *,
    seen: Tensor | None = None,
) -> Tensor:
    r"""Return the class whose prototype each cam is closest to.

    By default by the cosine of centered maps,

    .. math:: \arg\max_c \mathrm{unit}(M - \bar M) \cdot \mathrm{unit}(P_c - \bar P), \qquad M = \mathrm{relu}(C) / \max

    with M̄ the map's mean over its pixels and P̄ the mean of the prototypes over the classes: what all prototypes share, such as
    a bright center, does not distinguish classes.

    Args:
        cams: (N, 1, *spatial), signed.
        prototypes: (K, 1, *spatial), or P per class (K, P, *spatial), of which the closest counts; divided by their maxima.
        distance: ``"centered_cosine"``, a name of :data:`~batchcam_captum.functional.DISTANCES`, or a function
            (N, ...), (N, ...) -> (N,).
        seen: (K,) booleans, which classes take part. Default: those whose prototypes are not all zero.

    Returns:
        (N,) int64, 0 ... K−1; the first of equally close classes. −1, which is never the right class, for a dead or all-zero
        cam, and with ``"centered_cosine"`` for a flat one, which has no direction.

    Raises:
        ValueError: a shape or a value that does not fit, no class with a prototype, or a cam that is not finite.
        TypeError: cams of a wrong kind.
    """
    check_prototypes(cams, prototypes)
    maps, dead = prepare(finite(cams))
    prototypes = fit_references(prototypes, maps.shape[2:], maps.dtype)
    if not bool(torch.isfinite(prototypes).all()):
        raise ValueError("prototypes: expected finite numbers, got others")
    if seen is None:
        seen = (prototypes.flatten(1) > 0).any(1)
    if not bool(seen.any()):
        raise ValueError("prototypes: expected at least one class with a prototype, got none")
    if distance == "centered_cosine":
        distances, flat = _centered_cosines(maps, prototypes, seen)
        dead = dead | flat
    else:
        between = get_distance(distance)
        # One class at a time: all pairs at once would be N·K maps in memory.
        distances = torch.stack(
            [nearest(between, maps, own.expand(maps.shape[0], *own.shape)) for own in prototypes], 1
        )
    return distances.masked_fill(~seen, math.inf).argmin(1).masked_fill(dead, -1)


def _centered_cosines(maps: Tensor, prototypes: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Return minus the cosines (N, K) of centered maps, up to a positive factor per map, and which maps are flat (N,)."""
    dtype = exact_matmul_dtype(maps)
    rows = maps.flatten(1).to(dtype)
    centered = rows - rows.mean(1, keepdim=True)
    # A flat map minus its mean is rounding noise, not a direction; its peak is 1.
    flat = centered.abs().amax(1) <= 8 * torch.finfo(maps.dtype).eps
    candidates = prototypes.flatten(0, 1).flatten(1).to(dtype)
    present = seen.to(dtype).repeat_interleave(prototypes.shape[1])
    candidates = unit(candidates - (present @ candidates) / present.sum())
    cosines = (centered @ candidates.T).unflatten(1, prototypes.shape[:2])
    return -cosines.amax(2), flat
