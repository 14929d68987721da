"""Checks of values. Shapes and dtypes raise at once; values must not make a GPU wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import Tensor


def check_choice(name: str, value: object, choices: Any) -> None:
    """Check that an option is one of the values of a ``Literal``.

    Args:
        name: of the option, for the error.
        value: what was given.
        choices: the ``Literal``.

    Raises:
        ValueError: another value.
    """
    known = [repr(choice) for choice in get_args(choices)]
    if value not in get_args(choices):
        raise ValueError(f"{name}: expected {', '.join(known[:-1])} or {known[-1]}, got {value!r}")


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
