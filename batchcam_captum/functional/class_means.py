"""Labels as weights, and means over the samples of each class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import ValueChecks, both, readable, unless_all


@dataclass(frozen=True)
class ClassWeights:
    """How much each sample belongs to each class, as :func:`class_weights` returns it."""

    num_classes: int
    num_samples: int
    dtype: torch.dtype  #: of the weights
    indices: Tensor | None  #: (N,) class indices, 0 where the sample is left out; None for soft labels
    soft: Tensor | None  #: (N, K) soft labels; None for class indices
    mask: Tensor | None  #: (N,) booleans, which samples count; None: every one of them
    importance: Tensor | None = None  #: (N,) how much each sample counts; None: all alike

    @property
    def counted(self) -> Tensor:
        """(N,) booleans, False where the sample is ignored or has weight 0."""
        if self.mask is not None:
            return self.mask
        labels = self.soft if self.indices is None else self.indices
        assert labels is not None
        return torch.ones(self.num_samples, dtype=torch.bool, device=labels.device)

    @property
    def weights(self) -> Tensor:
        """(N, K); a row of zeros where the sample is ignored."""
        if self.indices is None:
            assert self.soft is not None
            return self.soft
        rows = torch.zeros(self.num_samples, self.num_classes, dtype=self.dtype, device=self.indices.device)
        return rows.scatter(1, self.indices.unsqueeze(1), self.counted.to(self.dtype).unsqueeze(1))

    @property
    def shares(self) -> Tensor:
        """(N, K): the weights divided by their sum, so that a sample with several classes counts once."""
        if self.indices is not None:
            return self.weights
        sums = self.weights.sum(1, keepdim=True)
        return self.weights / sums.masked_fill(sums == 0, 1)

    @property
    def weighted(self) -> Tensor:
        """(N, K): the weights times the importance of the sample, for sums over samples."""
        return self.weights if self.importance is None else self.weights * self.importance.unsqueeze(1)

    def pick(self, per_class: Tensor) -> Tensor:
        """Return each sample's row, (K, …) -> (N, …); for soft labels the mean of the rows, weighted by their shares."""
        if self.indices is not None:
            return per_class.index_select(0, self.indices)
        return (self.shares.to(per_class.dtype) @ per_class.flatten(1)).reshape(-1, *per_class.shape[1:])


def check_labels(labels: Tensor, num_samples: int, num_classes: int | None = None) -> None:
    """Check that labels are integers (N,), or floating (N, K); ``num_classes=None`` takes any K.

    Raises:
        ValueError: another shape.
        TypeError: neither integers nor floating.
    """
    if not isinstance(labels, Tensor):
        raise TypeError(
            f"labels: expected a tensor, got {type(labels).__name__}; pass torch.as_tensor(labels)"
        )
    shape = tuple(labels.shape)
    if labels.is_floating_point():
        classes = "K" if num_classes is None else num_classes
        expected = (num_samples, shape[-1] if shape and num_classes is None else num_classes)
        if shape != expected:
            raise ValueError(
                f"labels: expected integers ({num_samples},) or soft labels ({num_samples}, {classes}), got floating {shape}; "
                f"pass class indices as integers, or one weight per class"
            )
        return
    if labels.dtype == torch.bool or labels.is_complex():
        raise TypeError(
            f"labels: expected integers or floating soft labels, got {labels.dtype}; pass class indices"
        )
    if shape != (num_samples,):
        remedy = (
            "pass class indices, not one-hot rows" if labels.dim() == 2 else "pass one class index per sample"
        )
        raise ValueError(f"labels: expected shape ({num_samples},), got {shape}; {remedy}")


def wide_indices(labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return integer labels as int64, and which of them are class indices.

    In a smaller dtype neither is certain: compared with uint8 labels, 256 classes are 0, and an ignore index of -100 is 156.
    """
    indices = labels.long()
    return indices, (indices >= 0) & (indices < num_classes)


def class_weights(
    labels: Tensor,
    num_classes: int,
    *,
    num_samples: int | None = None,
    ignore_index: int = -100,
    dtype: torch.dtype = torch.float32,
    sample_weights: Tensor | None = None,
    checks: ValueChecks | None = None,
) -> ClassWeights:
    """Check labels and turn them into weights.

    Args:
        labels: integers (N,), 0 … K−1; or floating (N, K), soft labels as mixup and label smoothing make them, or several
            labels per sample (1 each). A sample whose K values are all 0 is left out.
        num_classes: the number of classes, K.
        num_samples: N, if it is known from elsewhere.
        ignore_index: samples with this integer label are left out.
        dtype: of the weights.
        sample_weights: (N,) how much each sample counts, at least 0. Default: all alike.
        checks: collects the checks of values. Default: they raise at once on every device.

    Returns:
        The weights (N, K), which samples count and how much, and the class indices of integer labels.

    Raises:
        ValueError: labels of another shape, as integer one-hot rows are, or out of range; sample weights of another shape,
            negative or not finite.
        TypeError: labels that are neither integers nor floating.
    """
    checks = ValueChecks(synchronize=True) if checks is None else checks
    if num_samples is None:
        num_samples = labels.shape[0] if isinstance(labels, Tensor) and labels.dim() else 1
    check_labels(labels, num_samples, num_classes)
    importance, mask, indices, soft = None, None, None, None
    if sample_weights is not None:
        importance = check_sample_weights(sample_weights, num_samples, checks).to(dtype)
    if labels.is_floating_point():
        soft = labels.to(dtype)
        checks.require(
            (soft >= 0) & torch.isfinite(soft),
            "labels: expected soft labels of at least 0, got others; pass one weight per class, before any logarithm",
        )
        mask = unless_all((soft != 0).any(1))
    else:
        indices, mask = _checked_indices(labels, num_classes, ignore_index, checks)
    if importance is not None:
        mask = both(mask, unless_all(importance > 0))
    if indices is not None and mask is not None:
        indices = indices.where(mask, 0)
    return ClassWeights(num_classes, num_samples, dtype, indices, soft, mask, importance)


def _checked_indices(
    labels: Tensor, num_classes: int, ignore_index: int, checks: ValueChecks
) -> tuple[Tensor, Tensor | None]:
    """The labels as int64, and which of them count; None where all of them are seen to."""
    if readable(labels) and labels.numel():
        lowest, highest = (int(each) for each in torch.aminmax(labels.long()))
        if lowest >= 0 and highest < num_classes and not lowest <= ignore_index <= highest:
            return labels.long(), None
    indices, in_range = wide_indices(labels, num_classes)
    counted = indices != ignore_index
    checks.require(
        in_range | ~counted,
        f"labels: expected class indices from 0 to {num_classes - 1}, or {ignore_index} to ignore a sample, got others; "
        f"check num_classes and the data set's labels",
        lambda: f"found {sorted(set(indices[~in_range & counted].tolist()))[:5]}",
    )
    return indices, unless_all(counted & in_range)


def check_sample_weights(
    sample_weights: Tensor, num_samples: int, checks: ValueChecks | None = None
) -> Tensor:
    """Check the weights of samples, and return them.

    Raises:
        ValueError: not one number for each sample, or one that is negative or not finite.
        TypeError: no tensor.
    """
    if not isinstance(sample_weights, Tensor):
        raise TypeError(
            f"sample_weights: expected a tensor, got {type(sample_weights).__name__}; pass torch.as_tensor(weights)"
        )
    if sample_weights.shape != (num_samples,):
        raise ValueError(
            f"sample_weights: expected shape ({num_samples},), got {tuple(sample_weights.shape)}; pass one number per sample"
        )
    checks = ValueChecks(synchronize=True) if checks is None else checks
    checks.require(
        (sample_weights >= 0) & torch.isfinite(sample_weights),
        "sample_weights: expected finite numbers of at least 0, got others",
    )
    return sample_weights


def class_sums(values: Tensor, weights: Tensor) -> Tensor:
    """Return Σ_i w_ic x_i for each class c, as one matrix product.

    Args:
        values: x, (N, …).
        weights: w, (N, K), the ``weights`` of :func:`class_weights`.

    Returns:
        (K, …), in the dtype of the values.
    """
    rows = values.flatten(1) if values.dim() > 1 else values
    return (weights.to(values.dtype).T @ rows).reshape(weights.shape[1], *values.shape[1:])


def class_means(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean over the samples of each class.

    Args:
        values: (N, …).
        weights: (N, K), how much each sample belongs to each class: the ``weights`` of :func:`class_weights`.

    Returns:
        The means (K, …), zero for a class without samples, and the counts (K,).
    """
    counts = weights.to(values.dtype).sum(0)
    divisor = counts.masked_fill(counts == 0, 1).reshape(-1, *[1] * (values.dim() - 1))
    return class_sums(values, weights) / divisor, counts
