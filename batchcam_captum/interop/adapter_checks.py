"""The adapter's checks, and the engine's errors in the adapter's words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

#: pytorch-grad-cam's methods for subclasses to override, which nothing here calls.
_NOT_CALLED = (
    "get_cam_weights",
    "get_cam_image",
    "compute_cam_per_layer",
    "aggregate_multi_layers",
    "forward_augmentation_smoothing",
    "get_target_width_height",
)
#: The engine's arguments as the adapter calls them.
_ARGUMENTS = {"layer": "target_layers", "reshape": "reshape_transform", "forward_func": "model"}


def check_subclass(adapter: type) -> None:
    """Reject a subclass with methods that pytorch-grad-cam would call.

    Args:
        adapter: the subclass.

    Raises:
        TypeError: it has one of them, its own or inherited.
    """
    for name in _NOT_CALLED:
        if hasattr(adapter, name):
            raise TypeError(
                f"{adapter.__name__}: expected no {name}, which pytorch-grad-cam calls and this package does not; pass a "
                f"weighting, a function of activations and gradients, to BatchGradCam(model, layers, method=function), and its "
                f"maps to to_pytorch_grad_cam(cams, size); or subclass pytorch_grad_cam's own class"
            )


def listed_layers(target_layers: Any) -> list[Any]:
    """The layers, one entry each, as pytorch-grad-cam iterates over them.

    Args:
        target_layers: a list of modules or of their names. ``nn.Sequential`` and ``nn.ModuleList`` are lists of their children;
            any other module is a single layer, and so is a name.

    Returns:
        A list of modules and names.

    Raises:
        TypeError: nothing that can be iterated over.
    """
    if isinstance(target_layers, nn.Sequential | nn.ModuleList):
        return list(target_layers)
    if isinstance(target_layers, nn.Module | str):
        return [target_layers]
    if not isinstance(target_layers, Iterable):
        raise TypeError(
            f"target_layers: expected a list of modules or of their names, got {type(target_layers).__name__}"
        )
    return list(target_layers)


def check_places(layer: str, entry: Any, images: Tensor) -> None:
    """Check what a layer returned, or its maps.

    Args:
        layer: its name.
        entry: expected to be (N, C, *spatial), with N and as many dimensions as the images have.
        images: (N, C, *spatial).

    Raises:
        TypeError: no tensor.
        ValueError: another shape.
    """
    expected = f"(N, C, {'H, W' if images.dim() == 4 else 'D, H, W'})"
    if not isinstance(entry, Tensor):
        raise TypeError(
            f"target_layers: expected {layer} to return a tensor {expected}, got {type(entry).__name__}; choose a layer inside "
            f"it, or pass a reshape_transform that makes a tensor of it"
        )
    if entry.dim() != images.dim() or len(entry) != len(images):
        raise ValueError(
            f"target_layers: expected activations {expected} from {layer}, one row for each of {len(images)} images, got maps of "
            f'shape {tuple(entry.shape)}; pass a reshape_transform (reshape_transform="auto" knows tokens and channels-last '
            f"layers), or choose another layer"
        )


@contextmanager
def in_the_adapters_words() -> Iterator[None]:
    """What the engine says about its arguments, said about those of the adapter. The original is the cause."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError) as error:
        text = str(error)
        argument = _ARGUMENTS.get(text.partition(": expected")[0])
        if argument:
            text = argument + text[text.index(":") :]
        text = re.sub(r"\bforward_func\b", "the model", text)
        text = re.sub(r"\breshape=", "reshape_transform=", text)
        if text == str(error) or type(error) not in (RuntimeError, TypeError, ValueError):
            raise
        raise type(error)(text) from error


@contextmanager
def naming_types(images: Tensor, model: nn.Module) -> Iterator[None]:
    """Say which images a model of floating-point numbers expects, where it does not take those that it is given.

    Only where torch rejects them: a model may well convert bytes, or other types, by itself.

    Args:
        images: of any type.
        model: that they are given to.

    Raises:
        TypeError: torch has rejected the types, and those of the images and the parameters differ.
    """
    try:
        yield
    except RuntimeError as error:
        types = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
        expected = next(types, torch.get_default_dtype())
        if images.dtype == expected or not re.search(r"type|implemented for", str(error), re.IGNORECASE):
            raise
        remedy = (
            f"pass images.to({expected})"
            if images.is_floating_point()
            else "pass images.float(), scaled and normalised as in training"
        )
        raise TypeError(
            f"input_tensor: expected floating-point images of the model's type {expected}, got {images.dtype}; {remedy}"
        ) from error
