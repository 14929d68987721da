"""The class sums of earlier calls, for class means over more than one batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..functional.losses.prototypes import BESIDE_MAPS


class ClassSumsMemory(nn.Module):
    """The packed class sums of the last calls, in a ring of buffers.

    The buffers take their shape from the first call. Only the device knows which entry is the oldest, so that nothing waits for
    it; entries that were never written are zero, as are the sums of a batch without samples.

    Args:
        length: how many calls are remembered, M − 1.
        num_classes: the number of classes, K.
    """

    maps: Tensor  #: (M−1, K, 1, *spatial), sums of the normalized maps
    rest: Tensor  #: (M−1, K, 4), the sums beside them
    num_calls: Tensor  #: how often something was remembered since the last reset, a scalar

    def __init__(self, length: int, num_classes: int) -> None:
        super().__init__()
        self.length = length
        with torch.inference_mode(False):
            self.register_buffer("maps", torch.zeros(length, num_classes, 1, 0))
            self.register_buffer("rest", torch.zeros(length, num_classes, BESIDE_MAPS))
            self.register_buffer("num_calls", torch.zeros((), dtype=torch.long))

    def check_size(self, size: tuple[int, ...]) -> None:
        """Raise a ``ValueError`` unless maps of this size are remembered, or none."""
        remembered = tuple(self.maps.shape[3:])
        if self.maps.numel() and remembered != size:
            raise ValueError(
                f"cams: expected maps of the size {remembered} that is remembered from earlier calls, got {size}; call "
                f"loss.reset() where the size changes"
            )

    def with_earlier(self, sums: Tensor) -> Tensor:
        """Add the sums (K, D + 4) of this call to those remembered; the gradient of this call is multiplied by their number."""
        if not self.maps.numel():
            return sums
        earlier = torch.cat([self.maps.sum(0).flatten(1), self.rest.sum(0)], 1).to(sums)
        calls = self.num_calls.clamp(max=self.length).to(sums) + 1
        scaled = sums * calls
        return sums.detach() + earlier + (scaled - scaled.detach())  # the difference is zero

    @torch.no_grad()
    def remember(self, sums: Tensor, size: tuple[int, ...]) -> None:
        """Replace the oldest sums by those of a call, (K, D + 4)."""
        if not self.maps.numel():
            self.maps = sums.new_zeros(self.length, sums.shape[0], 1, *size)
            self.rest = sums.new_zeros(self.length, sums.shape[0], BESIDE_MAPS)
            self.num_calls = self.num_calls.to(sums.device)
        oldest = (self.num_calls % self.length).reshape(1)
        # Not in place: the backward of a compiled step may read them again, and would see those of the next call.
        self.maps = self.maps.index_copy(
            0, oldest, sums[:, :-BESIDE_MAPS].reshape(1, -1, 1, *size).to(self.maps)
        )
        self.rest = self.rest.index_copy(0, oldest, sums[:, -BESIDE_MAPS:].unsqueeze(0).to(self.rest))
        self.num_calls = self.num_calls + 1

    def reset(self) -> None:
        """Forget all calls, and their size."""
        with torch.inference_mode(False):
            self.maps = self.maps.new_zeros(self.length, self.maps.shape[1], 1, 0)
            self.rest = torch.zeros_like(self.rest)
            self.num_calls = torch.zeros_like(self.num_calls)

    def extra_repr(self) -> str:
        """Return what ``print`` shows."""
        return f"length={self.length}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = self.maps, self.rest
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # .half(), .double(): the device may change, the precision may not.
        self.maps, self.rest = (tensor.to(self.maps.device) for tensor in before)
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, *rest: Any
    ) -> None:
        for name in ("maps", "rest"):
            saved, own = state_dict.get(f"{prefix}{name}"), getattr(self, name)
            if saved is None:
                continue
            if saved.shape[:2] != own.shape[:2]:
                error_messages = rest[-1]
                error_messages.append(
                    f"memory: expected {own.shape[0]} calls of {own.shape[1]} classes, got a state of {saved.shape[0]} calls of "
                    f"{saved.shape[1]}; make the loss with memory={saved.shape[0]}"
                )
                return
            setattr(self, name, torch.zeros_like(saved, device=own.device))  # its dtype as well: bit for bit
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *rest)
