"""Explaining never trains: what a forward changes on the way is put back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from .survey import Survey

T = TypeVar("T")


class _Buffers:
    """Copies of the buffers of modules in training mode, taken before their forward."""

    def __init__(self) -> None:
        self._saved: dict[nn.Module, dict[str, tuple[Tensor, Tensor] | None]] = {}

    def save(self, module: nn.Module) -> None:
        if module.training and module._buffers and module not in self._saved:
            self._saved[module] = {
                name: None if buffer is None else (buffer, buffer.detach().clone())
                for name, buffer in module._buffers.items()
            }

    def restore(self) -> None:
        for module, buffers in self._saved.items():
            for name, saved in buffers.items():
                if saved is None:
                    module._buffers[name] = None
                    continue
                buffer, before = saved
                # Through `.data`: a graph that the caller still holds has saved the running statistics, and would refuse
                # its backward if their version had moved.
                buffer.data.copy_(before)
                module._buffers[name] = buffer


@contextmanager
def _rng_kept(tensors: Sequence[Tensor]) -> Iterator[None]:
    kinds: dict[str, list[int]] = {}
    for device in {tensor.device for tensor in tensors}:
        if device.type not in ("cpu", "meta"):
            kinds.setdefault(device.type, []).append(device.index or 0)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for kind, indices in kinds.items():
            stack.enter_context(torch.random.fork_rng(devices=indices, device_type=kind))
        yield


@contextmanager
def state_kept(facts: Survey, layers: Sequence[nn.Module], tensors: Sequence[Tensor]) -> Iterator[None]:
    """Put back the buffers of modules in training mode and torch's random state, also when the body raises.

    Args:
        facts: of the model that is going to be called. Where all of its modules can be seen and none of them trains there is
            nothing to look after; otherwise each module is also looked at when it is called, so that hidden ones are found.
        layers: the layers that are explained.
        tensors: the inputs; the random state of their devices is kept beside the CPU's.
    """
    buffers = _Buffers()
    for module in facts.training:
        buffers.save(module)
    handle = None
    if facts.training or not facts.modules.issuperset(layers):
        owner = get_ident()

        def look(module: nn.Module, _: Any) -> None:
            if get_ident() == owner:
                buffers.save(module)

        handle = register_module_forward_pre_hook(look)
    try:
        with _rng_kept(tensors):
            yield
    finally:
        if handle is not None:
            handle.remove()
        buffers.restore()


def recordable(value: T) -> T:
    """A tensor made under inference_mode cannot be saved for a backward; its copy can. Call this outside of that mode."""
    return cast(T, value.clone()) if isinstance(value, Tensor) and value.is_inference() else value
