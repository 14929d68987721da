"""From what a user calls a layer to the module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

from torch import nn


def find_layers(
    forward_func: Callable[..., Any], layer: nn.Module | str | Sequence[nn.Module | str]
) -> nn.Module | list[nn.Module]:
    """The layer, or a list of layers where a list was given.

    Args:
        forward_func: the model; names are looked up in it.
        layer: a module, a dotted name, or a list of either.

    Raises:
        TypeError: neither a module nor a name, or a name where ``forward_func`` is no module.
        ValueError: no layer of this name, an empty list, or a layer listed twice.
    """
    if isinstance(layer, nn.Module | str) or not isinstance(layer, Sequence):
        return find_layer(forward_func, layer)
    layers = [find_layer(forward_func, entry) for entry in layer]
    if not layers:
        raise ValueError("layer: expected at least one layer, got an empty list")
    repeated = [position for position, entry in enumerate(layers) if entry in layers[:position]]
    if repeated:
        raise ValueError(
            f"layer: expected each layer once, got {type(layers[repeated[0]]).__name__} again at position {repeated[0]}; leave "
            f"it out and use its map twice"
        )
    return layers


def find_layer(forward_func: Callable[..., Any], layer: nn.Module | str) -> nn.Module:
    """One layer, see :func:`find_layers`."""
    if isinstance(layer, nn.Module):
        return layer
    if not isinstance(layer, str):
        raise TypeError(f"layer: expected a torch.nn.Module or its name, got {type(layer).__name__}")
    if not isinstance(forward_func, nn.Module):
        raise TypeError(
            f"layer: expected a module, got the name {layer!r} with a forward_func that is no module; pass the module itself"
        )
    try:
        return forward_func.get_submodule(layer)
    except AttributeError:
        known = [name for name, _ in forward_func.named_modules() if name]
        same_end = [name for name in known if name.split(".")[-1] == layer.split(".")[-1]]
        close = same_end or sorted(get_close_matches(layer, known, n=8)) or known
        raise ValueError(
            f"layer: expected the name of a layer of {type(forward_func).__name__}, got {layer!r}; it has "
            f"{', '.join(close[-8:])}"
        ) from None
