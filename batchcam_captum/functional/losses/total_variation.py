"""Total variation: how much neighbouring pixels of a cam differ."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import ValueChecks
from ..maps import Normalization, prepare
from ..precision import no_autocast
from ..reduce import Reduction, reduce
from .comparison import check_cams, check_counted, revived, without


def total_variation_loss(
    cams: Tensor,
    *,
    normalization: Normalization = "max",
    revive: bool = True,
    reduction: Reduction = "mean",
    counted: Tensor | None = None,
    sample_weights: Tensor | None = None,
    checks: ValueChecks | None = None,
) -> Tensor:
    r"""Total variation of the maps: how much neighbouring pixels differ.

    .. math:: \sum_d \mathrm{mean}_p\, |M_{p + e_d} - M_p|, \qquad M = \mathrm{relu}(C) / \max \mathrm{relu}(C)

    with d over the spatial dimensions and p over the pixels that have a next one. (Rudin, Osher and Fatemi 1992, in its
    anisotropic form; the mean over pixels, so that its weight does not depend on the size of the map, is ours.) In [0, d]; 0 for
    a flat map.

    Args:
        cams: C, (N, 1, *spatial), raw and signed.
        normalization: of the rectified cams, see :func:`~batchcam_captum.functional.normalize`. With ``"none"`` a smaller cam is
            a smoother one.
        revive: a dead cam pays 1 − cosine(C, 1), the distance from a map that is positive everywhere, in [0, 2], instead of 0,
            which dying would otherwise reach.
        reduction: over the samples.
        counted: (N,) booleans, which samples count. Default: all.
        sample_weights: see :func:`prototype_loss`.
        checks: see :func:`prototype_loss`.

    Returns:
        A scalar, or (N,) for ``reduction="none"``. An empty batch gives a zero that is connected to the graph.

    Raises:
        ValueError: a shape or an option that does not fit; the message says what to do.
        TypeError: cams that are not floating.
    """
    check_cams(cams)
    counted = check_counted(cams, counted, sample_weights, checks)
    with no_autocast(cams):
        cams = without(cams, counted)
        prepared = prepare(cams, normalization)
        steps = [prepared.maps.diff(dim=d).abs().flatten(1).mean(1) for d in range(2, cams.dim())]
        values = torch.stack(steps).sum(0)
        if revive:
            values = revived(values, cams, torch.ones_like(prepared.maps), prepared.dead)
        return reduce(values, reduction, counted, sample_weights)
