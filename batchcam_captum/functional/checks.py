"""Checks of values. Shapes and dtypes raise at once; values must not make a GPU wait."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, get_args

import torch
from torch import Tensor


def check_choice(name: str, value: object, choices: Any) -> None:
    """Raise a ``ValueError`` unless an option is one of the values of a ``Literal``."""
    known = [repr(choice) for choice in get_args(choices)]
    if value not in get_args(choices):
        raise ValueError(f"{name}: expected {', '.join(known[:-1])} or {known[-1]}, got {value!r}")


def check_number(name: str, value: Any, *, zero: bool = False, below: float = math.inf) -> None:
    """Check a finite real number that is more than 0, or at least 0 with ``zero``, and less than ``below``.

    Raises:
        TypeError: not a number.
        ValueError: out of range.
    """
    if not _is_number(value, Real):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    if not (0 <= value < below if zero else 0 < value < below) or not math.isfinite(value):
        limit = f" and less than {below:g}" if below < math.inf else ""
        raise ValueError(
            f"{name}: expected a finite number, {'at least' if zero else 'more than'} 0{limit}, got {value}"
        )


def check_integer(name: str, value: Any, low: int) -> None:
    """Check an integer of at least ``low``.

    Raises:
        TypeError: not an integer.
        ValueError: less than ``low``.
    """
    if not _is_number(value, Integral):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if value < low:
        raise ValueError(f"{name}: expected at least {low}, got {value}")


def _is_number(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def readable(tensor: Tensor) -> bool:
    """Return True if the host can read the values of a tensor without waiting for a device."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def unless_all(mask: Tensor) -> Tensor | None:
    """Return a mask, or None where all of it is True and the host can see that."""
    return None if readable(mask) and bool(mask.all()) else mask


def both(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Return what is in both of two masks, of which None is everything."""
    if first is None or second is None:
        return second if first is None else first
    return first & second


class ValueChecks:
    """Collect conditions on tensor values, and raise if one does not hold.

    On the CPU a condition that does not hold raises at once. On any other device reading a value would make the host wait, so
    the outcome stays there, one boolean per condition, until :meth:`raise_failed`.

    Args:
        synchronize: read every condition at once on every device.
    """

    def __init__(self, *, synchronize: bool = False) -> None:
        self.synchronize = synchronize
        #: A list that collects the outcomes in a compiled step; if it is None, a compiled step checks nothing.
        self.outcomes: list[Tensor] | None = None
        self._failed: dict[str, Tensor] = {}

    def require(self, holds: Tensor, message: str, detail: Callable[[], str] | None = None) -> None:
        """Require that every element of ``holds`` is true.

        Args:
            holds: booleans of any shape.
            message: what was expected and what to do.
            detail: called for what was found, only where the values can be read at once.

        Raises:
            ValueError: an element is false, and the values can be read at once.
        """
        all_hold = holds.detach().all()
        if torch.compiler.is_compiling():
            if self.outcomes is not None:
                self.outcomes.append(all_hold)
            return
        if self.synchronize or all_hold.device.type == "cpu":
            if not bool(all_hold):
                raise ValueError(message if detail is None else f"{message} ({detail()})")
            return
        failed = ~all_hold
        earlier = self._failed.get(message)
        self._failed[message] = failed if earlier is None else earlier.to(failed.device) | failed

    def raise_failed(self) -> None:
        """Raise what has accumulated, and forget it. Waits for the device.

        Raises:
            ValueError: a condition did not hold since the last call.
        """
        failed = self.take_failed()
        messages = [message for message, flag in failed.items() if bool(flag)]
        if messages:
            raise ValueError("; ".join(messages) + " (in a batch since the last check)")

    def take_failed(self) -> dict[str, Tensor]:
        """Return and forget what could not be read: message -> a boolean on its device, True if the check failed."""
        failed, self._failed = self._failed, {}
        return failed
