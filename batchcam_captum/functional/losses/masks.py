"""Losses that compare cams with masks of where the evidence should be."""

from __future__ import annotations

from torch import Tensor

from ..checks import ValueChecks, both, unless_all
from ..common import Reduction, full_precision
from ..distance import l1_distance, l2_distance
from ..maps import Normalization, peak, resize
from .base import Samples, cam_loss, check_aspect, check_cams, counted_samples, prepare_samples, without


def mask_samples(
    cams: Tensor,
    masks: Tensor,
    *,
    normalization: Normalization | None = "max",
    counted: Tensor | None = None,
    sample_weights: Tensor | None = None,
    checks: ValueChecks | None = None,
    reduction: Reduction = "mean",
    revive: bool = True,
) -> Samples:
    """Check cams and masks, and bring the masks to the size of the cams."""
    check_cams(cams)
    check_masks(masks, cams)
    checks = ValueChecks(synchronize=True) if checks is None else checks
    counted = both(counted, counted_samples(cams.shape[0], sample_weights, checks))
    masks = without(masks.to(full_precision(cams).dtype), counted)
    checks.require(
        (masks >= 0) & (masks <= 1),
        "masks: expected numbers from 0 to 1, got others, or NaN; divide masks of bytes by 255, and mark a sample without an "
        "annotation by a mask of zeros",
        lambda: f"found {'NaN' if bool(masks.isnan().any()) else f'{masks.min():.4g} to {masks.max():.4g}'}",
    )
    annotated = unless_all((masks.detach().flatten(1) > 0).any(1))
    samples = prepare_samples(
        cams,
        both(counted, annotated),
        sample_weights,
        normalization,
        reduction=reduction,
        revive=revive,
    )
    return samples._replace(references=fit_masks(masks, samples.maps))


def fit_masks(masks: Tensor, maps: Tensor) -> Tensor:
    """Resize masks to the maps, keeping their peak, so that what is smaller than a pixel of the map still has a place."""
    if masks.shape[2:] == maps.shape[2:]:
        return masks
    resized = resize(masks, maps.shape[2:])
    highest = peak(resized)
    return resized * (peak(masks) / highest.masked_fill(highest == 0, 1))


def check_masks(masks: Tensor, cams: Tensor) -> None:
    """Check the shape of masks: expected (N, 1, *spatial), with the aspect ratio of the cams.

    Raises:
        ValueError: another shape.
        TypeError: no tensor of real numbers.
    """
    if not isinstance(masks, Tensor) or masks.is_complex():
        kind = masks.dtype if isinstance(masks, Tensor) else type(masks).__name__
        raise TypeError(f"masks: expected a tensor of numbers from 0 to 1, got {kind}")
    shape, dims = tuple(masks.shape), cams.dim()
    if masks.dim() != dims or shape[1] != 1 or not masks[:1].flatten(2).shape[2]:
        remedy = (
            "call masks.unsqueeze(1)"
            if masks.dim() == dims - 1
            else "pass one channel per sample, as large as the images"
        )
        raise ValueError(
            f"masks: expected (N, 1, *spatial), with as many spatial dimensions as the cams {tuple(cams.shape)}, got {shape}; "
            f"{remedy}"
        )
    if shape[0] != cams.shape[0]:
        raise ValueError(
            f"masks: expected one for each of the {cams.shape[0]} cams, got {shape[0]}; a sample without an annotation has "
            f"a mask of zeros"
        )
    check_aspect("masks", shape[2:], cams.shape[2:])


@cam_loss
def energy_loss(
    cams: Tensor,
    masks: Tensor,
    *,
    revive: bool = True,
    reduction: Reduction = "mean",
    sample_weights: Tensor | None = None,
) -> Tensor:
    r"""Penalize the share of the positive evidence that lies outside the mask.

    .. math:: 1 - \frac{\sum m\, C^+}{\sum C^+} = \frac{\sum (1 - m)\, C^+}{\sum C^+}, \qquad C^+ = \mathrm{relu}(C)

    (Rao et al. 2023, "Studying How to Efficiently and Effectively Guide Models with Explanations": their energy loss is the
    negative share inside, which is smaller by the constant 1.) In [0, 1]; a dead cam without ``revive`` gives 1 and no gradient.

    Args:
        cams: C, (N, 1, *spatial), raw and signed.
        masks: m, (N, 1, *spatial) in [0, 1], of any size and dtype: where the evidence should be. Resized by area to the cams
            without lowering its peak. All zero: the sample is not annotated and is left out.
        revive: a dead cam, one without positive values, pays 1 − cosine(C, m) in [0, 2] instead, whose gradient brings it back
            to life. False: no gradient reaches a dead cam.
        reduction: ``"none"``, ``"mean"`` or ``"sum"`` over the samples.
        sample_weights: (N,) how much each sample counts, at least 0; a sample of weight 0 is left out. Default: all alike.

    Returns:
        A scalar, or (N,) for ``reduction="none"``. With nothing to count the scalar is a zero that is connected to the graph.

    Raises:
        ValueError: a shape, a value or an option that does not fit.
        TypeError: an argument of another kind.
    """
    samples = mask_samples(cams, masks, sample_weights=sample_weights, reduction=reduction, revive=revive)
    return samples.reduce(energy(samples))


def energy(samples: Samples) -> Tensor:
    """Return the share of each map outside its mask, 1 for a dead cam: (N,)."""
    assert samples.references is not None
    outside = ((1 - samples.references) * samples.maps).flatten(1).sum(1)
    total = samples.maps.flatten(1).sum(1)
    if samples.dead is None:
        return outside / total
    # All of nothing is outside: a dead cam gets the worst value, not the best.
    return outside.masked_fill(samples.dead, 1) / total.masked_fill(samples.dead, 1)


@cam_loss
def rrr_cam_loss(
    cams: Tensor,
    masks: Tensor,
    *,
    revive: bool = True,
    reduction: Reduction = "mean",
    sample_weights: Tensor | None = None,
) -> Tensor:
    r"""Penalize the squared evidence outside the mask: right for the right reasons, on cams.

    .. math:: \sum \left((1 - m)\, M\right)^2, \qquad M = \mathrm{relu}(C) / \max \mathrm{relu}(C)

    (Ross et al. 2017, eq. 1, use input gradients; Schramowski et al. 2020 the normalized Grad-CAM. Both mark what is *wrong*;
    here, as in every loss against masks, a mask says where the evidence should be, so the paper's mask is 1 − m.) A sum over
    pixels as in the papers, in [0, number of pixels], so its weight depends on the size of the map. A dead cam without
    ``revive`` gives 0 and no gradient.

    Args:
        cams: C, (N, 1, *spatial), raw and signed.
        masks: m, (N, 1, *spatial) in [0, 1], of any size and dtype: where the evidence should be. Resized by area to the cams
            without lowering its peak. All zero: the sample is not annotated and is left out.
        revive: a dead cam, one without positive values, pays 1 − cosine(C, m) in [0, 2] instead, whose gradient brings it back
            to life. False: no gradient reaches a dead cam.
        reduction: ``"none"``, ``"mean"`` or ``"sum"`` over the samples.
        sample_weights: (N,) how much each sample counts, at least 0; a sample of weight 0 is left out. Default: all alike.

    Returns:
        A scalar, or (N,) for ``reduction="none"``. With nothing to count the scalar is a zero that is connected to the graph.

    Raises:
        ValueError: a shape, a value or an option that does not fit.
        TypeError: an argument of another kind.
    """
    samples = mask_samples(cams, masks, sample_weights=sample_weights, reduction=reduction, revive=revive)
    return samples.reduce(squares_outside(samples))


def squares_outside(samples: Samples) -> Tensor:
    """Return Σ ((1 − m) M)² of each sample: (N,)."""
    assert samples.references is not None
    return ((1 - samples.references) * samples.maps).square().flatten(1).sum(1)


@cam_loss
def gradia_loss(
    cams: Tensor,
    masks: Tensor,
    *,
    revive: bool = True,
    reduction: Reduction = "mean",
    sample_weights: Tensor | None = None,
) -> Tensor:
    r"""Penalize the mean absolute difference between cam and mask.

    .. math:: \mathrm{mean}\, |M - m|, \qquad M = \mathrm{relu}(C) / \max \mathrm{relu}(C)

    (GRADIA's attention loss, Gao et al. 2022, "Aligning Eyes between Humans and Deep Neural Network through Interactive Attention
    Alignment"; the mean over pixels and the normalization are ours.) In [0, 1]; a dead cam without ``revive`` gives mean(m) and
    no gradient.

    Args:
        cams: C, (N, 1, *spatial), raw and signed.
        masks: m, (N, 1, *spatial) in [0, 1], of any size and dtype: where the evidence should be. Resized by area to the cams
            without lowering its peak. All zero: the sample is not annotated and is left out.
        revive: a dead cam, one without positive values, pays 1 − cosine(C, m) in [0, 2] instead, whose gradient brings it back
            to life. False: no gradient reaches a dead cam.
        reduction: ``"none"``, ``"mean"`` or ``"sum"`` over the samples.
        sample_weights: (N,) how much each sample counts, at least 0; a sample of weight 0 is left out. Default: all alike.

    Returns:
        A scalar, or (N,) for ``reduction="none"``. With nothing to count the scalar is a zero that is connected to the graph.

    Raises:
        ValueError: a shape, a value or an option that does not fit.
        TypeError: an argument of another kind.
    """
    samples = mask_samples(cams, masks, sample_weights=sample_weights, reduction=reduction, revive=revive)
    return samples.reduce(samples.distances(l1_distance))


@cam_loss
def hint_loss(
    cams: Tensor,
    masks: Tensor,
    *,
    revive: bool = True,
    reduction: Reduction = "mean",
    sample_weights: Tensor | None = None,
) -> Tensor:
    r"""Penalize the mean squared difference between cam and mask, after HINT.

    .. math:: \mathrm{mean}\, (M - m)^2, \qquad M = \mathrm{relu}(C) / \max \mathrm{relu}(C)

    (After Selvaraju et al. 2019, who rank the regions of an image by human attention; the squared difference instead of the
    ranking is ours.) In [0, 1]; a dead cam without ``revive`` gives mean(m²) and no gradient.

    Args:
        cams: C, (N, 1, *spatial), raw and signed.
        masks: m, (N, 1, *spatial) in [0, 1], of any size and dtype: where the evidence should be. Resized by area to the cams
            without lowering its peak. All zero: the sample is not annotated and is left out.
        revive: a dead cam, one without positive values, pays 1 − cosine(C, m) in [0, 2] instead, whose gradient brings it back
            to life. False: no gradient reaches a dead cam.
        reduction: ``"none"``, ``"mean"`` or ``"sum"`` over the samples.
        sample_weights: (N,) how much each sample counts, at least 0; a sample of weight 0 is left out. Default: all alike.

    Returns:
        A scalar, or (N,) for ``reduction="none"``. With nothing to count the scalar is a zero that is connected to the graph.

    Raises:
        ValueError: a shape, a value or an option that does not fit.
        TypeError: an argument of another kind.
    """
    samples = mask_samples(cams, masks, sample_weights=sample_weights, reduction=reduction, revive=revive)
    return samples.reduce(samples.distances(l2_distance))
