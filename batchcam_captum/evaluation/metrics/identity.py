"""When two metrics measure the same: by their settings, and by the models and functions that they were given."""

from __future__ import annotations

import types
from functools import partial
from hashlib import sha256
from secrets import token_bytes
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from ...attribution import BatchGradCam

T = TypeVar("T")

#: Two processes may have different things at one address.
_PROCESS = token_bytes(16)
#: How many bits tell settings apart, and how many the things within a process.
SETTINGS_BITS, THINGS_BITS = 128, 64


class Borrowed(Generic[T]):
    """Holds what is the user's own: it is no part of the metric, so neither registered, nor moved, nor copied with it."""

    def __init__(self, thing: T) -> None:
        self.thing = thing

    def __deepcopy__(self, memo: dict[int, Any]) -> Borrowed[T]:
        return self


def is_borrowed(setting: object) -> bool:
    """Whether this is a model, a function or an explainer, which cannot be told from another by its value."""
    return callable(setting) or isinstance(setting, BatchGradCam)


def settings_bits(kind: type, settings: tuple[object, ...]) -> Tensor:
    """Bits (128,) of uint8, equal in all processes for equal settings; of models and functions the names alone count.

    Args:
        kind: the metric's class.
        settings: all that two metrics of this class may differ in.
    """
    digest = sha256(f"{kind.__module__}.{kind.__qualname__}".encode())
    for setting in settings:
        if isinstance(setting, Tensor):
            digest.update(f"|{setting.dtype}{tuple(setting.shape)}".encode())
            # A tensor without dimensions cannot be looked at as bytes.
            numbers = setting.detach().cpu().contiguous().reshape(-1)
            digest.update(numbers.view(torch.uint8).numpy().tobytes())
        elif is_borrowed(setting):
            name = getattr(setting, "__qualname__", type(setting).__qualname__)
            digest.update(f"|{getattr(setting, '__module__', '')}.{name}".encode())
        else:
            digest.update(f"|{setting!r}".encode())
    return _bits(digest.digest()[: SETTINGS_BITS // 8])


def things_bits(things: list[Borrowed[Any]]) -> Tensor:
    """Bits (64,) of uint8 that differ within a process for different models and functions; other processes have others."""
    addresses = [_address(each.thing) for each in things]
    return _bits(sha256(_PROCESS + repr(addresses).encode()).digest()[: THINGS_BITS // 8])


def _bits(parts: bytes) -> Tensor:
    return torch.tensor([byte >> place & 1 for byte in parts for place in range(8)], dtype=torch.uint8)


def _address(thing: Any) -> tuple[int, ...]:
    """Of a method its owner's: the method itself is made anew each time that it is asked for."""
    if isinstance(thing, types.MethodType):
        return id(thing.__self__), id(thing.__func__)
    return (id(thing),)


def alike(one: object, other: object) -> bool:
    """Whether two models or functions do the same, as far as can be told: the same ones, or a copy from another process.

    A copy of a module, as from ``pickle``, has the same type, and parameters and buffers of the same values. What has the same
    type but no way to look into it is taken to be alike.
    """
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, nn.Module) and isinstance(other, nn.Module):
        ours, theirs = one.state_dict(), other.state_dict()
        return ours.keys() == theirs.keys() and all(_equal(ours[name], theirs[name]) for name in ours)
    if isinstance(one, BatchGradCam) and isinstance(other, BatchGradCam):
        return alike(one.forward_func, other.forward_func) and _places(one) == _places(other)
    if isinstance(one, types.MethodType) and isinstance(other, types.MethodType):
        return one.__func__ is other.__func__ and alike(one.__self__, other.__self__)
    if isinstance(one, partial) and isinstance(other, partial):
        same = one.keywords.keys() == other.keywords.keys() and len(one.args) == len(other.args)
        arguments = zip(
            (*one.args, *(one.keywords[name] for name in sorted(one.keywords))),
            (*other.args, *(other.keywords[name] for name in sorted(other.keywords))),
            strict=True,
        )
        return same and alike(one.func, other.func) and all(_equal(mine, its) for mine, its in arguments)
    # Functions are pickled by name: a copy from another process is the function itself.
    return not isinstance(one, types.FunctionType)


def _places(grad_cam: BatchGradCam) -> object:
    """Where in its model an explainer looks, and how."""
    model = grad_cam.forward_func
    names = {module: name for name, module in model.named_modules()} if isinstance(model, nn.Module) else {}
    return [names.get(layer) for layer in grad_cam.layers], grad_cam.method


def _equal(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one.cpu(), other.cpu())
    return alike(one, other) if is_borrowed(one) else bool(one == other)
