"""The processes of ``torchrun`` that share a command's work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from torch import distributed

from ..distributed import is_distributed


class Ranks:
    """The processes that write one store, as far as they know of each other."""

    def __init__(self, joined: bool) -> None:
        self._joined = joined

    def needed(self, option: str) -> None:
        """Raise where they do not."""
        if not self._joined:
            raise ValueError(
                f"{option}: expected processes that torchrun started, or one, got several that do not know of each other; remove "
                "the store first"
            )

    def wait(self) -> None:
        """Until all are here."""
        if self._joined:
            try:
                distributed.barrier()
            except RuntimeError as error:
                raise ValueError(
                    "explain: expected all ranks to come to the end, but one ended early; what is written is kept: give the same "
                    "command again to go on"
                ) from error


@contextmanager
def joined_ranks(world_size: int) -> Iterator[Ranks]:
    """Join the others of torchrun, unless this process has joined already."""
    if world_size == 1 or is_distributed() or "MASTER_ADDR" not in os.environ:
        yield Ranks(joined=world_size > 1 and is_distributed())
        return
    # Nothing but waiting goes through it; one rank may have much more to do than another.
    distributed.init_process_group("gloo", timeout=timedelta(days=7))
    try:
        yield Ranks(joined=True)
    finally:
        distributed.destroy_process_group()
