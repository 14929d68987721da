"""The only none/mean/sum ladder of the package."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from .checks import check_choice

Reduction = Literal["none", "mean", "sum"]


def reduce(
    values: Tensor,
    reduction: Reduction = "mean",
    counted: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Reduce a loss over its samples, or over its classes.

    Args:
        values: (N,), one value a sample or a class.
        reduction: ``"none"`` keeps (N,), ``"mean"`` and ``"sum"`` give a scalar.
        counted: (N,) booleans; an entry that does not count is zero and not part of the mean. Default: all count.
        weights: (N,), at least 0; each value is multiplied by its own, and the mean is Σ w v / Σ w. Default: all 1.

    Returns:
        (N,) or a scalar. With nothing to count the scalar is a zero that is connected to the graph of ``values``,
        so that ``backward()`` works on it.

    Raises:
        ValueError: an unknown reduction.

    Example:
        >>> import torch
        >>> reduce(torch.tensor([1.0, 2.0, 6.0]), "mean", torch.tensor([True, True, False]))
        tensor(1.5000)
    """
    check_choice("reduction", reduction, Reduction)
    if counted is not None:
        values = values.masked_fill(~counted, 0)
    if weights is not None:
        weights = weights.to(values.dtype)
        values = values * weights
    if reduction == "none":
        return values
    total = values.sum()
    if reduction == "sum":
        return total
    if weights is not None:
        sum_of_weights = (weights if counted is None else weights.masked_fill(~counted, 0)).sum()
        return total / sum_of_weights.masked_fill(sum_of_weights == 0, 1)
    if counted is None:
        return total / max(values.shape[0], 1)
    return total / counted.sum().clamp(min=1)
