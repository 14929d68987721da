"""How a cam spreads over its pixels, and how alike the cams of a class are."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..class_means import class_sums, class_weights
from ..distance import unit
from ..maps import prepare
from .base import cam_metric, finite


def _distributions(cams: Tensor) -> Tensor:
    """Rectify the cams and divide them by their sums: (N, pixels); a dead cam becomes the flat one."""
    maps, dead = prepare(finite(cams))
    rows = maps.flatten(1).masked_fill(dead.unsqueeze(1), 1)
    return rows / rows.sum(1, keepdim=True)


@cam_metric
def sparsity(cams: Tensor) -> Tensor:
    r"""Return the Gini index of each rectified cam: the fewer pixels hold the evidence, the larger.

    .. math:: \frac{\sum_{i=1}^{n} (2 i - n - 1)\, a_{(i)}}{n \sum_i a_{(i)}}, \qquad a_{(1)} \le \ldots \le a_{(n)}, \quad
        a = \mathrm{relu}(C)

    (Hurley and Rickard 2009, "Comparing Measures of Sparsity", table 1, rearranged; applied to explanations by Chalasani et al.
    2020.) It depends neither on the scale of the cam nor on where the evidence lies.

    Args:
        cams: (N, 1, *spatial), signed.

    Returns:
        (N,), in [0, 1 − 1/n] with n pixels; 0: flat, 1 − 1/n: one pixel has everything. Neither end is good by itself. A dead
        or all-zero cam counts as flat: 0.

    Raises:
        ValueError: a shape that does not fit, or a cam that is not finite.
        TypeError: cams that are not a floating-point tensor.
    """
    shares = _distributions(cams)
    pixels = shares.shape[1]
    ranks = torch.arange(1 - pixels, pixels, 2, dtype=shares.dtype, device=shares.device)
    values: Tensor = ((ranks * shares.sort(dim=1).values).sum(1) / pixels).clamp(0, 1)
    return values


@cam_metric
def entropy(cams: Tensor) -> Tensor:
    r"""Return the Shannon entropy of each rectified cam, a distribution over n pixels, relative to that of a flat map.

    .. math:: -\frac{1}{\ln n} \sum_i p_i \ln p_i, \qquad p = a / \sum_i a_i, \quad a = \mathrm{relu}(C)

    (Bhatt et al. 2020, "Evaluating and Aggregating Feature-based Model Explanations", complexity.)

    Args:
        cams: (N, 1, *spatial), signed.

    Returns:
        (N,), in [0, 1]; 0: one pixel has everything. Neither end is good by itself. A dead or all-zero cam counts as flat: 1.

    Raises:
        ValueError: a shape that does not fit, or a cam that is not finite.
        TypeError: cams that are not a floating-point tensor.
    """
    shares = _distributions(cams)
    largest = math.log(shares.shape[1])
    values: Tensor = torch.special.entr(shares).sum(1).clamp(0, largest)
    # A map of one pixel is flat and concentrated at once.
    return values / largest if largest else torch.ones_like(values)


@cam_metric
def class_coherence(cams: Tensor, labels: Tensor, num_classes: int, *, ignore_index: int = -100) -> Tensor:
    r"""Return the mean cosine over all pairs of different cams of one class.

    With u the rectified maps divided by their norms, and n of them in a class,

    .. math:: \frac{1}{n (n - 1)} \sum_{i \ne j} u_i \cdot u_j = \frac{\|\sum_i u_i\|^2 - \sum_i \|u_i\|^2}{n (n - 1)}

    so no pair is computed, and the cost grows with n instead of n².

    Args:
        cams: (N, 1, *spatial), signed.
        labels: (N,) class indices.
        num_classes: the number of classes, K.
        ignore_index: samples with this label are left out.

    Returns:
        (K,), in [0, 1]; larger: more alike. A dead or all-zero cam has cosine 0 with every other, and so lowers its class. NaN
        for a class with fewer than two samples. float64, or float32 on a device without.

    Raises:
        ValueError: a shape or a value that does not fit, or a cam that is not finite.
        TypeError: cams or labels of a wrong kind; soft labels among them.
    """
    return coherence(*coherence_sums(cams, labels, num_classes, ignore_index))


def coherence_sums(
    cams: Tensor, labels: Tensor, num_classes: int, ignore_index: int = -100
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what :func:`coherence` needs, by class: Σ u_i (K, *spatial), Σ ‖u_i‖² (K,), and how many cams (K,).

    Sums of several batches can be added.
    """
    belongs = class_weights(labels, num_classes, num_samples=cams.shape[0], ignore_index=ignore_index)
    if belongs.indices is None:
        raise TypeError(
            f"labels: expected class indices ({cams.shape[0]},), got soft labels {tuple(labels.shape)}; pass labels.argmax(1)"
        )
    directions = unit(prepare(finite(cams, belongs.counted)).maps).squeeze(1)
    if directions.device.type != "mps":  # which has no float64
        directions = directions.double()
    squares = directions.flatten(1).square().sum(1)
    counts = belongs.weights.to(directions.dtype).sum(0)
    return class_sums(directions, belongs.weights), class_sums(squares, belongs.weights), counts


def coherence(directions: Tensor, squares: Tensor, counts: Tensor) -> Tensor:
    """Return the coherence (K,) of each class from the sums over its cams; NaN for a class with fewer than two."""
    pairs = counts * (counts - 1)
    lengths = directions.flatten(1).square().sum(1)
    # The clamp removes rounding errors.
    values = ((lengths - squares) / pairs.clamp(min=1)).clamp(0, 1)
    return values.masked_fill(pairs <= 0, math.nan)
