"""Losses that compare a cam with its image, with another cam, or with itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ..common import Reduction
from ..distance import Distance, l2_distance
from ..maps import Normalization, peak
from .base import (
    Samples,
    cam_loss,
    check_aspect,
    check_cams,
    check_positive,
    checked_samples,
    counted_samples,
    fit_references,
    prepare_samples,
)

#: (N, 1, *spatial) -> (N, 1, *spatial): what was done to the images, done to maps.
Transform = Literal["hflip"] | Callable[[Tensor], Tensor]


@cam_loss
def image_loss(
    cams: Tensor,
    images: Tensor,
    *,
    distance: str | Distance = "l2",
    normalization: Normalization = "max",
    revive: bool = True,
    reduction: Reduction = "mean",
    sample_weights: Tensor | None = None,
) -> Tensor:
    r"""Compare each cam with its own image: the authors' term before Batch-CAM.

    .. math:: \frac{1}{N} \sum_i D(M_i, x_i), \qquad M = \mathrm{relu}(C) / \max \mathrm{relu}(C)

    Args:
        cams: C, (N, 1, *spatial), raw and signed.
        images: x, (N, 1, *spatial) in [0, 1], of any size, as :func:`~batchcam_captum.functional.image_maps` makes them.
        distance: D, ``"l1"``, ``"l2"``, ``"ssim"``, ``"cosine"``, or a callable (N, 1, …), (N, 1, …) -> (N,).
        normalization: of the rectified cams: ``"max"`` divides by the largest value, ``"minmax"`` maps the smallest value to 0
            and the largest to 1, ``"none"`` changes nothing.
        revive: a dead cam, one without positive values, pays 1 − cosine(C, x) in [0, 2] instead, whose gradient brings it back
            to life. False: no gradient reaches a dead cam.
        reduction: ``"none"``, ``"mean"`` or ``"sum"`` over the samples.
        sample_weights: (N,) how much each sample counts, at least 0; a sample of weight 0 is left out. Default: all alike.

    Returns:
        A scalar, or (N,) for ``reduction="none"``. With nothing to count the scalar is a zero that is connected to the graph.

    Raises:
        ValueError: a shape, a value or an option that does not fit.
        TypeError: an argument of another kind.
    """
    samples = checked_samples(
        cams, normalization, sample_weights=sample_weights, reduction=reduction, revive=revive
    )
    samples = against_images(samples, images)
    return samples.reduce(samples.distances(distance))


def against_images(samples: Samples, images: Tensor) -> Samples:
    """Check images (N, 1, *spatial), and compare each cam with its own."""
    cams = samples.cams
    if images.shape[:2] != cams.shape[:2] or images.dim() != cams.dim():
        raise ValueError(
            f"images: expected one image of one channel for each of the cams {tuple(cams.shape)}, got {tuple(images.shape)}; "
            f"see functional.image_maps"
        )
    check_aspect("images", images.shape[2:], cams.shape[2:])
    return samples._replace(references=fit_references(images, cams.shape[2:], cams.dtype))


@cam_loss
def consistency_loss(
    cams: Tensor,
    *,
    transform: Transform = "hflip",
    reduction: Reduction = "mean",
    sample_weights: Tensor | None = None,
) -> Tensor:
    r"""Compare the cam of a transformed image with the transformed cam of the image.

    .. math:: \mathrm{mean}\, \left(C(Tx) - T\, C(x)\right)^2

    (Guo et al. 2019, "Visual Attention Consistency under Image Transforms", whose batch holds both views as well. Dividing each
    cam by its largest absolute value is ours: without it the loss falls as the cams shrink.) The signed cams are compared, so a
    dead cam learns like any other. In [0, 4]; two all-zero cams give 0.

    Args:
        cams: C, (2N, 1, *spatial), raw and signed: of the N images, then of the same images transformed, in the same order.
        transform: T, ``"hflip"`` (the last dimension reversed), or a callable on maps, (N, 1, *spatial) -> (N, 1, *spatial).
        reduction: ``"none"``, ``"mean"`` or ``"sum"`` over the pairs.
        sample_weights: (2N,), at least 0; a pair has the lower weight of its views, and weight 0 leaves it out. Default: all
            alike.

    Returns:
        A scalar, or (N,), one number per pair, for ``reduction="none"``. With nothing to count the scalar is a zero that is
        connected to the graph.

    Raises:
        ValueError: a shape, a value or an option that does not fit.
        TypeError: an argument of another kind.
    """
    check_cams(cams)
    check_transform(transform)
    counted = counted_samples(cams.shape[0], sample_weights)
    samples = view_samples(cams, counted, sample_weights, reduction)
    return samples.reduce(inconsistency(samples, transform))


def check_transform(transform: object) -> None:
    """Raise a ``ValueError`` unless the transform is ``"hflip"`` or a callable."""
    if not callable(transform) and transform != "hflip":
        raise ValueError(f"transform: expected 'hflip' or a callable on maps, got {transform!r}")


def view_samples(
    cams: Tensor, counted: Tensor | None, sample_weights: Tensor | None, reduction: Reduction
) -> Samples:
    """Prepare the cams of two views, (2N, 1, *spatial), as the two channels of N samples; a pair counts if both views do."""
    if cams.shape[0] % 2:
        raise ValueError(
            f"cams: expected an even number, those of the images and then those of the transformed images, got {cams.shape[0]}; "
            f"pass torch.cat([images, transformed]) to the model, and the labels twice"
        )
    counted = None if counted is None else torch.stack(counted.chunk(2)).all(0)
    weights = None if sample_weights is None else torch.stack(sample_weights.chunk(2)).amin(0)
    return prepare_samples(torch.cat(cams.chunk(2), 1), counted, weights, None, reduction=reduction)


def inconsistency(samples: Samples, transform: Transform) -> Tensor:
    """Return mean (C(Tx) − T C(x))² of each pair of views, each cam divided by its largest absolute value: (N,)."""
    plain, transformed = (_over_peak(view) for view in samples.cams.split(1, 1))
    expected = transform(plain) if callable(transform) else plain.flip(-1)
    if expected.shape != transformed.shape:
        raise ValueError(
            f"transform: expected maps of the shape of those of the second view {tuple(transformed.shape)}, got "
            f"{tuple(expected.shape)}; turn square images only, or pass a callable that keeps the shape"
        )
    return l2_distance(transformed, expected)


def _over_peak(cams: Tensor) -> Tensor:
    """Return C / max |C|; zero, with a zero gradient, where there is nothing to divide by."""
    scale = peak(cams)
    zero = scale.detach() < torch.finfo(cams.dtype).tiny
    return cams.masked_fill(zero, 0) / scale.masked_fill(zero, 1)


@cam_loss
def separability_loss(
    cams: Tensor,
    *,
    threshold: float = 0.5,
    sharpness: float = 10.0,
    revive: bool = True,
    reduction: Reduction = "mean",
    sample_weights: Tensor | None = None,
) -> Tensor:
    r"""Penalize the overlap of the maps of the label and of the most confused class.

    .. math:: \frac{2 \sum \min(M_y, M_c)\, T}{\sum (M_y + M_c)}, \qquad T = \mathrm{sigmoid}\left(\omega (M_y - \sigma)\right)

    (Wang et al. 2019, "Sharpen Focus: Learning with Attention Separability and Consistency", ICASC: L_AS, with T the soft mask of
    the label's map. Normalizing each map, and the values of σ and ω, are ours.) In [0, 1]; 0 where the maps do not overlap. A
    dead map overlaps with nothing: for the confused class that is welcome, for the label see ``revive``.

    Args:
        cams: (N, 2, *spatial), raw and signed: the cam of the label's score and that of the score ``"confused"``, see
            :func:`~batchcam_captum.functional.select_scores`.
        threshold: σ as a share of the largest value of the label's map, from 0 to 1.
        sharpness: ω > 0; large values make T a step.
        revive: a dead cam, one without positive values, pays 1 − cosine(C, 1) in [0, 2] instead, whose gradient brings it back
            to life. False: no gradient reaches a dead cam.
        reduction: ``"none"``, ``"mean"`` or ``"sum"`` over the samples.
        sample_weights: (N,) how much each sample counts, at least 0; a sample of weight 0 is left out. Default: all alike.

    Returns:
        A scalar, or (N,) for ``reduction="none"``. With nothing to count the scalar is a zero that is connected to the graph.

    Raises:
        ValueError: a shape, a value or an option that does not fit.
        TypeError: an argument of another kind.
    """
    check_soft_mask(threshold, sharpness)
    samples = checked_samples(
        cams, channels=2, sample_weights=sample_weights, reduction=reduction, revive=revive
    )
    return samples.reduce(overlap(samples, threshold, sharpness))


def check_soft_mask(threshold: float, sharpness: float) -> None:
    """Raise a ``ValueError`` unless the threshold is a share, and the sharpness positive and finite."""
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold: expected a share from 0 to 1, got {threshold}")
    check_positive("sharpness", sharpness)


def overlap(samples: Samples, threshold: float, sharpness: float) -> Tensor:
    """Return 2 Σ min(M_y, M_c) T / Σ (M_y + M_c) of each sample: (N,)."""
    label, confused = samples.maps.flatten(2).unbind(1)
    soft_mask = torch.sigmoid(sharpness * (label - threshold * label.amax(1, keepdim=True)))
    shared = 2 * (torch.minimum(label, confused) * soft_mask).sum(1)
    total = (label + confused).sum(1)
    return shared / total.masked_fill(total == 0, 1)


@cam_loss
def total_variation_loss(
    cams: Tensor,
    *,
    revive: bool = True,
    reduction: Reduction = "mean",
    sample_weights: Tensor | None = None,
) -> Tensor:
    r"""Penalize differences between neighboring pixels of a map.

    .. math:: \sum_d \mathrm{mean}_p\, |M_{p + e_d} - M_p|, \qquad M = \mathrm{relu}(C) / \max \mathrm{relu}(C)

    with d over the spatial dimensions and p over the pixels that have a next one. (Rudin, Osher and Fatemi 1992, in its
    anisotropic form; the mean over pixels, so that the weight does not depend on the size of the map, is ours.) In [0, d]; 0 for
    a flat map.

    Args:
        cams: C, (N, 1, *spatial), raw and signed.
        revive: a dead cam, one without positive values, pays 1 − cosine(C, 1) in [0, 2] instead, whose gradient brings it back
            to life. False: no gradient reaches a dead cam.
        reduction: ``"none"``, ``"mean"`` or ``"sum"`` over the samples.
        sample_weights: (N,) how much each sample counts, at least 0; a sample of weight 0 is left out. Default: all alike.

    Returns:
        A scalar, or (N,) for ``reduction="none"``. With nothing to count the scalar is a zero that is connected to the graph.

    Raises:
        ValueError: a shape, a value or an option that does not fit.
        TypeError: an argument of another kind.
    """
    samples = checked_samples(cams, sample_weights=sample_weights, reduction=reduction, revive=revive)
    return samples.reduce(variation(samples))


def variation(samples: Samples) -> Tensor:
    """Return Σ_d mean |M[p + e_d] − M[p]| of each map: (N,)."""
    maps = samples.maps
    steps = [maps.diff(dim=d).abs().flatten(1).mean(1) for d in range(2, maps.dim())]
    return torch.stack(steps).sum(0)
