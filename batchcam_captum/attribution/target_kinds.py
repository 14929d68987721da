"""Ready-made targets beyond one class a sample: masks, single logits, several labels.

A target is any function of the output that returns one score a sample. One that knows something of each sample also has a method
``for_rows``, see :class:`RowTarget`, so that a batch can be cut into pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor

from ..functional import full_precision
from .state import recordable

T = TypeVar("T", bound="_CutByRows")


@runtime_checkable
class RowTarget(Protocol):
    """A target that knows something of each sample: what ``internal_batch_size`` needs to cut it into pieces.

    Example:
        >>> class Above:
        ...     def __init__(self, thresholds):
        ...         self.thresholds = thresholds  # (N,)
        ...
        ...     def __call__(self, output):  # (N, K) -> (N,)
        ...         return (output - self.thresholds[:, None]).relu().sum(1)
        ...
        ...     def for_rows(self, rows, samples):
        ...         return Above(self.thresholds[rows])
        >>> isinstance(Above(None), RowTarget)
        True
    """

    def __call__(self, output: Tensor) -> Tensor:
        """The output, (N, …) -> one score a sample, (N,)."""

    def for_rows(self, rows: slice, samples: int) -> Callable[[Tensor], Tensor]:
        """The target of some of the samples.

        Args:
            rows: which ones.
            samples: how many there are in all.
        """


class _CutByRows:
    """Remembers which samples it is for. Only the output tells whether a tensor has a row for each of them."""

    _part: tuple[slice, int] | None = None

    def for_rows(self: T, rows: slice, samples: int) -> T:
        """The target of some of the samples, see :class:`RowTarget`."""
        part = copy(self)
        object.__setattr__(part, "_part", (rows, samples))
        return part

    def _rows_of(self, name: str, value: Tensor, output: Tensor) -> Tensor:
        """The rows of a tensor (N, …) that belong to the samples of this output, on its device."""
        rows, samples = self._part or (slice(None), len(output))
        if len(value) != samples:
            repeated = samples > len(value) > 0 and samples % len(value) == 0
            remedy = (
                "; a NoiseTunnel that repeats its samples repeats a list of functions as well, or takes nt_samples_batch_size=1"
                if repeated
                else ""
            )
            raise ValueError(
                f"target: expected {name} for {samples} samples, got {len(value)}, shape {tuple(value.shape)}{remedy}"
            )
        return value[rows].to(output.device)


@dataclass(frozen=True, eq=False)
class MaskTarget(_CutByRows):
    """Scores of a class at every place, (N, K, *spatial): their sum inside a mask, as segmentation models need it.

    Σ_uv M_uv s_c(u, v): the sum, not the mean, so that a place counts the same in a small and in a large mask; the map is only
    scaled by that. Numbers in the mask are weights; where it is empty the map is zero.

    Args:
        class_index: the class, or (N,) of them. Negative indices count from the end.
        mask: (*spatial), for all samples, or (N, *spatial); of the output's size.

    Raises:
        TypeError: a class or a mask of a wrong kind.
        ValueError: when called, a size or a class that does not fit the output.

    Example:
        >>> import torch
        >>> from batchcam_captum import BatchGradCam
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 5, 1))
        >>> images = torch.rand(2, 3, 16, 16)
        >>> where = model(images).argmax(1) == 4
        >>> BatchGradCam(model, model[1]).attribute(images, target=MaskTarget(4, where)).shape
        torch.Size([2, 1, 14, 14])
    """

    class_index: int | Sequence[int] | Tensor
    mask: Tensor

    def __post_init__(self) -> None:
        index = _one_each("class_index", self.class_index)
        if not _is_integer(index):
            raise TypeError(f"class_index: expected integers, got {index.dtype}; pass class indices")
        mask = _as_tensor("mask", self.mask)
        if _is_integer(mask) and bool((mask > 1).any()):
            raise ValueError(
                f"mask: expected bool, 0 and 1, or floating-point weights, got {mask.dtype} up to {int(mask.max())}; pass "
                f"class_map == class_index for a map of class indices"
            )
        object.__setattr__(self, "class_index", index)
        object.__setattr__(self, "mask", mask)

    def __call__(self, output: Tensor) -> Tensor:
        """The output, (N, K, *spatial) -> (N,)."""
        mask, places = self.mask, output.shape[2:]
        if output.dim() < 3 or mask.dim() not in (len(places), len(places) + 1):
            raise ValueError(
                f"target: expected an output (N, K, *spatial) and a mask (*spatial) or (N, *spatial), got "
                f"{tuple(output.shape)} and {tuple(mask.shape)}"
            )
        if mask.dim() > len(places):
            mask = self._rows_of("a mask", mask, output)
        if mask.shape[-len(places) :] != places:
            raise ValueError(
                f"target: expected a mask of the output's size {tuple(places)}, got {tuple(self.mask.shape)}; resize it first"
            )
        scores = full_precision(self._class_scores(output))
        return (scores * mask.to(scores)).flatten(1).sum(1)

    def _class_scores(self, output: Tensor) -> Tensor:
        """(N, K, *spatial) -> (N, *spatial)."""
        index = cast(Tensor, self.class_index)
        check_index(index, output.shape[1])
        if not index.dim():
            return output[:, int(index)]
        index = self._rows_of("a class", index, output)
        return output[torch.arange(len(output), device=output.device), index.long()]


@dataclass(frozen=True, eq=False)
class BinaryTarget(_CutByRows):
    """One logit a sample, (N,) or (N, 1): label 1 explains the logit, label 0 its negative.

    The logit speaks for one of two classes, its negative for the other: sigmoid(−s) = 1 − sigmoid(s). So the map for label 0 is
    the negative of the map for label 1, as long as the weighting is linear in the gradients.

    Args:
        labels: 0 or 1, for all samples, or one for each: (N,), or a sequence.

    Raises:
        TypeError: labels of a wrong kind.
        ValueError: labels other than 0 and 1; when called, an output or a number of labels that does not fit.

    Example:
        >>> import torch
        >>> from batchcam_captum import BatchGradCam
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 1))
        >>> images = torch.rand(2, 3, 8, 8)
        >>> BatchGradCam(model, model[0]).attribute(images, target=BinaryTarget([0, 1])).shape
        torch.Size([2, 1, 6, 6])
    """

    labels: int | Sequence[int] | Tensor

    def __post_init__(self) -> None:
        labels = _one_each("labels", self.labels)
        other = labels[(labels != 0) & (labels != 1)]
        if other.numel():
            raise ValueError(f"labels: expected 0 and 1, got {other[0].item()}")
        object.__setattr__(self, "labels", labels)

    def __call__(self, output: Tensor) -> Tensor:
        """The output, (N,) or (N, 1) -> (N,)."""
        if output.dim() == 0 or output.shape[1:].numel() != 1:
            raise ValueError(
                f"target: expected an output of one logit a sample, (N,) or (N, 1), got {tuple(output.shape)}; for several "
                f"logits pass class indices or MultiLabelTarget"
            )
        labels = cast(Tensor, self.labels)
        labels = self._rows_of("labels", labels, output) if labels.dim() else labels.to(output.device)
        logits = output.reshape(len(output))
        return torch.where(labels == 1, logits, -logits)


@dataclass(frozen=True, eq=False)
class MultiLabelTarget(_CutByRows):
    """Several labels a sample: the sum of their scores, Σ_k w_k s_k.

    Args:
        labels: (N, K), or (K,) for all samples: bool, 0 and 1, or weights. Where all are zero the map is zero.

    Raises:
        TypeError: labels of a wrong kind.
        ValueError: labels that are not finite; when called, a shape that does not fit the output.

    Example:
        >>> import torch
        >>> from batchcam_captum import BatchGradCam
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 3))
        >>> labels = torch.tensor([[1, 0, 1], [0, 1, 0]])
        >>> BatchGradCam(model, model[0]).attribute(torch.rand(2, 3, 8, 8), target=MultiLabelTarget(labels)).shape
        torch.Size([2, 1, 6, 6])
    """

    labels: Sequence[Sequence[float]] | Sequence[float] | Tensor

    def __post_init__(self) -> None:
        labels = _as_tensor("labels", self.labels)
        if labels.dim() not in (1, 2):
            raise ValueError(
                f"labels: expected a label for each class, (N, K) or (K,), got shape {tuple(labels.shape)}"
            )
        object.__setattr__(self, "labels", labels)

    def __call__(self, output: Tensor) -> Tensor:
        """The output, (N, K) -> (N,)."""
        labels = cast(Tensor, self.labels)
        if output.dim() != 2 or labels.shape[-1] != output.shape[1]:
            raise ValueError(
                f"target: expected an output (N, K) and labels (N, K) or (K,), got {tuple(output.shape)} and "
                f"{tuple(labels.shape)}; class indices are a target themselves"
            )
        if labels.dim() == 2:
            labels = self._rows_of("labels", labels, output)
        scores = full_precision(output)
        return (scores * labels.to(scores)).sum(1)


def check_index(indices: Tensor, size: int) -> None:
    """Check that class indices are from −size to size−1.

    Raises:
        ValueError: one of them is not.
    """
    outside = indices[(indices < -size) | (indices >= size)]
    if outside.numel():
        raise out_of_range(size, int(outside[0]))


def out_of_range(size: int, index: int) -> ValueError:
    """The error for a class index that an output of ``size`` scores does not have."""
    if size == 1:
        return ValueError(
            f"target: expected 0 or -1, got {index}; the model returns 1 score: BinaryTarget(labels) explains it for label 1, "
            f"and its negative for label 0"
        )
    return ValueError(
        f"target: expected indices from {-size} to {size - 1}, got {index}; the model returns {size} scores"
    )


def _one_each(name: str, values: Any) -> Tensor:
    """(N,), or without dimensions where a single value is for all samples."""
    tensor = _as_tensor(name, values)
    if tensor.numel() == 1:
        return tensor.reshape(())
    if tensor.dim() != 1:
        raise ValueError(f"{name}: expected one value a sample, (N,), got shape {tuple(tensor.shape)}")
    return tensor


def _as_tensor(name: str, values: Any) -> Tensor:
    try:
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name}: expected a number or a tensor of numbers, got {type(values).__name__}"
        ) from error
    if tensor.is_complex():
        raise TypeError(f"{name}: expected real numbers, got {tensor.dtype}")
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")
    with torch.inference_mode(False):
        kept: Tensor = recordable(tensor).detach()
        return kept


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.dtype == torch.bool)
