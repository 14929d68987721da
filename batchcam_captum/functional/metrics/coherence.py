"""How alike the cams of one class are."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import ValueChecks
from ..class_means import check_labels, class_sums, class_weights
from ..distance import unit
from ..maps import prepare
from ..precision import no_autocast
from .common import check_metric_cams, finite, wide_dtype


class CoherenceSums(NamedTuple):
    """What the coherence of classes is computed from; sums of several batches may be added up, if their maps have one size."""

    directions: Tensor  #: (K, *spatial), Σ u_i of the maps divided by their norms
    squares: Tensor  #: (K,), Σ ‖u_i‖²: how many of the maps are not zero
    counts: Tensor  #: (K,), how many maps


@torch.no_grad()
def coherence_sums(
    cams: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    ignore_index: int = -100,
    checks: ValueChecks | None = None,
) -> CoherenceSums:
    """What :func:`class_coherence` needs to know of a batch; float64, where the device has it.

    Args:
        cams: (N, 1, *spatial), signed.
        labels: (N,) class indices.
        num_classes: the number of classes, K.
        ignore_index: labels of this value are left out.
        checks: where checks of values go; default: they raise at once on every device.

    Returns:
        The sums (K, *spatial) and (K,), see :class:`CoherenceSums`.

    Raises:
        ValueError: a shape or a value that does not fit, or a cam that is not finite.
        TypeError: cams or labels of a wrong kind.
    """
    check_metric_cams(cams)
    check_labels(labels, cams.shape[0], num_classes)
    if labels.is_floating_point():
        raise TypeError(
            f"labels: expected class indices ({cams.shape[0]},), got {labels.dtype} {tuple(labels.shape)}; a sample "
            f"belongs to one class here, pass labels.argmax(1)"
        )
    with no_autocast(cams):
        dtype = wide_dtype(cams.device)
        belongs = class_weights(
            labels,
            num_classes,
            num_samples=cams.shape[0],
            ignore_index=ignore_index,
            dtype=dtype,
            checks=checks,
        )
        directions = unit(prepare(finite(cams, belongs.counted, checks)).maps).squeeze(1).to(dtype)
        squares = directions.flatten(1).square().sum(1)
        return CoherenceSums(
            class_sums(directions, belongs.weights),
            class_sums(squares, belongs.weights),
            belongs.weights.sum(0),
        )


def coherence_of(sums: CoherenceSums) -> Tensor:
    """The coherence of each class from the sums over its samples, see :func:`class_coherence`.

    Args:
        sums: of one batch, or added up over several.

    Returns:
        (K,), in [0, 1]; NaN for a class with fewer than two samples.
    """
    lengths = sums.directions.flatten(1).square().sum(1)
    pairs = sums.counts * (sums.counts - 1)
    alone = pairs <= 0
    # Rounding alone takes it out of [0, 1].
    values = ((lengths - sums.squares) / pairs.masked_fill(alone, 1)).clamp(0, 1)
    return values.masked_fill(alone, math.nan)


@torch.no_grad()
def class_coherence(
    cams: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    ignore_index: int = -100,
    checks: ValueChecks | None = None,
) -> Tensor:
    r"""Mean cosine over all pairs of different cams of one class.

    With u the rectified maps divided by their norms, and n of them in a class,

    .. math:: \frac{1}{n (n - 1)} \sum_{i \ne j} u_i \cdot u_j = \frac{\|\sum_i u_i\|^2 - \sum_i \|u_i\|^2}{n (n - 1)}

    so that no pair has to be looked at: the cost grows with n, not with n².

    Args:
        cams: (N, 1, *spatial), signed.
        labels: (N,) class indices.
        num_classes: the number of classes, K.
        ignore_index: labels of this value are left out.
        checks: where checks of values go; default: they raise at once on every device.

    Returns:
        (K,), in [0, 1]; larger: more alike. An all-zero or dead cam has cosine 0 with every other, and so lowers its class.
        NaN for a class with fewer than two samples. float64, or float32 on a device without.

    Raises:
        ValueError: a shape or a value that does not fit, or a cam that is not finite.
        TypeError: cams or labels of a wrong kind; soft labels among them.
    """
    return coherence_of(coherence_sums(cams, labels, num_classes, ignore_index=ignore_index, checks=checks))
