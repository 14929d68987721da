"""What the functions share: named choices, full precision with autocast off, and reduction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor

from .checks import check_choice

T = TypeVar("T")
Reduction = Literal["none", "mean", "sum"]


class Registry(Generic[T]):
    """A mapping from names to objects of one kind, filled by a decorator.

    Args:
        kind: what the entries are, in the singular; used in error messages.

    Example:
        >>> from batchcam_captum.functional import Registry
        >>> shapes = Registry("shape")
        >>> @shapes.register("square")
        ... def square(side):
        ...     return side * side
        >>> shapes["square"](3)
        9
        >>> shapes["circle"]
        Traceback (most recent call last):
        ...
        ValueError: shape: expected one of 'square', got 'circle'; ...
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that enters its argument under a name, and returns it.

        Args:
            name: the name, which no other object may have.

        Raises:
            ValueError: another object has the name.
        """

        def enter(entry: T) -> T:
            if self._entries.setdefault(name, entry) is not entry:
                raise ValueError(f"{self.kind}: the name {name!r} is taken; choose another name")
            return entry

        return enter

    def __getitem__(self, name: str) -> T:
        try:
            return self._entries[name]
        except KeyError:
            known = ", ".join(repr(known) for known in self)
            raise ValueError(
                f"{self.kind}: expected one of {known}, got {name!r}; "
                f"pass one of these, or register your own under this name"
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))


def no_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Return a context in which autocast is off for the kind of device of a tensor; free where it is off already.

    Args:
        tensor: any tensor on that device.
    """
    device_type = tensor.device.type
    # torch 2.11 does not compile the first question; the second one raises on a device that has no autocast.
    available = torch.compiler.is_compiling() or torch.amp.is_autocast_available(device_type)
    if available and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def full_precision(tensor: Tensor) -> Tensor:
    """Return a tensor in float32, or in float64 if it is that.

    Args:
        tensor: of any real dtype; float32 and float64 are returned as they are.
    """
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def exact_matmul_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype in which a matrix product is exact: float64 where products of float32 may be rounded to TF32.

    Args:
        tensor: a factor.
    """
    if tensor.dtype == torch.float32 and (
        tensor.is_cuda or torch.get_float32_matmul_precision() != "highest"
    ):
        return torch.float64
    return tensor.dtype


def reduce(
    values: Tensor,
    reduction: Reduction = "mean",
    counted: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Reduce a loss over samples or classes.

    Args:
        values: (N,), one per sample or class.
        reduction: ``"none"`` keeps (N,), ``"mean"`` and ``"sum"`` give a scalar.
        counted: (N,) booleans; an entry that does not count becomes zero and is left out of the mean. Default: all count.
        weights: (N,), at least 0; each value is multiplied by its weight, and the mean is Σ w v / Σ w. Default: all 1.

    Returns:
        (N,) or a scalar. With nothing to count the scalar is a zero that is connected to the graph of ``values``, so that
        ``backward()`` works.

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
