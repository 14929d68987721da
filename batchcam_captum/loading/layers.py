"""The layer to explain: the one that the user names, or the one that is suggested."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor, nn

from ..attribution import suggest_layers
from ..attribution.compiled import eager_stance, original
from ..attribution.layers import find_layer as layer_named
from ..attribution.suggestions import Layout
from ..attribution.trace import traced


class FoundLayer(NamedTuple):
    """A layer of a model."""

    name: str  #: dotted, as ``BatchGradCam(model, name)`` takes it
    module: nn.Module
    #: What ``BatchGradCam(…, reshape=)`` needs to make (N, C, *spatial) of it; None as well where that cannot be told.
    reshape: Literal["auto"] | None


def find_layer(model: nn.Module, name: str | None = None, example: Tensor | None = None) -> FoundLayer:
    """The layer of this name, or the one to begin with.

    Args:
        model: the model, in the mode in which it is going to be explained.
        name: dotted; None: the one that :func:`~batchcam_captum.suggest_layers` recommends.
        example: inputs of a sample or two, (N, C, H, W). Without them nothing can be suggested or told of the layout.

    Returns:
        Its name, the module, and how what it returns becomes (N, C, *spatial).

    Raises:
        ValueError: no layer of this name, with the nearest names; nothing to suggest; neither a name nor an example.
    """
    if name == "":
        raise ValueError(
            "layer: expected the name of a layer, got an empty one; leave it out to have one suggested"
        )
    if name is not None:
        module = layer_named(model, name)
        return FoundLayer(name, module, None if example is None else _reshape_of(model, module, example))
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


def _reshape_of(model: nn.Module, module: nn.Module, example: Tensor) -> Literal["auto"] | None:
    """How what the layer returns is to be read, as far as a forward tells."""
    plain = original(model)
    with eager_stance(), traced(plain, (example,), ()) as trace:
        runs = trace.runs(module)
        layout = Layout.of(runs[-1], plain, trace) if runs else None
    return layout.reshape if layout else None
