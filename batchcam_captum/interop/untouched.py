"""Putting a model back exactly as it was, whatever a foreign library did to it."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.jit import ScriptModule
from torch.nn.modules import module as torch_module
from torch.nn.parameter import is_lazy

from ..attribution.state import rng_kept

# Where torch keeps hooks that hold for all modules.
_GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_forward_hooks_always_called",
    "_global_forward_hooks_with_kwargs",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
    "_global_buffer_registration_hooks",
    "_global_module_registration_hooks",
    "_global_parameter_registration_hooks",
)
_TENSOR_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put a model back exactly as it was when the body ends, also where it raises.

    What is put back, by identity and value: every module's attributes (the training mode, parameters, buffers, submodules,
    hooks of all kinds, a replaced ``forward``); the values, ``requires_grad``, ``.grad`` and hooks of parameters and buffers, and
    of tensors that are plain attributes; hooks for all modules; the random states of torch, NumPy and Python; the grad mode.

    What is not seen: modules and tensors that the model hides in lists or closures, and hooks on a parameter's gradient
    accumulator. Memory: a copy of all parameters, buffers and gradients, as long as the body runs.

    Args:
        model: any module.

    Returns:
        A context, to be entered by ``with``.

    Raises:
        ValueError: a parameter that has no shape yet.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 2)
        >>> with untouched(model):
        ...     _ = model.eval().requires_grad_(False)
        ...     model.bias.data.zero_()
        tensor([0., 0.])
        >>> model.training, model.bias.requires_grad, bool(model.bias.any())
        (True, True, True)
    """
    modules = [_Module(module) for module in model.modules()]
    found = {id(tensor): tensor for module in modules for tensor in module.tensors()}
    tensors = [_Tensor(tensor) for tensor in found.values()]
    global_hooks = [
        (hooks, hooks.copy())
        for hooks in (getattr(torch_module, name, None) for name in _GLOBAL_HOOKS)
        if hooks is not None
    ]
    grad_mode = torch.is_grad_enabled()

    def put_back() -> None:
        with torch.inference_mode(False), torch.no_grad():
            for module in modules:
                module.put_back()
            for tensor in tensors:
                tensor.put_back()
        for hooks, before in global_hooks:
            _refill(hooks, before)
        torch.set_grad_enabled(grad_mode)

    with ExitStack() as stack:
        # Innermost last: what one of them raises keeps none of the others from running.
        # The values are the same again, so a graph that the caller still holds may go backward.
        counted = tuple(tensor for tensor in found.values() if not tensor.is_inference())
        stack.enter_context(_unsafe_preserve_version_counter(counted))
        stack.enter_context(rng_kept(list(found.values())))
        stack.enter_context(_other_random_states_kept())
        stack.callback(put_back)
        yield


@contextmanager
def _other_random_states_kept() -> Iterator[None]:
    # NumPy is not loaded for this: what has not been loaded has not been seeded by the user.
    numpy = sys.modules.get("numpy")
    state = random.getstate(), numpy and numpy.random.get_state()
    try:
        yield
    finally:
        random.setstate(state[0])
        if numpy is not None:
            numpy.random.set_state(state[1])


def _refill(container: Any, before: Any) -> None:
    """In place: handles of hooks, and whoever holds the container, refer to this very object."""
    if isinstance(container, list):
        container[:] = before
    elif isinstance(container, set):
        container.clear()
        container.update(before)
    elif list(container) != list(before) or any(container[key] is not before[key] for key in before):
        # By identity: tensors have no truth value.
        container.clear()
        container.update(before)


class _Module:
    """One module's own attributes."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.kind = module, type(module)
        self.training = module.training
        # A scripted module keeps its state outside of Python.
        self.attributes = None if isinstance(module, ScriptModule) else dict(module.__dict__)
        self.containers = [
            (value, value.copy())
            for value in (self.attributes or {}).values()
            if isinstance(value, dict | list | set)
        ]

    def tensors(self) -> Iterator[Tensor]:
        """All that it holds, also as plain attributes."""
        yield from self.module.parameters(recurse=False)
        yield from self.module.buffers(recurse=False)
        yield from (value for value in (self.attributes or {}).values() if isinstance(value, Tensor))

    def put_back(self) -> None:
        if self.attributes is None:
            if self.module.training != self.training:
                self.module.training = self.training
            return
        if type(self.module) is not self.kind:
            self.module.__class__ = self.kind
        for container, before in self.containers:
            _refill(container, before)
        present = self.module.__dict__
        for name in present.keys() - self.attributes.keys():
            del present[name]
        present.update(self.attributes)


class _Tensor:
    """A parameter, a buffer, or a tensor that a module holds."""

    def __init__(self, tensor: Tensor) -> None:
        if is_lazy(tensor):
            raise ValueError(
                "untouched: expected a model whose parameters have their shapes, got one that is uninitialised; call it once "
                "with an input first"
            )
        self.tensor = tensor
        self.values = _Values(tensor)
        self.requires_grad = tensor.requires_grad
        self.hooks = [(name, getattr(tensor, name, None)) for name in _TENSOR_HOOKS]
        self.hooks_before = [hooks and hooks.copy() for _, hooks in self.hooks]
        # Of what is computed from other tensors the gradient cannot be asked for.
        self.grad = tensor.grad if tensor.is_leaf else None
        self.grad_values = None if self.grad is None else _Values(self.grad)

    def put_back(self) -> None:
        tensor = self.tensor
        self.values.put_back()
        for (name, hooks), before in zip(self.hooks, self.hooks_before, strict=True):
            if hooks is None:
                present = getattr(tensor, name, None)
                if present is not None:
                    present.clear()  # autograd holds on to it, also when the attribute is None again
                    setattr(tensor, name, None)
            else:
                _refill(hooks, before)
        if not tensor.is_leaf:
            return
        if self.grad_values is not None:
            self.grad_values.put_back()
        if tensor.grad is not self.grad:
            tensor.grad = self.grad
        if tensor.requires_grad != self.requires_grad:
            tensor.requires_grad_(self.requires_grad)


class _Values:
    """A tensor's memory and what stands in it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.memory = tensor, tensor.data
        self.before = tensor.detach().clone()

    def put_back(self) -> None:
        if not _same_memory(self.tensor.data, self.memory):
            self.tensor.data = self.memory
        if not _equal(self.memory, self.before):
            self.tensor.data.copy_(self.before)


def _same_memory(one: Tensor, other: Tensor) -> bool:
    if one.device != other.device or one.dtype != other.dtype or one.shape != other.shape:
        return False
    if one.layout != torch.strided or other.layout != torch.strided:
        return one.layout == other.layout
    return one.device.type == "meta" or (
        one.data_ptr() == other.data_ptr() and one.stride() == other.stride()
    )


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.device.type == "meta":
        return True
    return one.layout == torch.strided and torch.equal(one, other)
