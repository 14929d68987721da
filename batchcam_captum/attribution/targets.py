"""Everything that ``target=`` may be: Captum's forms with its meaning of each, functions, and ready-made functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor

from ..functional import full_precision
from .output import pick_output
from .state import recordable

#: An output index for all samples, or one per sample; or a function of the output, for all samples or one per sample.
Target = (
    None
    | int
    | tuple[int | slice, ...]
    | Tensor
    | list[int]
    | list[tuple[int | slice, ...]]
    | Callable[[Tensor], Tensor]
    | list[Callable[[Tensor], Tensor]]
)
T = TypeVar("T", bound="_CutByRows")


def select_target(output: Tensor, target: Target) -> Tensor:
    """Select the score that is explained.

    Args:
        output: what the model returned, (N, …).
        target: None, for a model with one score per sample; an integer or a tensor with a single one, for all samples; a list
            or a 1-D tensor of N integers, one per sample; for outputs of more than two dimensions a tuple of indices, or a
            list of N of them. Negative indices count from the end. Or a function of the output that returns one score per
            sample, such as :class:`~batchcam_captum.attribution.MaskTarget`; or a list of N functions, each of its own sample's
            output without the batch dimension, that return a single score (pytorch-grad-cam's targets are such functions).

    Returns:
        The selected scores, (N,) or (N, 1, …), with the graph of ``output``.

    Raises:
        TypeError: ``output`` is no tensor, a target has a wrong type, or a function returns something else than scores.
        ValueError: a target whose length or range does not fit the output, or that leaves more than one score per sample; or a
            function that returns scores without a graph.

    Example:
        >>> output = torch.tensor([[1.0, 2.0, 5.0], [4.0, 3.0, 0.0]])
        >>> select_target(output, [2, 0])
        tensor([5., 4.])
        >>> select_target(output, lambda scores: scores[:, 0] - scores[:, 1])
        tensor([-1.,  1.])
    """
    output = pick_output(output)
    if callable(target):
        return _apply(target, output)
    selected = output if target is None else _select(output, target)
    if selected.dim() == 0 or selected.shape[1:].numel() != 1:
        what = "no target" if target is None else f"target {target!r}"
        raise ValueError(
            f"target: expected one score per sample, got shape {tuple(selected.shape)} for {what} and an output of shape "
            f"{tuple(output.shape)}; pass an index for each dimension after the first"
        )
    return selected


def _select(output: Tensor, target: Any) -> Tensor:
    if isinstance(target, Tensor):
        if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
            raise TypeError(f"target: expected integers, got {target.dtype}; pass class indices")
        if target.numel() == 1:
            return _select_column(output, (int(target.item()),))
        _check_shape(target, output.shape[0], one_hot=target.shape == output.shape)
        return _gather(output, target.to(output.device, torch.long))
    if isinstance(target, tuple):
        return _select_column(output, target)
    if isinstance(target, Integral):
        return _select_column(output, (int(target),))
    if not isinstance(target, list):
        raise TypeError(
            f"target: expected None, an integer, a tuple, a list, a tensor or a function, got {type(target).__name__}"
        )
    _check_length(target, output.shape[0])
    if all(isinstance(entry, Integral) for entry in target):
        return _gather(output, torch.tensor(target, dtype=torch.long, device=output.device))
    if all(isinstance(entry, tuple) for entry in target):
        return _select_each(output, target)
    if all(callable(entry) for entry in target):
        return torch.stack([_apply_to_row(*pair) for pair in zip(target, output, strict=True)])
    kinds = ", ".join(sorted({type(entry).__name__ for entry in target}))
    raise TypeError(f"target: expected a list of integers, of tuples or of functions, got a list of {kinds}")


def _check_length(target: list[Any], samples: int) -> None:
    if len(target) != samples:
        raise ValueError(
            f"target: expected {samples} entries, one per sample, got a list of {len(target)}; pass a single integer or tuple "
            f"for the same target in all samples"
        )


def _check_shape(target: Tensor, samples: int, *, one_hot: bool = False) -> None:
    if tuple(target.shape) != (samples,):
        remedy = "pass class indices, not one-hot rows" if one_hot else "pass one class index per sample"
        raise ValueError(f"target: expected shape ({samples},), got {tuple(target.shape)}; {remedy}")


def _check_index(output: Tensor, index: tuple[int | slice, ...]) -> None:
    if len(index) >= output.dim():
        raise ValueError(
            f"target: expected at most {max(output.dim() - 1, 0)} indices for an output of shape {tuple(output.shape)}, got "
            f"{index}; the first dimension is the batch"
        )
    for position, size in zip(index, output.shape[1:], strict=False):
        if not isinstance(position, slice) and not -size <= position < size:
            raise out_of_range(size, position)


def _select_column(output: Tensor, index: tuple[int | slice, ...]) -> Tensor:
    """Select the same entry of every sample."""
    _check_index(output, index)
    return output[(slice(None), *index)]


def _gather(output: Tensor, indices: Tensor) -> Tensor:
    """Select one class per sample."""
    if output.dim() != 2:
        raise ValueError(
            f"target: expected tuples of {output.dim() - 1} indices for an output of shape {tuple(output.shape)}, got integers; "
            f"one integer per sample fits outputs of shape (N, K)"
        )
    _check_range(indices, output.shape[1])
    return output.gather(1, indices.remainder(output.shape[1]).unsqueeze(1)).squeeze(1)


def _select_each(output: Tensor, target: list[tuple[int | slice, ...]]) -> Tensor:
    """Select the entry of each sample's own tuple."""
    kinds_fit = all(isinstance(index, Integral | slice) for entry in target for index in entry)
    if len({len(entry) for entry in target}) != 1 or not kinds_fit:
        raise ValueError(f"target: expected tuples of integers of one length, got {target}")
    for entry in target:
        _check_index(output, entry)
    if all(isinstance(index, Integral) for entry in target for index in entry):
        columns = torch.tensor(target, device=output.device).unbind(1)
        return output[(torch.arange(len(output), device=output.device), *columns)]
    rows = [scores[entry] for scores, entry in zip(output, target, strict=True)]
    if len({row.shape for row in rows}) > 1:
        raise ValueError(f"target: expected slices that select as much in every sample, got {target}")
    return torch.stack(rows)


def _check_range(indices: Tensor, size: int) -> None:
    outside = indices[(indices < -size) | (indices >= size)]
    if outside.numel():
        raise out_of_range(size, int(outside[0]))


def out_of_range(size: int, index: int) -> ValueError:
    """Return the error for a class index that an output of ``size`` scores does not have."""
    if size == 1:
        return ValueError(
            f"target: expected 0 or -1, got {index}; the model returns 1 score: BinaryTarget(labels) explains it for label 1, "
            f"and its negative for label 0"
        )
    return ValueError(
        f"target: expected indices from {-size} to {size - 1}, got {index}; the model returns {size} scores"
    )


# Functions of the output.


def _apply(function: Callable[[Tensor], Any], output: Tensor) -> Tensor:
    selected = _checked_scores(function(output), output)
    samples = output.shape[:1]
    if selected.shape[:1] != samples or not samples or selected.shape[1:].numel() != 1:
        hint = "" if selected.dim() else "; functions of one sample's output go into a list, one per sample"
        raise ValueError(
            f"target: expected a function that returns one score per sample, ({', '.join(map(str, samples))},), got shape "
            f"{tuple(selected.shape)} for an output of shape {tuple(output.shape)}; sum over everything but the first "
            f"dimension{hint}"
        )
    return selected


def _apply_to_row(function: Callable[[Tensor], Any], row: Tensor) -> Tensor:
    score = _checked_scores(function(row), row)
    if score.numel() != 1:
        raise ValueError(
            f"target: expected functions of one sample's output that return a single score, got shape {tuple(score.shape)} for a "
            f"sample of shape {tuple(row.shape)}"
        )
    return score.reshape(())


def _checked_scores(scores: Any, output: Tensor) -> Tensor:
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        kind = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
        raise TypeError(
            f"target: expected a function that returns a tensor of floating-point scores, got {kind}; its gradient is what is "
            f"explained"
        )
    if output.requires_grad and not scores.requires_grad:
        raise ValueError(
            "target: expected a function that computes its scores from the output, got scores without a graph; leave out "
            "detach(), item(), argmax() and torch.no_grad()"
        )
    return scores


def target_rows(target: Any, rows: slice, samples: int) -> Any:
    """Return a target for some of the samples, for a batch that is run in pieces.

    Args:
        target: see :func:`select_target`.
        rows: which samples.
        samples: how many there are in all.

    Returns:
        Of a list, a tensor of N integers and a :class:`~batchcam_captum.attribution.RowTarget` their part for these samples.
        Anything else is the same for all samples, as is a plain function: it gets the output of one piece after the other.

    Raises:
        ValueError: a list or a tensor of another length than ``samples``.

    Example:
        >>> target_rows([4, 0, 2], slice(1, 3), 3)
        [0, 2]
        >>> target_rows(7, slice(1, 3), 3)
        7
    """
    if rows == slice(0, samples):  # nothing to cut; an output may have other rows than the inputs
        return target
    if isinstance(target, list):
        _check_length(target, samples)
        return target[rows]
    if isinstance(target, Tensor) and target.numel() != 1:
        _check_shape(target, samples)
        return target[rows]
    # A class has the method as well, and is no target.
    if isinstance(target, RowTarget) and not isinstance(target, type):
        return target.for_rows(rows, samples)
    return target


@runtime_checkable
class RowTarget(Protocol):
    """A function as target that has a value for each sample, and can be cut for ``internal_batch_size``.

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
        """Return one score per sample, (N,), of the output, (N, …)."""

    def for_rows(self, rows: slice, samples: int) -> Callable[[Tensor], Tensor]:
        """Return the target of some of the samples.

        Args:
            rows: which ones.
            samples: how many there are in all.
        """


# Ready-made functions.


class _CutByRows:
    """Remembers which samples it is for; only the output shows whether a tensor has a row per sample."""

    _part: tuple[slice, int] | None = None

    def for_rows(self: T, rows: slice, samples: int) -> T:
        """Return the target of some of the samples; see :class:`RowTarget`."""
        part = copy(self)
        object.__setattr__(part, "_part", (rows, samples))
        return part

    def _rows_of(self, name: str, value: Tensor, output: Tensor) -> Tensor:
        """Return the rows of a tensor (N, …) that belong to the samples of this output, on its device."""
        rows, samples = self._part or (slice(None), len(output))
        if len(value) != samples:
            repeated = samples > len(value) > 0 and samples % len(value) == 0
            hint = (
                "; a NoiseTunnel that repeats its samples needs nt_samples_batch_size=1" if repeated else ""
            )
            raise ValueError(
                f"target: expected {name} for {samples} samples, got {len(value)}, shape {tuple(value.shape)}{hint}"
            )
        return value[rows].to(output.device)


@dataclass(frozen=True, eq=False)
class MaskTarget(_CutByRows):
    """The sum of a class's scores inside a mask, Σ_uv M_uv s_c(u, v), for segmentation models: outputs (N, K, *spatial).

    The sum, not the mean, so that a place counts the same in a small and in a large mask; the map is only scaled by that.
    Numbers in the mask are weights; if it is empty the map is zero.

    Args:
        class_index: the class, or (N,) of them. Negative indices count from the end.
        mask: (*spatial), for all samples, or (N, *spatial); of the output's size.

    Raises:
        TypeError: a class or a mask of a wrong type.
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
        index = _value_or_row("class_index", self.class_index)
        if index.is_floating_point() or index.dtype == torch.bool:
            raise TypeError(f"class_index: expected integers, got {index.dtype}; pass class indices")
        mask = _as_tensor("mask", self.mask)
        if not (mask.is_floating_point() or mask.dtype == torch.bool) and bool((mask > 1).any()):
            raise ValueError(
                f"mask: expected bool, 0 and 1, or floating-point weights, got {mask.dtype} up to {int(mask.max())}; pass "
                f"class_map == class_index for a map of class indices"
            )
        object.__setattr__(self, "class_index", index)
        object.__setattr__(self, "mask", mask)

    def __call__(self, output: Tensor) -> Tensor:
        """Return (N,) of the output, (N, K, *spatial)."""
        index, mask, places = cast(Tensor, self.class_index), self.mask, output.shape[2:]
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
        _check_range(index, output.shape[1])
        if index.dim():
            index = self._rows_of("a class", index, output).long()
            scores = output[torch.arange(len(output), device=output.device), index]
        else:
            scores = output[:, int(index)]
        scores = full_precision(scores)
        return (scores * mask.to(scores)).flatten(1).sum(1)


@dataclass(frozen=True, eq=False)
class BinaryTarget(_CutByRows):
    """One logit per sample, (N,) or (N, 1): label 1 explains the logit, label 0 its negative.

    The logit is evidence for one of two classes, its negative for the other: sigmoid(−s) = 1 − sigmoid(s). So the map for label
    0 is the negative of the map for label 1, as long as the weighting is linear in the gradients.

    Args:
        labels: 0 or 1, for all samples, or one per sample: (N,), or a sequence.

    Raises:
        TypeError: labels of a wrong type.
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
        labels = _value_or_row("labels", self.labels)
        other = labels[(labels != 0) & (labels != 1)]
        if other.numel():
            raise ValueError(f"labels: expected 0 and 1, got {other[0].item()}")
        object.__setattr__(self, "labels", labels)

    def __call__(self, output: Tensor) -> Tensor:
        """Return (N,) of the output, (N,) or (N, 1)."""
        if output.dim() == 0 or output.shape[1:].numel() != 1:
            raise ValueError(
                f"target: expected an output of one logit per sample, (N,) or (N, 1), got {tuple(output.shape)}; for several "
                f"logits pass class indices or MultiLabelTarget"
            )
        labels = cast(Tensor, self.labels)
        labels = self._rows_of("labels", labels, output) if labels.dim() else labels.to(output.device)
        logits = output.reshape(len(output))
        return torch.where(labels == 1, logits, -logits)


@dataclass(frozen=True, eq=False)
class MultiLabelTarget(_CutByRows):
    """The sum of the scores of several labels, Σ_k w_k s_k.

    Args:
        labels: (N, K), or (K,) for all samples: bool, 0 and 1, or weights. If all are zero the map is zero.

    Raises:
        TypeError: labels of a wrong type.
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
                f"labels: expected one value per class, (N, K) or (K,), got shape {tuple(labels.shape)}"
            )
        object.__setattr__(self, "labels", labels)

    def __call__(self, output: Tensor) -> Tensor:
        """Return (N,) of the output, (N, K)."""
        labels = cast(Tensor, self.labels)
        if output.dim() != 2 or labels.shape[-1] != output.shape[1]:
            raise ValueError(
                f"target: expected an output (N, K) and labels (N, K) or (K,), got {tuple(output.shape)} and "
                f"{tuple(labels.shape)}; pass class indices as a target themselves"
            )
        if labels.dim() == 2:
            labels = self._rows_of("labels", labels, output)
        scores = full_precision(output)
        return (scores * labels.to(scores)).sum(1)


def _value_or_row(name: str, values: Any) -> Tensor:
    """Return (N,), or a tensor without dimensions for a single value for all samples."""
    tensor = _as_tensor(name, values)
    if tensor.numel() == 1:
        return tensor.reshape(())
    if tensor.dim() != 1:
        raise ValueError(f"{name}: expected one value per sample, (N,), got shape {tuple(tensor.shape)}")
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
