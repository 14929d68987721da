"""The foreground loss: what lies outside the foreground of the class."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ..checks import ValueChecks
from ..class_means import ClassWeights
from ..maps import peak, resize
from ..precision import full_precision, no_autocast
from ..reduce import Reduction, reduce
from .comparison import check_aspect, check_cams, check_prototypes, membership, without

ForegroundNormalization = Literal["none", "share"]

_ROUNDING = 1e-5


def foreground_loss(
    cams: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    *,
    seen: Tensor | None = None,
    normalization: ForegroundNormalization = "none",
    reduction: Reduction = "mean",
    ignore_index: int = -100,
    sample_weights: Tensor | None = None,
    checks: ValueChecks | None = None,
) -> Tensor:
    r"""Foreground loss: the evidence outside the foreground of the class, for or against it.

    .. math:: \sum \left((1 - F_y)\, C\right)^2 \quad\text{or, as a share,}\quad \frac{\sum (1 - F_y)\, |C|}{\sum |C|}

    This loss is the project's own. It follows Ross et al. 2017 (eq. 1: gradients of Σ log p, squared, outside a mask), with a
    foreground that comes from the training images in the place of annotations, and the signed cam in the place of input
    gradients. Made for an element-wise cam (``"hires_cam"``) of the score Σ log p: Grad-CAM averages over places, behind which a
    fully connected head can hide what it uses, and the label's cam says nothing of evidence against the other classes.

    The first form is in [0, ∞), a sum over pixels that grows with the square of the cam; the second in [0, 1]. Both are 0 for an
    all-zero cam, with a zero gradient. Nothing has to be positive, so a dead cam learns like any other.

    Args:
        cams: C, (N, 1, *spatial), raw and signed.
        labels: see :func:`prototype_loss`. The foregrounds of several labels add up, each times its weight divided by the
            largest, to at most 1.
        prototypes: F, (K, 1, *spatial) in [0, 1], of any size; area-resized to the cams' size. Or several a class,
            (K, P, *spatial), whose union, the largest at each place, is the foreground.
        seen: see :func:`prototype_loss`.
        normalization: ``"none"`` for the first form, ``"share"`` for the second.
        reduction: over the samples.
        ignore_index: see :func:`prototype_loss`.
        sample_weights: see :func:`prototype_loss`.
        checks: see :func:`prototype_loss`.

    Returns:
        A scalar, or (N,) for ``reduction="none"``. An empty batch gives a zero that is connected to the graph.

    Raises:
        ValueError: see :func:`prototype_loss`.
        TypeError: see :func:`prototype_loss`.
    """
    check_cams(cams)
    check_prototypes(cams, prototypes)
    check_aspect("prototypes", prototypes.shape[2:], cams.shape[2:])
    check_foreground_normalization(normalization)
    checks = ValueChecks(synchronize=True) if checks is None else checks
    with no_autocast(cams):
        belongs = membership(cams, labels, prototypes, seen, ignore_index, sample_weights, checks)
        signed = without(full_precision(cams), belongs.counted)
        foregrounds = resize(prototypes.to(signed.dtype), signed.shape[2:]).amax(1, keepdim=True)
        checks.require(
            (foregrounds >= -_ROUNDING) & (foregrounds <= 1 + _ROUNDING),
            "prototypes: expected foregrounds from 0 to 1, got others, or NaN; divide them by their maximum",
        )
        outside = 1 - _of_labels(belongs, foregrounds)
        if normalization == "none":
            values = (outside * signed).square().flatten(1).sum(1)
        else:
            values = _share(outside, signed)
        return reduce(values, reduction, belongs.counted, belongs.importance)


def check_foreground_normalization(normalization: str) -> None:
    """Raise a ``ValueError`` unless ``normalization`` is one of the known ones."""
    if normalization not in get_args(ForegroundNormalization):
        raise ValueError(f"normalization: expected 'none' or 'share', got {normalization!r}")


def _of_labels(belongs: ClassWeights, foregrounds: Tensor) -> Tensor:
    """Each sample's foreground, (K, 1, …) -> (N, 1, …)."""
    if belongs.indices is not None:
        return belongs.pick(foregrounds)
    largest = belongs.weights.amax(1, keepdim=True)
    weights = belongs.weights / largest.masked_fill(largest == 0, 1)
    union = (weights.to(foregrounds.dtype) @ foregrounds.flatten(1)).clamp(max=1)
    return union.reshape(-1, *foregrounds.shape[1:])


def _share(outside: Tensor, cams: Tensor) -> Tensor:
    """Σ outside · |C| / Σ |C|, (N,); 0 for an all-zero cam."""
    # The share does not depend on the scale, so no gradient through it; divided by it, the sum is at least 1.
    scale = peak(cams.detach())
    zero = scale < torch.finfo(cams.dtype).tiny
    size = cams.masked_fill(zero, 0).abs() / scale.masked_fill(zero, 1)
    total = size.flatten(1).sum(1)
    return (outside * size).flatten(1).sum(1) / total.masked_fill(zero.flatten(), 1)
