"""Explaining never trains: put back what a forward changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn

#: Held by forwards of models in training mode.
training_lock = RLock()


class BufferCopies:
    """Copies of the buffers of modules in training mode, taken before their forward."""

    def __init__(self) -> None:
        self._saved: dict[nn.Module, dict[str, tuple[Tensor, Tensor] | None]] = {}

    def save(self, module: nn.Module) -> None:
        """Copy the buffers of a module, the first time it is given."""
        if module.training and module._buffers and module not in self._saved:
            self._saved[module] = {
                name: None if buffer is None else (buffer, buffer.detach().clone())
                for name, buffer in module._buffers.items()
            }

    def restore(self) -> None:
        """Put all buffers back."""
        for module, buffers in self._saved.items():
            for name, saved in buffers.items():
                if saved is None:
                    module._buffers[name] = None
                    continue
                buffer, before = saved
                # Through `.data`: a graph that the caller holds has saved the running statistics, and would refuse its
                # backward if their version had moved.
                buffer.data.copy_(before)
                module._buffers[name] = buffer


@contextmanager
def rng_kept(tensors: Sequence[Tensor], *, always: bool = True) -> Iterator[None]:
    """Put torch's random state back, of the CPU and of the tensors' devices.

    The state belongs to the process: what other threads draw meanwhile is drawn again.

    Args:
        tensors: the inputs.
        always: put it back. Otherwise only if the block raises, so that another forward draws the same numbers.
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


def recordable(value: Any, *, copy: bool = False) -> Any:
    """Return a value that autograd can save; call this outside of ``torch.inference_mode()``.

    Args:
        value: anything; only tensors are touched.
        copy: copy a floating tensor, so that the copy requires a gradient.

    Returns:
        A clone of a tensor that was made under ``torch.inference_mode()``; anything else as it is.
    """
    if not isinstance(value, Tensor):
        return value
    if copy and value.is_floating_point():
        value = value.clone() if value.is_inference() else value
        # Not a leaf, which the model could not change in place.
        return (value if value.requires_grad else value.detach().requires_grad_()).clone()
    return value.clone() if value.is_inference() else value
