"""Losses that compare cams with prototypes: of each sample, of each class in the batch, of all classes, and outside them."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..checks import ValueChecks, check_choice
from ..class_means import ClassWeights, class_sums
from ..common import Reduction, full_precision, reduce
from ..distance import Distance, get_distance, scaled, unit
from ..maps import Normalization, peak, resize
from .base import (
    Samples,
    cam_loss,
    check_cams,
    check_positive,
    check_prototypes,
    fill_samples,
    fit_references,
    membership,
    nearest,
    own_prototypes,
    prepare_samples,
)

ForegroundNormalization = Literal["none", "share"]
#: Where maps and prototypes are compared: at the size of the cams, or at that of the prototypes.
Resolution = Literal["map", "prototype"]

#: How many numbers per class :meth:`ClassSums.pack` puts beside the maps.
BESIDE_MAPS = 4

_ROUNDING = 1e-5


def prototype_samples(
    cams: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    normalization: Normalization | None,
    *,
    seen: Tensor | None = None,
    ignore_index: int = -100,
    sample_weights: Tensor | None = None,
    checks: ValueChecks | None = None,
    reduction: Reduction = "mean",
    revive: bool = False,
) -> Samples:
    """Prepare cams for a comparison with prototypes (K, P, *size) that have their size and scale already.

    Normalized maps, and the cams that dead ones are revived by, are resized to the prototypes.
    """
    belongs = membership(cams, labels, prototypes, seen, ignore_index, sample_weights, checks)
    samples = prepare_samples(
        cams, belongs.mask, belongs.importance, normalization, reduction=reduction, revive=revive
    )
    size = prototypes.shape[2:]
    if normalization is not None and size != cams.shape[2:]:
        cams = resize(full_precision(samples.cams), size)
        samples = samples._replace(cams=cams, maps=resize(samples.maps, size))
    return samples._replace(belongs=belongs, prototypes=prototypes, seen=seen)


def against_own(samples: Samples) -> Samples:
    """Compare each sample with the prototypes of its class."""
    assert samples.belongs is not None
    assert samples.prototypes is not None
    own = own_prototypes(samples.belongs, samples.maps, samples.prototypes, samples.cams, samples.dead)
    return samples._replace(references=own)


@cam_loss
def prototype_loss(
    cams: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    *,
    distance: str | Distance = "l1",
    normalization: Normalization = "max",
    resolution: Resolution = "map",
    seen: Tensor | None = None,
    revive: bool = True,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
    sample_weights: Tensor | None = None,
) -> Tensor:
    r"""Compare each cam with the prototype of its class.

    .. math:: \frac{1}{N} \sum_i D(M_i, P_{y_i}), \qquad M = \mathrm{relu}(C) / \max \mathrm{relu}(C)

    (Ignesti et al. 2025, arXiv 2510.00664; the normalization and the comparison at the size of the cams are ours.) With soft
    labels, or several labels per sample, the prototypes are mixed in the same proportions.

    Args:
        cams: C, (N, 1, *spatial), raw and signed.
        labels: (N,) class indices, or (N, K) soft labels, one weight per class.
        prototypes: P, (K, 1, *spatial) in [0, 1], of any size, divided by their maxima. With several per class,
            (K, P, *spatial), the nearest counts; for soft labels that is the nearest in L2, whatever ``distance`` is.
        distance: D, ``"l1"``, ``"l2"``, ``"ssim"``, ``"cosine"``, or a callable (N, 1, …), (N, 1, …) -> (N,).
        normalization: of the rectified cams: ``"max"`` divides by the largest value, ``"minmax"`` maps the smallest value to 0
            and the largest to 1, ``"none"`` changes nothing.
        resolution: ``"map"`` resizes the prototypes to the cams (by area), ``"prototype"`` the maps to the prototypes.
        seen: (K,) booleans, which classes have a prototype; a label of another class is an error. Default: all.
        revive: a dead cam, one without positive values, pays 1 − cosine(C, P) in [0, 2] instead, whose gradient brings it back
            to life. False: no gradient reaches a dead cam.
        reduction: ``"none"``, ``"mean"`` or ``"sum"`` over the samples.
        ignore_index: samples with this label are left out.
        sample_weights: (N,) how much each sample counts, at least 0; a sample of weight 0 is left out. Default: all alike.

    Returns:
        A scalar, or (N,) for ``reduction="none"``. With nothing to count the scalar is a zero that is connected to the graph.

    Raises:
        ValueError: a shape, a value or an option that does not fit.
        TypeError: an argument of another kind.
    """
    samples = prototype_samples(
        cams,
        labels,
        _fitted(cams, prototypes, resolution),
        normalization,
        seen=seen,
        ignore_index=ignore_index,
        sample_weights=sample_weights,
        reduction=reduction,
        revive=revive,
    )
    samples = against_own(samples)
    return samples.reduce(samples.distances(distance))


def _fitted(cams: Tensor, prototypes: Tensor, resolution: Resolution) -> Tensor:
    """Check cams and prototypes, and bring the prototypes to the size and scale at which they are compared."""
    check_cams(cams)
    check_prototypes(cams, prototypes)
    check_choice("resolution", resolution, Resolution)
    size = cams.shape[2:] if resolution == "map" else None
    return fit_references(prototypes, size, full_precision(cams).dtype)


@cam_loss
def batch_cam_loss(
    cams: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    *,
    distance: str | Distance = "l1",
    normalization: Normalization = "max",
    resolution: Resolution = "map",
    seen: Tensor | None = None,
    revive: bool = True,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
    sample_weights: Tensor | None = None,
) -> Tensor:
    r"""Compare the mean cam of each class in the batch with the prototype of that class.

    .. math:: \frac{1}{|\text{present}|} \sum_{c\ \text{present}} D\left(\frac{1}{n_c} \sum_{i: y_i = c} M_i,\ P_c\right)

    with M the normalized maps (Ignesti et al. 2025, arXiv 2510.00664). For a convex D it is at most the class-balanced mean of
    the prototype loss, and equal to it with one image per class. With ``revive`` the mean is taken over the living cams and
    weighs with their share of the class, and each dead cam pays its own cost; without it the dead cams enter the mean as zero
    maps. Soft labels, or several labels per sample, weigh a cam into the means of several classes; a class with less than one
    image in total, as most classes have under label smoothing, counts proportionally less in the mean over the classes.

    Args:
        cams: C, (N, 1, *spatial), raw and signed.
        labels: (N,) class indices, or (N, K) soft labels, one weight per class.
        prototypes: P, (K, 1, *spatial) in [0, 1], of any size, divided by their maxima. With several per class,
            (K, P, *spatial), the nearest counts; for soft labels that is the nearest in L2, whatever ``distance`` is.
        distance: D, ``"l1"``, ``"l2"``, ``"ssim"``, ``"cosine"``, or a callable (N, 1, …), (N, 1, …) -> (N,).
        normalization: of the rectified cams: ``"max"`` divides by the largest value, ``"minmax"`` maps the smallest value to 0
            and the largest to 1, ``"none"`` changes nothing.
        resolution: ``"map"`` resizes the prototypes to the cams (by area), ``"prototype"`` the maps to the prototypes.
        seen: (K,) booleans, which classes have a prototype; a label of another class is an error. Default: all.
        revive: a dead cam, one without positive values, pays 1 − cosine(C, P) in [0, 2] instead, whose gradient brings it back
            to life. False: no gradient reaches a dead cam.
        reduction: ``"none"``, ``"mean"`` or ``"sum"`` over the classes in the batch.
        ignore_index: samples with this label are left out.
        sample_weights: (N,) how much each sample counts, at least 0; a sample of weight 0 is left out. Default: all alike.

    Returns:
        A scalar, or (K,) for ``reduction="none"``, zero for an absent class. With nothing to count the scalar is a zero that is
        connected to the graph.

    Raises:
        ValueError: a shape, a value or an option that does not fit.
        TypeError: an argument of another kind.
    """
    samples = prototype_samples(
        cams,
        labels,
        _fitted(cams, prototypes, resolution),
        normalization,
        seen=seen,
        ignore_index=ignore_index,
        sample_weights=sample_weights,
        reduction=reduction,
        revive=revive,
    )
    groups = Groups.of(samples)
    return groups.value(ClassSums.of(samples, groups), distance, samples.reduction)


class Groups(NamedTuple):
    """The classes whose mean cams are compared: all of them, or with more classes than samples those of the batch."""

    member: (
        Tensor | None
    )  #: (N,) the group of each sample; None for soft labels, whose groups are the classes
    prototypes: Tensor  #: (G, P, *size)
    num_classes: int
    classes: Tensor | None = None  #: (G,) class indices; None: group c is class c

    @classmethod
    def of(cls, samples: Samples, every_class: bool = False) -> Groups:
        """Choose the groups, so that the cost does not grow with more classes than samples unless every class is needed."""
        assert samples.belongs is not None
        assert samples.prototypes is not None
        belongs, num_classes = samples.belongs, samples.prototypes.shape[0]
        indices, n = belongs.indices, belongs.num_samples
        if indices is None or every_class or num_classes <= n or not n:
            return cls(indices, samples.prototypes, num_classes)
        # The first sample of a class stands for it: groups without asking the device how many classes there are.
        same = indices.unsqueeze(1) == indices
        first = torch.arange(n, device=indices.device).where(same, n).amin(1)
        return cls(first, belongs.pick(samples.prototypes), num_classes, indices)

    def value(self, sums: ClassSums, distance: str | Distance, reduction: Reduction) -> Tensor:
        """Return the loss of these sums."""
        nothing = sums.averaged == 0
        means = sums.maps / sums.averaged.masked_fill(nothing, 1).reshape(-1, *[1] * (sums.maps.dim() - 1))
        values = nearest(get_distance(distance), means, fill_samples(self.prototypes, nothing, 1))
        present = ~nothing
        if sums.costs is not None:
            present = sums.counts > 0
            values = (values * sums.averaged + sums.costs) / sums.counts.where(present, 1)
        mass = None if sums.mass is None else sums.mass.clamp(max=1)
        values = reduce(values, reduction, present, mass)
        if reduction != "none" or self.classes is None:
            return values
        return values.new_zeros(self.num_classes).index_add(0, self.classes, values)


class ClassSums(NamedTuple):
    """Sums over the samples of each group: all that the loss of a batch needs."""

    maps: Tensor  #: (G, 1, *size), of the normalized maps that are averaged
    averaged: Tensor  #: (G,) the weight of those maps
    counts: Tensor  #: (G,) the weight of all samples
    costs: Tensor | None = None  #: (G,) of the dead cams; None: no cam is left out of the means
    mass: Tensor | None = None  #: (G,) how many samples there are, whatever they weigh; None: whole numbers

    @classmethod
    def of(cls, samples: Samples, groups: Groups) -> ClassSums:
        """Sum over a batch."""
        assert samples.belongs is not None
        belongs = samples.belongs
        rows = samples.maps
        ones = torch.ones_like(rows.flatten(1)[:, 0])
        weights = ones if belongs.mask is None else belongs.mask.to(ones.dtype)
        if belongs.importance is not None:
            weights = weights * belongs.importance
            rows = rows * weights.reshape(-1, *[1] * (rows.dim() - 1))
        counts = _over_groups(weights, belongs, groups)
        averaged, costs = counts, None
        if samples.revive and samples.dead is not None:
            averaged = _over_groups(weights.masked_fill(samples.dead, 0), belongs, groups)
            paid = torch.where(samples.dead, against_own(samples).revival(), 0)
            costs = _over_groups(weights * paid, belongs, groups)
        mass = None
        if belongs.indices is None:
            present = ones if belongs.mask is None else belongs.mask.to(ones.dtype)
            mass = _over_groups(present, belongs, groups)
        return cls(_over_groups(rows, belongs, groups), averaged, counts, costs, mass)

    def pack(self) -> Tensor:
        """Return all of the sums as one tensor, (G, D + 4), to be added up over processes or calls at once."""
        costs = torch.zeros_like(self.counts) if self.costs is None else self.costs
        # A class of whole samples is present, however little these weigh.
        mass = (self.counts > 0).to(self.counts.dtype) if self.mass is None else self.mass
        columns = torch.stack([self.averaged, self.counts, costs, mass], 1)
        return torch.cat([self.maps.flatten(1), columns], 1)

    def unpack(self, packed: Tensor) -> ClassSums:
        """Return sums of the shape of these from one tensor, see :meth:`pack`."""
        maps, columns = packed[:, :-BESIDE_MAPS], packed[:, -BESIDE_MAPS:]
        return ClassSums(maps.reshape(self.maps.shape), *columns.unbind(1))


def _over_groups(values: Tensor, belongs: ClassWeights, groups: Groups) -> Tensor:
    """Return Σ over the samples of each group, (N, …) -> (G, …)."""
    if groups.member is None:
        return class_sums(values, belongs.weights)
    return values.new_zeros(groups.prototypes.shape[0], *values.shape[1:]).index_add(0, groups.member, values)


@cam_loss
def prototype_contrastive_loss(
    cams: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    *,
    temperature: float = 0.1,
    seen: Tensor | None = None,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
    sample_weights: Tensor | None = None,
) -> Tensor:
    r"""Pull each cam to the prototype of its class, and push it away from the others.

    .. math:: -\log \mathrm{softmax}_c \left(\mathrm{unit}(C - \bar C) \cdot \mathrm{unit}(P_c - \bar P) / \tau\right)_y

    with C̄ the mean of the cam over its pixels and P̄ the mean of the prototypes over the classes: what all prototypes share says
    nothing about the class. This loss is the project's own, not the paper's. It uses the signed cam, so a dead cam learns like
    any other; a flat one gives log K and no gradient. Soft labels are the target distribution; several labels share it. Classes
    that are not ``seen`` take no part.

    Args:
        cams: C, (N, 1, *spatial), raw and signed.
        labels: (N,) class indices, or (N, K) soft labels, one weight per class.
        prototypes: P, (K, 1, *spatial), of any size, to which the cams are resized. With several per class, (K, P, *spatial), the
            nearest counts. The cost grows with their size: resize many large ones first.
        temperature: τ > 0; lower is sharper.
        seen: (K,) booleans, which classes have a prototype; a label of another class is an error. Default: all.
        reduction: ``"none"``, ``"mean"`` or ``"sum"`` over the samples.
        ignore_index: samples with this label are left out.
        sample_weights: (N,) how much each sample counts, at least 0; a sample of weight 0 is left out. Default: all alike.

    Returns:
        A scalar, or (N,) for ``reduction="none"``. With nothing to count the scalar is a zero that is connected to the graph.

    Raises:
        ValueError: a shape, a value or an option that does not fit.
        TypeError: an argument of another kind.
    """
    check_positive("temperature", temperature)
    prototypes = contrasted(_fitted(cams, prototypes, "prototype"), seen)
    samples = prototype_samples(
        cams,
        labels,
        prototypes,
        None,
        seen=seen,
        ignore_index=ignore_index,
        sample_weights=sample_weights,
        reduction=reduction,
    )
    return samples.reduce(contrast(samples, temperature))


def contrasted(prototypes: Tensor, seen: Tensor | None) -> Tensor:
    """Subtract what all prototypes (K, P, *size) share, and bring each to unit length."""
    num_classes, several = prototypes.shape[:2]
    rows = prototypes.flatten(0, 1)
    if seen is None:
        shared = rows.mean(0)
    else:
        present = seen.to(rows.dtype).repeat_interleave(several).reshape(-1, *[1] * (rows.dim() - 1))
        shared = (present * rows).sum(0) / present.sum().clamp(min=1)
    return unit(rows - shared).reshape(num_classes, several, *prototypes.shape[2:])


def contrast(samples: Samples, temperature: float) -> Tensor:
    """Return the cross-entropy of each cam over the classes, with prototypes from :func:`contrasted`."""
    assert samples.belongs is not None
    assert samples.prototypes is not None
    prototypes, belongs, seen = samples.prototypes, samples.belongs, samples.seen
    # The direction does not depend on the scale, and the cams are smaller here than where they are compared.
    maps = resize(scaled(samples.cams), prototypes.shape[2:]).flatten(1)
    centered = maps - maps.mean(1, keepdim=True)
    lengths: Tensor = torch.linalg.vector_norm(centered, dim=1, keepdim=True)
    # A flat cam minus its mean is rounding noise, not a direction.
    flat = lengths <= 8 * torch.finfo(maps.dtype).eps * math.sqrt(maps.shape[1])
    projections: Tensor = (centered @ prototypes.flatten(0, 1).flatten(1).T).masked_fill(flat, 0)
    logits = projections / (temperature * lengths.masked_fill(flat, 1))
    if prototypes.shape[1] > 1:
        logits = logits.unflatten(1, prototypes.shape[:2]).amax(2)
    if seen is not None:
        logits = logits.masked_fill(~seen, -math.inf)
    log_probabilities = logits.log_softmax(1)
    if belongs.indices is not None:
        own = log_probabilities.gather(1, belongs.indices.unsqueeze(1)).squeeze(1)
        return own.neg()
    if seen is not None:  # weight 0 times −inf is not 0
        log_probabilities = log_probabilities.masked_fill(~seen, 0)
    return (belongs.shares * log_probabilities).sum(1).neg()


@cam_loss
def foreground_loss(
    cams: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    *,
    normalization: ForegroundNormalization = "none",
    seen: Tensor | None = None,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
    sample_weights: Tensor | None = None,
) -> Tensor:
    r"""Penalize evidence outside the foreground of the class, for or against it.

    .. math:: \sum \left((1 - F_y)\, C\right)^2 \quad\text{or, as a share,}\quad \frac{\sum (1 - F_y)\, |C|}{\sum |C|}

    This loss is the project's own. It follows Ross et al. 2017 (eq. 1: gradients of Σ log p, squared, outside a mask), with a
    foreground from the training images instead of annotations and the signed cam instead of input gradients. It is made for an
    element-wise cam (``"hires_cam"``) of the score Σ log p: Grad-CAM averages over places, behind which a fully connected head
    can hide what it uses, and the cam of the label says nothing of evidence against the other classes.

    The first form is a sum over pixels in [0, ∞) that grows with the square of the cam; the second is in [0, 1]. Both are 0 for
    an all-zero cam, with a zero gradient. Nothing has to be positive, so a dead cam learns like any other. The foregrounds of
    several labels add up, each times its weight divided by the largest, to at most 1.

    Args:
        cams: C, (N, 1, *spatial), raw and signed.
        labels: (N,) class indices, or (N, K) soft labels, one weight per class.
        prototypes: F, (K, 1, *spatial) in [0, 1], of any size, resized by area to the cams. With several per class,
            (K, P, *spatial), their union, the largest at each place, is the foreground.
        normalization: ``"none"`` squares the raw cam outside; ``"share"`` is the share of its absolute value that lies outside.
        seen: (K,) booleans, which classes have a prototype; a label of another class is an error. Default: all.
        reduction: ``"none"``, ``"mean"`` or ``"sum"`` over the samples.
        ignore_index: samples with this label are left out.
        sample_weights: (N,) how much each sample counts, at least 0; a sample of weight 0 is left out. Default: all alike.

    Returns:
        A scalar, or (N,) for ``reduction="none"``. With nothing to count the scalar is a zero that is connected to the graph.

    Raises:
        ValueError: a shape, a value or an option that does not fit.
        TypeError: an argument of another kind.
    """
    check_cams(cams)
    check_prototypes(cams, prototypes)
    check_choice("normalization", normalization, ForegroundNormalization)
    maps = foregrounds(prototypes, cams, None)
    samples = prototype_samples(
        cams,
        labels,
        maps,
        None,
        seen=seen,
        ignore_index=ignore_index,
        sample_weights=sample_weights,
        reduction=reduction,
    )
    return samples.reduce(outside(own_foreground(samples), normalization))


def foregrounds(prototypes: Tensor, cams: Tensor, checks: ValueChecks | None) -> Tensor:
    """Return the foreground of each class at the size of the cams, (K, P, *spatial) -> (K, 1, *size)."""
    maps = resize(prototypes.to(full_precision(cams).dtype), cams.shape[2:]).amax(1, keepdim=True)
    checks = ValueChecks(synchronize=True) if checks is None else checks
    checks.require(
        (maps >= -_ROUNDING) & (maps <= 1 + _ROUNDING),
        "prototypes: expected foregrounds from 0 to 1, got others, or NaN; divide them by their maximum",
    )
    return maps


def own_foreground(samples: Samples) -> Samples:
    """Compare each cam with the foreground of its labels."""
    belongs, maps = samples.belongs, samples.prototypes
    assert belongs is not None
    assert maps is not None
    if belongs.indices is not None:
        return samples._replace(references=belongs.pick(maps))
    largest = belongs.weights.amax(1, keepdim=True)
    weights = belongs.weights / largest.masked_fill(largest == 0, 1)
    union = (weights.to(maps.dtype) @ maps.flatten(1)).clamp(max=1)
    return samples._replace(references=union.reshape(-1, *maps.shape[1:]))


def outside(samples: Samples, normalization: ForegroundNormalization) -> Tensor:
    """Return Σ ((1 − F) C)², or Σ (1 − F) |C| / Σ |C|, of each sample: (N,)."""
    assert samples.references is not None
    cams, background = samples.cams, 1 - samples.references
    if normalization == "none":
        return (background * cams).square().flatten(1).sum(1)
    # The share does not depend on the scale, so no gradient flows through it; divided by it, the sum is at least 1.
    scale = peak(cams.detach())
    zero = scale < torch.finfo(cams.dtype).tiny
    size = cams.masked_fill(zero, 0).abs() / scale.masked_fill(zero, 1)
    total = size.flatten(1).sum(1)
    return (background * size).flatten(1).sum(1) / total.masked_fill(zero.flatten(), 1)
