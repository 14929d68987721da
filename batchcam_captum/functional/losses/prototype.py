"""The prototype loss: each cam against the prototype of its class."""

from __future__ import annotations

from torch import Tensor

from ..checks import ValueChecks
from ..distance import Distance
from ..maps import Normalization, prepare
from ..precision import no_autocast
from ..reduce import Reduction, reduce
from .comparison import (
    Resolution,
    check_cams,
    check_prototypes,
    compared,
    fit,
    membership,
    own_prototypes,
    revived,
    without,
)


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
    sample_weights: Tensor | None = None,
    checks: ValueChecks | None = None,
) -> Tensor:
    r"""Prototype loss: each image's cam against the prototype of its class.

    .. math:: \frac{1}{N} \sum_i D(M_i, P_{y_i}), \qquad M = \mathrm{relu}(C) / \max \mathrm{relu}(C)

    (Ignesti et al. 2025, arXiv 2510.00664; the normalisation and the comparison at the map's size are ours.)

    Args:
        cams: C, (N, 1, *spatial), raw and signed.
        labels: (N,) class indices, or (N, K) soft labels or several labels a sample (the prototypes are mixed alike).
        prototypes: P, (K, 1, *spatial) in [0, 1], of any size; each is divided by its maximum. Or several a class,
            (K, P, *spatial): the nearest one counts. With soft labels that is the nearest in L2, whatever ``distance`` is.
        seen: (K,) booleans, which classes have a prototype; a label of another class is an error. Default: all.
        distance: D, ``"l1"``, ``"l2"``, ``"ssim"``, ``"cosine"``, or a callable (N, 1, …), (N, 1, …) -> (N,).
        normalization: of the rectified cams, see :func:`~batchcam_captum.functional.normalize`.
        resolution: ``"map"`` compares at the cams' size, ``"prototype"`` enlarges the cams instead.
        revive: a dead cam pays 1 − cosine(C, P), whose gradient leads back to life, instead of D(0, P), which has none and is
            often smaller than that of a living cam.
        reduction: over the samples.
        ignore_index: labels of this value are left out.
        sample_weights: (N,) how much each sample counts, at least 0; one of weight 0 is left out. Default: all alike.
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
        belongs = membership(cams, labels, prototypes, seen, ignore_index, sample_weights, checks)
        cams = without(cams, belongs.counted)
        prepared = prepare(cams, normalization)
        maps, prototypes = fit(prepared.maps, prototypes, resolution)
        own = own_prototypes(belongs, maps, prototypes, cams, prepared.dead)
        values = compared(maps, own, distance, prepared.dead if revive else ~belongs.counted)
        if revive:
            values = revived(values, cams, own, prepared.dead)
        return reduce(values, reduction, belongs.counted, belongs.importance)
