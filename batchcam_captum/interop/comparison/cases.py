"""What is compared and measured: one model, one layer, some images, each library's call on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..peers import OURS, PEERS, Peer
from .measure import Call, Within

OUT_OF_MEMORY = "out of memory"
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Work:
    """All that a library needs to know to be called."""

    model: nn.Module
    layer: str
    images: Tensor
    targets: list[int]
    reshape: Callable[[Tensor], Tensor] | None

    def batch(self, size: int) -> tuple[Tensor, list[int]]:
        """So many images and their targets: the first ones, or all of them again and again."""
        rows = torch.arange(size) % len(self.images)
        images = self.images[rows.to(self.images.device)]
        if images.dim() == 4 and not self.images.is_contiguous():
            # Indexing does not keep channels_last.
            images = images.contiguous(memory_format=torch.channels_last)
        return images, [self.targets[row] for row in rows.tolist()]

    def case(self, library: str, method: str, size: int) -> Within:
        """One call on a batch, to be measured. The library's hooks are on the model while it is, and only then."""
        images, targets = self.batch(size)

        @contextmanager
        def enter() -> Iterator[Call]:
            with library_named(library).opened(self.model, self.layer, method, reshape=self.reshape) as call:
                yield lambda: call(images, targets)

        return Within(enter)


def library_named(name: str) -> Peer:
    """This library or a peer."""
    return OURS if name == OURS.name else PEERS[name]


def reason_of(error: BaseException) -> str:
    """An error in one line; one word for memory that ran out, on whatever device."""
    seen: BaseException | None = error
    while seen is not None:
        # The allocator of the CPU has no error of its own.
        if isinstance(seen, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(seen):
            return OUT_OF_MEMORY
        seen = seen.__cause__
    lines = str(error).strip().splitlines() or [""]
    text = lines[0].strip()
    # The peers' errors name the library and the kind of error already.
    return text if text and isinstance(error, ValueError) else f"{type(error).__name__}: {text}"
