"""Attention with a second derivative: the math backend, while it is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock
from types import TracebackType
from typing import Self

import torch

_BACKENDS = torch.backends.cuda  # whose flags hold on the CPU as well

#: (read, write, value for the math backend) of every backend of scaled_dot_product_attention; "overrideable" is that of devices
#: other than CUDA's.
_FLAGS: list[tuple[Callable[[], bool], Callable[[bool], object], bool]] = [
    (_BACKENDS.math_sdp_enabled, _BACKENDS.enable_math_sdp, True),
    (_BACKENDS.flash_sdp_enabled, _BACKENDS.enable_flash_sdp, False),
    (_BACKENDS.mem_efficient_sdp_enabled, _BACKENDS.enable_mem_efficient_sdp, False),
    (_BACKENDS.cudnn_sdp_enabled, _BACKENDS.enable_cudnn_sdp, False),
    (torch._C._get_overrideable_sdp_enabled, torch._C._set_sdp_use_overrideable, False),
]
_MATH_ONLY = [wanted for _, _, wanted in _FLAGS]

# The flags belong to the process: the first user saves them, and the last one restores them.
_lock = Lock()
_users = 0
_before: list[bool] = []


def _set_flags(values: Sequence[bool]) -> None:
    for (_, write, _), value in zip(_FLAGS, values, strict=True):
        write(value)


def _flags() -> list[bool]:
    return [read() for read, _, _ in _FLAGS]


class MathAttention:
    """Select the math backend of ``scaled_dot_product_attention`` between :meth:`start` and :meth:`stop`.

    Each forward needs its own. It may start late, in the hook of the explained layer, so that attention before the layer stays
    fused; several may overlap, in one thread or in many. Both methods may be called twice, and :meth:`stop` without a start.
    As a context manager it only stops.
    """

    def __init__(self) -> None:
        self.started = False

    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        """Copy or pickle as one that has not started."""
        return type(self), ()

    def start(self) -> None:
        """Select the math backend."""
        global _users, _before
        with _lock:
            if self.started:
                return
            if not _users:
                _before = _flags()
                _set_flags(_MATH_ONLY)
            _users += 1
            self.started = True

    def stop(self) -> None:
        """Restore the flags from before the first start when the last user stops."""
        global _users
        with _lock:
            if not self.started:
                return
            self.started = False
            _users -= 1
            # If the layer runs inside a sdpa_kernel() of the model, that has already restored the flags.
            if not _users and _flags() == _MATH_ONLY:
                _set_flags(_before)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
