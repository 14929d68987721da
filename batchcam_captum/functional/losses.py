"""The losses as functions: how far cams are from what they should resemble.

All of them take raw, signed cams (N, 1, *spatial) with a graph, rectify and normalise them, and compare them with a map of the
class or of the image. The working definitions follow Batch-CAM (Ignesti et al. 2025, arXiv 2510.00664), which leaves
normalisation, resolution and weighting open; what is chosen here is said in each function.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .checks import ValueChecks
from .class_means import class_means, class_sums
from .comparison import (
    ImageResolution,
    Resolution,
    check_cams,
    check_prototypes,
    check_resolution,
    check_temperature,
    compared,
    fit,
    grouped,
    membership,
    revived,
    without,
)
from .distance import Distance, unit
from .maps import Normalization, peak, prepare
from .precision import full_precision, no_autocast
from .reduce import Reduction, check_reduction, reduce


def prototype_loss(
    cams: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    *,
    seen: Tensor | None = None,
    distance: str | Distance = "l1",
    normalization: Normalization = "max",
    resolution: Resolution = "map",
    revive: bool = True,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
    checks: ValueChecks | None = None,
) -> Tensor:
    r"""Prototype loss: each image's cam against the prototype of its class.

    .. math:: \frac{1}{N} \sum_i D(M_i, P_{y_i}), \qquad M = \mathrm{relu}(C) / \max \mathrm{relu}(C)

    (Ignesti et al. 2025, arXiv 2510.00664; the normalisation and the comparison at the map's size are ours.)

    Args:
        cams: C, (N, 1, *spatial), raw and signed.
        labels: (N,) class indices, or (N, K) soft labels (the prototypes are mixed alike).
        prototypes: P, (K, 1, *spatial) in [0, 1], of any size; each is divided by its maximum.
        seen: (K,) booleans, which classes have a prototype; a label of another class is an error. Default: all.
        distance: D, ``"l1"``, ``"l2"``, ``"ssim"``, ``"cosine"``, or a callable (N, 1, …), (N, 1, …) -> (N,).
        normalization: of the rectified cams, see :func:`~batchcam_captum.functional.normalize`.
        resolution: ``"map"`` compares at the cams' size, ``"prototype"`` enlarges the cams instead.
        revive: a dead cam pays 1 − cosine(C, P), whose gradient leads back to life, instead of D(0, P), which has none and is
            often smaller than that of a living cam.
        reduction: over the samples.
        ignore_index: labels of this value are left out.
        checks: where checks of values go; default: they raise at once.

    Returns:
        A scalar, or (N,) for ``reduction="none"``. An empty batch gives a zero that is connected to the graph.

    Raises:
        ValueError: a shape, a value or an option that does not fit; the message says what to do.
        TypeError: labels or cams of a wrong kind.
    """
    check_cams(cams)
    check_prototypes(cams, prototypes)
    with no_autocast(cams):
        belongs = membership(cams, labels, prototypes, seen, ignore_index, checks)
        cams = without(cams, belongs.counted)
        prepared = prepare(cams, normalization)
        maps, prototypes = fit(prepared.maps, prototypes, resolution)
        own = belongs.pick(prototypes)
        values = compared(maps, own, distance, prepared.dead if revive else ~belongs.counted)
        if revive:
            values = revived(values, cams, own, prepared.dead)
        return reduce(values, reduction, belongs.counted)


def batch_cam_loss(
    cams: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    *,
    seen: Tensor | None = None,
    distance: str | Distance = "l1",
    normalization: Normalization = "max",
    resolution: Resolution = "map",
    revive: bool = True,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
    checks: ValueChecks | None = None,
) -> Tensor:
    r"""Batch-CAM loss: the mean cam of each class in the batch against the prototype of that class.

    .. math:: \frac{1}{|\text{present}|} \sum_{c\ \text{present}} D\Big(\frac{1}{n_c} \sum_{i: y_i = c} M_i,\ P_c\Big)

    (Ignesti et al. 2025, arXiv 2510.00664.) For a convex D it is at most the class-balanced mean of
    :func:`prototype_loss`, and equal to it with one image a class.

    Args:
        cams: see :func:`prototype_loss`.
        labels: see :func:`prototype_loss`; soft labels weigh a cam into the means of several classes.
        prototypes: see :func:`prototype_loss`.
        seen: see :func:`prototype_loss`.
        distance: see :func:`prototype_loss`.
        normalization: see :func:`prototype_loss`; each cam is normalised before the mean is taken.
        resolution: see :func:`prototype_loss`.
        revive: the mean is taken over the living cams and weighs with their share of the class; the dead ones pay
            1 − cosine(C, P) each. Without it the dead cams enter the mean as zero maps.
        reduction: over the classes in the batch.
        ignore_index: see :func:`prototype_loss`.
        checks: see :func:`prototype_loss`.

    Returns:
        A scalar, or (K,) for ``reduction="none"``, zero for a class that is absent. An empty batch gives a zero that is
        connected to the graph.

    Raises:
        ValueError: see :func:`prototype_loss`.
        TypeError: see :func:`prototype_loss`.
    """
    check_cams(cams)
    check_prototypes(cams, prototypes)
    with no_autocast(cams):
        belongs = membership(cams, labels, prototypes, seen, ignore_index, checks)
        cams = without(cams, belongs.counted)
        prepared = prepare(cams, normalization)
        maps, prototypes = fit(prepared.maps, prototypes, resolution)
        num_classes = prototypes.shape[0]
        groups = grouped(belongs, prototypes)
        counts = groups.weights.sum(0)
        averaged = groups.weights * ~prepared.dead.unsqueeze(1) if revive else groups.weights
        means, averaged_counts = class_means(maps, averaged)
        values = compared(means, groups.prototypes, distance, averaged_counts == 0)
        share = counts.masked_fill(counts == 0, 1)
        values = values * (averaged_counts / share)
        if revive:
            zero = torch.zeros_like(values[:1])
            costs = revived(zero, cams, belongs.pick(prototypes), prepared.dead)
            values = values + class_sums(costs, groups.weights) / share
        if reduction == "none":
            return groups.spread(values, num_classes)
        return reduce(values, reduction, counts > 0)


def prototype_contrastive_loss(
    cams: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    *,
    seen: Tensor | None = None,
    temperature: float = 0.1,
    resolution: Resolution = "prototype",
    reduction: Reduction = "mean",
    ignore_index: int = -100,
    checks: ValueChecks | None = None,
) -> Tensor:
    r"""Pull a cam to the prototype of its class, and push it from the others.

    .. math:: -\log \mathrm{softmax}_c \big(\mathrm{unit}(C - \bar C) \cdot \mathrm{unit}(P_c - \bar P) / \tau\big)_y

    with C̄ the cam's mean over its pixels and P̄ the mean of the prototypes over the classes: what all prototypes share tells
    nothing of the class. This term is this project's own, not the paper's. It uses the signed cam, so a dead cam learns like
    any other; a flat one gives log K and no gradient.

    Args:
        cams: see :func:`prototype_loss`.
        labels: see :func:`prototype_loss`; soft labels are the target distribution.
        prototypes: see :func:`prototype_loss`.
        seen: see :func:`prototype_loss`; the other classes take no part.
        temperature: τ > 0; lower is sharper.
        resolution: see :func:`prototype_loss`.
        reduction: over the samples.
        ignore_index: see :func:`prototype_loss`.
        checks: see :func:`prototype_loss`.

    Returns:
        A scalar, or (N,) for ``reduction="none"``. An empty batch gives a zero that is connected to the graph.

    Raises:
        ValueError: see :func:`prototype_loss`; or a temperature that is not positive.
        TypeError: see :func:`prototype_loss`.
    """
    check_cams(cams)
    check_prototypes(cams, prototypes)
    check_temperature(temperature)
    with no_autocast(cams):
        belongs = membership(cams, labels, prototypes, seen, ignore_index, checks)
        maps, prototypes = fit(without(full_precision(cams), belongs.counted), prototypes, resolution)
        centred = maps.flatten(1) - maps.flatten(1).mean(1, keepdim=True)
        # A flat cam minus its mean is rounding noise, not a direction.
        noise = 8 * torch.finfo(maps.dtype).eps * peak(maps.detach().flatten(1))
        flat = peak(centred.detach()) <= noise
        others = (
            torch.zeros_like(prototypes[:, 0].flatten(1)[:, 0], dtype=torch.bool) if seen is None else ~seen
        )
        present = (~others).to(maps.dtype)
        rows = prototypes.flatten(1)
        rows = rows - (present @ rows) / present.sum().clamp(min=1)
        logits = unit(centred.masked_fill(flat, 0)) @ unit(rows).T / temperature
        log_probabilities = logits.masked_fill(others, -math.inf).log_softmax(1)
        # An unseen class has weight 0 and log-probability −inf; 0 · −inf is not 0.
        values = -(belongs.weights * log_probabilities.masked_fill(others, 0)).sum(1)
        return reduce(values, reduction, belongs.counted)


def image_loss(
    cams: Tensor,
    images: Tensor,
    *,
    distance: str | Distance = "l2",
    normalization: Normalization = "max",
    resolution: ImageResolution = "map",
    revive: bool = True,
    reduction: Reduction = "mean",
    counted: Tensor | None = None,
) -> Tensor:
    """Each image's cam against the image itself, (1/N) Σ D(M_i, x_i): the authors' term before Batch-CAM.

    Args:
        cams: see :func:`prototype_loss`.
        images: x, (N, 1, *spatial) in [0, 1], of any size, see :func:`~batchcam_captum.functional.image_maps`.
        distance: see :func:`prototype_loss`.
        normalization: see :func:`prototype_loss`.
        resolution: ``"map"`` compares at the cams' size, ``"image"`` at the images'.
        revive: see :func:`prototype_loss`, with the image in the place of the prototype.
        reduction: over the samples.
        counted: (N,) booleans, which samples count. Default: all.

    Returns:
        A scalar, or (N,) for ``reduction="none"``. An empty batch gives a zero that is connected to the graph.

    Raises:
        ValueError: see :func:`prototype_loss`; or not one image a cam.
    """
    check_cams(cams)
    if images.shape[:2] != cams.shape[:2] or images.dim() != cams.dim():
        raise ValueError(
            f"images: expected one image of one channel for each of the cams {tuple(cams.shape)}, got {tuple(images.shape)}; "
            f"see functional.image_maps"
        )
    check_reduction(reduction)
    check_resolution(resolution, ImageResolution)
    counted = torch.ones_like(cams[:, 0].flatten(1)[:, 0], dtype=torch.bool) if counted is None else counted
    with no_autocast(cams):
        cams = without(cams, counted)
        prepared = prepare(cams, normalization)
        maps, images = fit(prepared.maps, images, "map" if resolution == "map" else "prototype")
        values = compared(maps, images, distance, prepared.dead if revive else ~counted)
        if revive:
            values = revived(values, cams, images, prepared.dead)
        return reduce(values, reduction, counted)
