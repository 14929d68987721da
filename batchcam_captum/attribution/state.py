"""Explaining never trains: what a forward changes on the way is put back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import RLock, get_ident
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from .survey import Survey

T = TypeVar("T")


class BufferCopies:
    """Copies of the buffers of modules in training mode, taken before their forward."""

    def __init__(self) -> None:
        self._saved: dict[nn.Module, dict[str, tuple[Tensor, Tensor] | None]] = {}

    def save(self, module: nn.Module) -> None:
        """Copy them; the first time counts."""
        if module.training and module._buffers and module not in self._saved:
            self._saved[module] = {
                name: None if buffer is None else (buffer, buffer.detach().clone())
                for name, buffer in module._buffers.items()
            }

    def restore(self) -> None:
        """Put all of them back."""
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
def rng_kept(tensors: Sequence[Tensor], *, always: bool = True) -> Iterator[None]:
    """Put torch's random state back, of the CPU and of the tensors' devices.

    The state belongs to the process: what other threads draw meanwhile is drawn again.

    Args:
        tensors: the inputs.
        always: otherwise only if the body raises, so that another forward draws the same numbers.
    """
    devices = {tensor.device for tensor in tensors if tensor.device.type not in ("cpu", "meta")}
    before = torch.get_rng_state()
    on_devices = [
        (torch.get_device_module(device), device, torch.get_device_module(device).get_rng_state(device))
        for device in devices
    ]
    put_back = True
    try:
        yield
        put_back = always
    finally:
        if put_back:
            torch.set_rng_state(before)
            for module, device, state in on_devices:
                module.set_rng_state(state, device)


# Two calls that overlap would save what the other one's forward has changed.
_training_lock = RLock()


@contextmanager
def state_kept(
    facts: Survey, layers: Sequence[nn.Module], tensors: Sequence[Tensor], *, keep_rng: bool = True
) -> Iterator[None]:
    """Put back the buffers of modules in training mode and torch's random state, also when the body raises.

    Calls on models with a module in training mode wait for each other, whatever their threads.

    Args:
        facts: of the model that is going to be called. Where all of its modules can be seen and none of them trains there is
            nothing to look after, also no random state: other threads may be drawing. Otherwise each module is also looked at
            when it is called, so that hidden ones are found.
        layers: the layers that are explained.
        tensors: the inputs; the random state of their devices is kept beside the CPU's.
        keep_rng: put the random state back; False where the caller does so.
    """
    buffers = BufferCopies()
    with ExitStack() as stack:
        if facts.training:
            stack.enter_context(_training_lock)
        look_after = facts.may_train(layers)
        stack.enter_context(rng_kept(tensors, always=look_after and keep_rng))
        stack.callback(buffers.restore)
        for module in facts.training:
            buffers.save(module)
        if look_after:
            owner = get_ident()

            def look(module: nn.Module, _: Any) -> None:
                if get_ident() == owner:
                    buffers.save(module)

            stack.callback(register_module_forward_pre_hook(look).remove)
        yield


def recordable(value: T) -> T:
    """A tensor made under inference_mode cannot be saved for a backward; its copy can. Call this outside of that mode."""
    return cast(T, value.clone()) if isinstance(value, Tensor) and value.is_inference() else value
