"""The layer to explain: the one that the user names, or the one that is suggested."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor, nn

from ..attribution import suggest_layers
from ..attribution.layers import find_layer as find_module
from ..attribution.layers import layer_name
from ..attribution.suggestions import reshape_needed


class FoundLayer(NamedTuple):
    """A layer of a model."""

    name: str  #: dotted, as ``BatchGradCam(model, name)`` takes it
    module: nn.Module
    #: What ``BatchGradCam(…, reshape=)`` needs to make (N, C, *spatial) of it; None as well if that is uncertain.
    reshape: Literal["auto"] | None


def find_layer(
    model: nn.Module, layer: nn.Module | str | None = None, example: Tensor | None = None
) -> FoundLayer:
    """Find a layer of a model, or the one to begin with.

    Args:
        model: the model, in the mode in which it will be explained.
        layer: a module or its dotted name; None for the one that :func:`~batchcam_captum.suggest_layers` recommends.
        example: inputs of a sample or two, (N, C, H, W). Without them nothing is suggested, and ``reshape`` is None.

    Returns:
        The layer's name, the module, and how what it returns becomes (N, C, *spatial).

    Raises:
        ValueError: no layer of this name; nothing to suggest; neither a layer nor an example.
    """
    if layer is not None:
        name, module = layer_name(model, layer), find_module(model, layer)
        return FoundLayer(name, module, None if example is None else reshape_needed(model, module, example))
    if example is None:
        raise ValueError(
            "example: expected inputs to find a layer with, got none; pass them, or the layer's name"
        )
    best = suggest_layers(model, example).recommended
    if best is None:
        raise ValueError(
            f"layer: {type(model).__name__} has no layer with places on the way to its scores that could be suggested; name one"
        )
    return FoundLayer(best.name, model.get_submodule(best.name), best.reshape)
