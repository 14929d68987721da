"""Layers by name: the one place where a name becomes a module and a module a name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

from torch import nn


def module_names(model: Callable[..., Any]) -> dict[nn.Module, str]:
    """Return the dotted name of each module of a model; the model itself is ``""``. Empty for a function."""
    if not isinstance(model, nn.Module):
        return {}
    return {module: name for name, module in model.named_modules()}


def layer_name(model: Callable[..., Any], layer: nn.Module | str) -> str:
    """Return the dotted name of a layer inside a model.

    Raises:
        TypeError: ``layer`` is neither a module nor a name, or a name is given with a function.
        ValueError: the layer is not inside the model.
    """
    module = find_layer(model, layer)
    name = module_names(model).get(module)
    if not name:
        raise ValueError(
            f"layer: expected a module inside {type(model).__name__}, got {type(module).__name__}, which is not; pass its name"
        )
    return layer if isinstance(layer, str) else name


def find_layers(
    forward_func: Callable[..., Any], layer: nn.Module | str | Sequence[nn.Module | str]
) -> nn.Module | list[nn.Module]:
    """Return the module, or a list of modules if a list was given.

    Args:
        forward_func: the model; names are looked up in it.
        layer: a module, a dotted name, or a list of either.

    Raises:
        TypeError: ``layer`` is neither a module nor a name, or a name is given with a function.
        ValueError: the model has no layer of this name, the list is empty, or it has a layer twice.
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
    """Return the module of one layer; arguments and errors are those of :func:`find_layers`."""
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
        known = [name for name in module_names(forward_func).values() if name]
        same_end = [name for name in known if name.split(".")[-1] == layer.split(".")[-1]]
        close = same_end or sorted(get_close_matches(layer, known, n=8)) or known
        raise ValueError(
            f"layer: expected the name of a layer of {type(forward_func).__name__}, got {layer!r}; it has "
            f"{', '.join(close[-8:])}"
        ) from None
