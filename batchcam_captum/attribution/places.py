"""Where in an input the places of a layer lie: how to read what a run of it returned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from .reshape import find_reshape, is_channels_first
from .trace import Call, Trace

#: Maps with a shorter side say next to nothing.
LEAST_SIDE = 4

# They may have changed the order of axes of equal length.
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.RNNBase, nn.MultiheadAttention)


def least_side(map_size: tuple[int, ...]) -> int:
    """The shortest side of a map; of three, the first is time or depth, which is coarse, and does not count."""
    return min(map_size[-2:], default=0)


@dataclass(frozen=True)
class Layout:
    """How to read what a layer returns."""

    map_size: tuple[int, ...]
    reshape: Literal["auto"] | None
    bring: Callable[[Tensor], Tensor]  #: to (N, C, *spatial), for gradients as well
    sides: tuple[
        int, ...
    ]  #: of the input that the places belong to; none where it has no sides, or where several may be meant

    @staticmethod
    def of(call: Call, model: Callable[..., Any], trace: Trace) -> Layout | None:
        """Read a run's result, or None where it has no places or cannot be read for sure."""
        blank = torch.empty(call.shape or (), device="meta")
        if blank.dim() < 3:
            return None
        # Then it is (N, C, *spatial) also where the inputs have no places, or others: words, features.
        if _ends_in_convolution(call, trace):
            return _layout(blank, _as_it_is, trace)
        found = [
            layout
            for shape in trace.input_shapes
            if (bring := _auto(call, model, blank, shape)) is not None
            and (layout := _layout(blank, bring, trace)) is not None
            and len(layout.map_size) == len(shape) - 2
        ]
        if len({layout.map_size for layout in found}) != 1:
            return None
        # reshape="auto" knows the model's first input alone.
        if found[0].reshape and trace.input_shape != trace.input_shapes[0]:
            first = _auto(call, model, blank, trace.input_shape)
            if first is None or first(blank).shape[2:] != found[0].map_size:
                return None
        return found[0]


def _auto(
    call: Call, model: Callable[..., Any], blank: Tensor, input_shape: tuple[int, ...]
) -> Callable[[Tensor], Tensor] | None:
    try:
        return find_reshape(
            "auto",
            blank,
            forward_func=model,
            layer=call.module,
            input_size=input_shape[2:],
            samples=input_shape[0],
        )
    except ValueError:
        return None


def _layout(blank: Tensor, bring: Callable[[Tensor], Tensor], trace: Trace) -> Layout | None:
    brought = bring(blank)
    size = tuple(brought.shape[2:])
    if prod(size) < 2:
        return None
    sides = {shape[2:] for shape in trace.input_shapes if len(shape) == brought.dim()}
    return Layout(
        size, "auto" if brought.shape != blank.shape else None, bring, sides.pop() if len(sides) == 1 else ()
    )


def _ends_in_convolution(call: Call, trace: Trace) -> bool:
    """Whether a convolution, or a norm or pooling after one, made the shape of what was returned.

    Nothing that might reorder it may follow. A block's additions, and modules such as ReLU, leave the order of the axes as it is.
    """
    if isinstance(call.module, _ConvNd | _NormBase):
        return True
    for inner in sorted(trace.inside(call), key=lambda one: -one.ended):
        if inner.shape != call.shape or isinstance(inner.module, _CHANNELS_LAST):
            return False
        if is_channels_first(inner.module):
            return True
    return False


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
