"""Right for the right reasons, on cams: what of a cam lies outside the mask, squared."""

from __future__ import annotations

from torch import Tensor

from ..checks import ValueChecks
from ..maps import Normalization
from ..precision import no_autocast
from ..reduce import Reduction
from .masks import MaskResolution, annotated


def rrr_cam_loss(
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
    r"""Right for the right reasons, on cams: the squared evidence outside the mask.

    .. math:: \sum \left((1 - m)\, M\right)^2, \qquad M = \mathrm{relu}(C) / \max \mathrm{relu}(C)

    (Ross et al. 2017, eq. 1, on input gradients; Schramowski et al. 2020 put the normalised Grad-CAM in their place. Both mark
    what is *wrong*; here, as in every loss against masks, a mask says where the evidence should be, so the paper's mask is
    1 − m.) A sum over pixels as in the papers, in [0, number of pixels], so its weight depends on the size of the map. A dead cam
    without ``revive`` gives 0 and no gradient.

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
        values = ((1 - own.masks) * own.maps).square().flatten(1).sum(1)
        return own.reduced(values, revive, reduction, sample_weights)
