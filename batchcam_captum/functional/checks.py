"""Checks of values. Shapes and dtypes raise at once; values must not make a GPU wait."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class ValueChecks:
    """Collects conditions on tensor values, and raises when one does not hold.

    On the CPU a condition that does not hold raises at once. On any other device looking at a value would make the
    host wait for the device, so the outcome stays there, one boolean a condition, until :meth:`raise_failed`.

    Args:
        synchronize: look at every condition at once on every device.
    """

    def __init__(self, *, synchronize: bool = False) -> None:
        self.synchronize = synchronize
        #: Where a list is put here, what is looked at in a compiled step goes into it; otherwise nothing is looked at there.
        self.outcomes: list[Tensor] | None = None
        self._failed: dict[str, Tensor] = {}

    def require(self, holds: Tensor, message: str, detail: Callable[[], str] | None = None) -> None:
        """Note that every element of ``holds`` has to be true.

        Args:
            holds: booleans of any shape.
            message: what was expected and what to do.
            detail: called for what came, and only where the values can be read at once.

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
        """Message -> whether it has to be raised (a boolean on its device), of all that could not be read; forgets them."""
        failed, self._failed = self._failed, {}
        return failed
