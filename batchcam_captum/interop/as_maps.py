"""Showing a library without a reshape a layer's output as maps, while the model goes on with what the layer returned."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

_EXPECTED = "reshape: expected one that only selects and rearranges, as the library has none of its own"


@contextmanager
def as_maps(layer: nn.Module, reshape: Callable[[Tensor], Tensor] | None) -> Iterator[None]:
    """Within this context, hooks that are set on the layer see what ``reshape`` makes of its output.

    The first hook rearranges, one that is set when the layer is called, so that it comes last, puts the places back where they
    were; what the rearrangement left out, such as a class token, comes past it. The graph goes through both.

    Args:
        layer: returns one tensor.
        reshape: selects and rearranges, and nothing else; None: nothing is done.

    Raises:
        ValueError: when the layer is called with a reshape that does more than select and rearrange.
    """
    if reshape is None:
        yield
        return
    kept: list[tuple[Tensor, Tensor]] = []
    last: list[RemovableHandle] = []
    origins_by_shape: dict[torch.Size, Tensor] = {}

    def forwards(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        maps = reshape(output)
        if output.shape not in origins_by_shape:
            origins_by_shape[output.shape] = _origins(reshape, output, maps)
        kept.append((output, origins_by_shape[output.shape]))
        return maps

    def backwards(module: nn.Module, inputs: Any, maps: Tensor) -> Tensor:
        last.pop().remove()
        output, origins = kept.pop()
        return output.flatten().index_put((origins,), maps.flatten()).reshape(output.shape)

    def add_last(module: nn.Module, inputs: Any) -> None:
        last.append(module.register_forward_hook(backwards))

    def remove_last() -> None:
        for handle in last:
            handle.remove()

    with ExitStack() as stack:
        stack.callback(remove_last)
        stack.callback(layer.register_forward_pre_hook(add_last).remove)
        stack.callback(layer.register_forward_hook(forwards).remove)
        yield


def _origins(reshape: Callable[[Tensor], Tensor], output: Tensor, maps: Tensor) -> Tensor:
    """Where in the flattened output each entry of the flattened maps comes from."""
    numbers = torch.arange(output.numel(), device=output.device).reshape(output.shape)
    try:
        origins = reshape(numbers).flatten()
    except RuntimeError as error:  # such as a mean of integers
        raise ValueError(f"{_EXPECTED}, got one that cannot do it with integers: {error}") from error
    selects = origins.dtype == numbers.dtype and len(origins.unique()) == maps.numel()
    if selects and bool((origins >= 0).all() and (origins < output.numel()).all()):
        flat = output.detach().flatten()
        if torch.equal(flat[origins], maps.detach().flatten()):
            return origins
    raise ValueError(f"{_EXPECTED}, got one that computes")
