"""The separability loss: how far the maps of the label and of the most confused class overlap."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..checks import ValueChecks
from ..maps import Normalization, prepare
from ..precision import no_autocast
from ..reduce import Reduction, reduce
from .comparison import check_cams, check_counted, revived, without


def separability_loss(
    cams: Tensor,
    *,
    threshold: float = 0.5,
    sharpness: float = 10.0,
    normalization: Normalization = "max",
    revive: bool = True,
    reduction: Reduction = "mean",
    counted: Tensor | None = None,
    sample_weights: Tensor | None = None,
    checks: ValueChecks | None = None,
) -> Tensor:
    r"""Attention separability: how far the maps of the label and of the most confused class overlap.

    .. math:: \frac{2 \sum \min(M_y, M_c)\, T}{\sum (M_y + M_c)}, \qquad T = \mathrm{sigmoid}\left(\omega (M_y - \sigma)\right)

    (Wang et al. 2019, "Sharpen Focus: Learning with Attention Separability and Consistency", ICASC: L_AS, with T the soft mask of
    the label's map. That the maps are normalised, each by itself, and the values of σ and ω are ours.) In [0, 1]; 0 where the
    maps do not overlap. A dead map overlaps with nothing: of the confused class that is welcome, and of the label see ``revive``.

    Args:
        cams: (N, 2, *spatial), raw and signed: the cam of the label's score and that of the score ``"confused"``, see
            :func:`~batchcam_captum.functional.select_scores`.
        threshold: σ as a share of the largest value of the label's map, from 0 to 1.
        sharpness: ω > 0; large values make T a step.
        normalization: of the rectified cams, see :func:`~batchcam_captum.functional.normalize`.
        revive: where the label's cam is dead, the sample pays 1 − cosine(C_y, 1), the distance from a map that is positive
            everywhere, in [0, 2], instead of 0, which dying would otherwise reach.
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
    check_cams(cams, channels=2)
    check_soft_mask(threshold, sharpness)
    counted = check_counted(cams, counted, sample_weights, checks)
    with no_autocast(cams):
        of_label, of_confused = without(cams, counted).split(1, 1)
        label, confused = prepare(of_label, normalization), prepare(of_confused, normalization)
        first, second = label.maps.flatten(1), confused.maps.flatten(1)
        soft_mask = torch.sigmoid(sharpness * (first - threshold * first.amax(1, keepdim=True)))
        total = (first + second).sum(1)
        overlap = 2 * (torch.minimum(first, second) * soft_mask).sum(1)
        values = overlap / total.masked_fill(label.dead & confused.dead, 1)
        if revive:
            values = revived(values, of_label, torch.ones_like(label.maps), label.dead)
        return reduce(values, reduction, counted, sample_weights)


def check_soft_mask(threshold: float, sharpness: float) -> None:
    """Raise a ``ValueError`` unless the threshold is a share, and the sharpness positive and finite."""
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold: expected a share from 0 to 1, got {threshold}")
    if not 0 < sharpness < math.inf:
        raise ValueError(f"sharpness: expected a positive number, got {sharpness}")
