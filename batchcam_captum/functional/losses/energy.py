"""The energy loss: the share of a cam that lies outside the mask."""

from __future__ import annotations

from torch import Tensor

from ..checks import ValueChecks
from ..precision import no_autocast
from ..reduce import Reduction
from .masks import MaskResolution, annotated


def energy_loss(
    cams: Tensor,
    masks: Tensor,
    *,
    resolution: MaskResolution = "map",
    revive: bool = True,
    reduction: Reduction = "mean",
    counted: Tensor | None = None,
    sample_weights: Tensor | None = None,
    checks: ValueChecks | None = None,
) -> Tensor:
    r"""Energy loss: the share of the positive evidence that lies outside the mask.

    .. math:: 1 - \frac{\sum m\, C^+}{\sum C^+} = \frac{\sum (1 - m)\, C^+}{\sum C^+}, \qquad C^+ = \mathrm{relu}(C)

    (Rao et al. 2023, "Studying How to Efficiently and Effectively Guide Models with Explanations": their energy loss is the
    negative share inside, which is less by the constant 1.) In [0, 1]; a dead cam without ``revive`` gives 1 and no gradient.
    Scale-free, so there is no normalisation to choose.

    Args:
        cams: C, (N, 1, *spatial), raw and signed.
        masks: m, (N, 1, *spatial) in [0, 1], of any size and number type: where the evidence should be. Area-resized to the cams'
            size without lowering its peak. All zero: the sample has no annotation and is left out.
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
        own = annotated(cams, masks, "max", resolution, counted, sample_weights, checks)
        outside = ((1 - own.masks) * own.maps).flatten(1).sum(1)
        # All of nothing is outside: a dead cam gets the worst value, not the best.
        values = outside.masked_fill(own.dead, 1) / own.maps.flatten(1).sum(1).masked_fill(own.dead, 1)
        return own.reduced(values, revive, reduction, sample_weights)
