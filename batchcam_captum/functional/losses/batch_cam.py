"""The Batch-CAM loss: the mean cam of each class against the prototype of that class."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import ValueChecks
from ..class_means import class_sums
from ..distance import Distance
from ..maps import Normalization, prepare
from ..precision import no_autocast
from ..reduce import Reduction, reduce
from .comparison import (
    Groups,
    Resolution,
    all_classes,
    check_cams,
    check_prototypes,
    compared,
    fit,
    grouped,
    membership,
    own_prototypes,
    revived,
    without,
)


class ClassSums(NamedTuple):
    """Sums over the samples of each class (or group), all that :func:`batch_cam_loss` needs of them.

    As one tensor, (G, D + 4), so that they can be added up over processes at once: see :meth:`mapped`.
    """

    maps: Tensor  #: (G, 1, *spatial), of the normalised maps that are averaged
    averaged: Tensor  #: (G,) the weight of those maps
    costs: Tensor  #: (G,) of the dead cams' costs
    counts: Tensor  #: (G,) the weight of all samples
    mass: Tensor  #: (G,) how many samples there are, whatever they weigh; less than one where labels are soft

    @classmethod
    def of(cls, maps: Tensor, groups: Groups, dead: Tensor, costs: Tensor | None) -> ClassSums:
        """Of a batch.

        Args:
            maps: (N, 1, *spatial), zero where dead.
            groups: which samples belong to which group, and how much.
            dead: (N,) booleans.
            costs: (N,), of the dead cams, zero elsewhere; they are then left out of the means. None: they are averaged as zero
                maps.
        """
        weights = groups.weights
        counts = weights.sum(0)
        mass = counts if groups.labels is weights else groups.labels.sum(0)
        if costs is None:
            return cls(class_sums(maps, weights), counts, torch.zeros_like(counts), counts, mass)
        # The maps of the dead are zero, so only their weight has to be left out.
        columns = torch.cat([maps.flatten(1), (~dead).to(maps.dtype).unsqueeze(1), costs.unsqueeze(1)], 1)
        sums = class_sums(columns, weights)
        return cls(sums[:, :-2].reshape(-1, *maps.shape[1:]), sums[:, -2], sums[:, -1], counts, mass)

    @property
    def means(self) -> Tensor:
        """(G, 1, *spatial); zero where nothing is averaged."""
        divisor = self.averaged.masked_fill(self.averaged == 0, 1)
        return self.maps / divisor.reshape(-1, *[1] * (self.maps.dim() - 1))

    def mapped(self, function: Callable[[Tensor], Tensor]) -> ClassSums:
        """The result of a function of all of them as one tensor, (G, D + 4) -> (G, D + 4)."""
        columns = torch.stack(self[1:], 1)
        packed = function(torch.cat([self.maps.flatten(1), columns], 1))
        rest = packed[:, -BESIDE_MAPS:].unbind(1)
        return ClassSums(packed[:, :-BESIDE_MAPS].reshape(self.maps.shape), *rest)


#: How many sums there are beside those of the maps.
BESIDE_MAPS = len(ClassSums._fields) - 1


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
    sample_weights: Tensor | None = None,
    total: Callable[[Tensor], Tensor] | None = None,
    checks: ValueChecks | None = None,
) -> Tensor:
    r"""Batch-CAM loss: the mean cam of each class in the batch against the prototype of that class.

    .. math:: \frac{1}{|\text{present}|} \sum_{c\ \text{present}} D\left(\frac{1}{n_c} \sum_{i: y_i = c} M_i,\ P_c\right)

    (Ignesti et al. 2025, arXiv 2510.00664.) For a convex D it is at most the class-balanced mean of
    :func:`prototype_loss`, and equal to it with one image a class. With soft labels a class of which there is less than one
    image in all, as of most classes under label smoothing, counts only as much in the mean over the classes.

    Args:
        cams: see :func:`prototype_loss`.
        labels: see :func:`prototype_loss`; soft labels, or several a sample, weigh a cam into the means of several classes.
        prototypes: see :func:`prototype_loss`.
        seen: see :func:`prototype_loss`.
        distance: see :func:`prototype_loss`.
        normalization: see :func:`prototype_loss`; each cam is normalised before the mean is taken.
        resolution: see :func:`prototype_loss`.
        revive: the mean is taken over the living cams and weighs with their share of the class; the dead ones pay
            1 − cosine(C, P) each. Without it the dead cams enter the mean as zero maps.
        reduction: over the classes in the batch.
        ignore_index: see :func:`prototype_loss`.
        sample_weights: see :func:`prototype_loss`; they weigh a cam into the mean of its class.
        total: (K, S) -> (K, S), called once with sums over the samples of each class, to which it adds those of other processes
            or batches; see :class:`~batchcam_captum.functional.ClassSums`. The loss is then that of all of them together.
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
        belongs = membership(cams, labels, prototypes, seen, ignore_index, sample_weights, checks)
        cams = without(cams, belongs.counted)
        prepared = prepare(cams, normalization)
        maps, prototypes = fit(prepared.maps, prototypes, resolution)
        num_classes = prototypes.shape[0]
        groups = all_classes(belongs, prototypes) if total is not None else grouped(belongs, prototypes)
        costs = None
        if revive:
            own = own_prototypes(belongs, maps, prototypes, cams, prepared.dead)
            costs = revived(torch.zeros_like(cams.flatten(1)[:, 0]), cams, own, prepared.dead)
        sums = ClassSums.of(maps, groups, prepared.dead, costs)
        if total is not None:
            sums = sums.mapped(total)
        values = compared(sums.means, groups.prototypes, distance, sums.averaged == 0)
        present = sums.counts > 0
        values = (values * sums.averaged + sums.costs) / sums.counts.where(present, 1)
        reduced = reduce(values, reduction, present, sums.mass.clamp(max=1))
        return groups.spread(reduced, num_classes) if reduction == "none" else reduced
