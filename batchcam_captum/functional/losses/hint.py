"""A loss as in HINT: the mean squared difference between cam and mask."""

from __future__ import annotations

from torch import Tensor

from ..checks import ValueChecks
from ..distance import l2_distance
from ..maps import Normalization
from ..precision import no_autocast
from ..reduce import Reduction
from .masks import MaskResolution, annotated


def hint_loss(
    cams: Tensor,
    masks: Tensor,
    *,
    normalization: Normalization = "max",
    resolution: MaskResolution = "map",
    revive: bool = True,
    reduction: Reduction = "mean",
    counted: Tensor | None = None,
    sample_weights: Tensor | None = None,
    checks: ValueChecks | None = None,
) -> Tensor:
    r"""A loss as in HINT: the mean squared difference between cam and mask.

    .. math:: \mathrm{mean}\, (M - m)^2, \qquad M = \mathrm{relu}(C) / \max \mathrm{relu}(C)

    (After Selvaraju et al. 2019, who rank the regions of an image by the attention of humans; the squared difference in the place
    of the ranking is ours.) In [0, 1]; a dead cam without ``revive`` gives mean(m²) and no gradient.

    Args:
        cams: C, (N, 1, *spatial), raw and signed.
        masks: see :func:`energy_loss`.
        normalization: see :func:`prototype_loss`.
        resolution: ``"map"`` compares at the cams' size, ``"mask"`` enlarges the cams instead.
        revive: a dead cam pays 1 − cosine(C, mask) instead, in [0, 2], whose gradient leads back to life.
        reduction: over the samples.
        counted: (N,) booleans, which samples count. Default: all.
        sample_weights: see :func:`prototype_loss`.
        checks: see :func:`prototype_loss`.

    Returns:
        A scalar, or (N,) for ``reduction="none"``. A batch without an annotation gives a zero that is connected to the graph.

    Raises:
        ValueError: a shape, a value or an option that does not fit; the message says what to do.
        TypeError: cams or masks of a wrong kind.
    """
    with no_autocast(cams):
        own = annotated(cams, masks, normalization, resolution, counted, sample_weights, checks)
        values = l2_distance(own.maps, own.masks)
        return own.reduced(values, revive, reduction, sample_weights)
