"""Which layer to explain: the last one at each resolution, and the one to begin with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..functional.losses.base import MIN_MAP_SIZE
from . import _captum
from .compiled import eager_stance, original
from .output import Picker, pick_output
from .reshape import find_reshape, is_channels_first
from .trace import Call, Trace, traced

_UNUSED = "the scores depend on none of its places (a class token alone is read after it)"
_BYPASSED = "a path bypasses it: its map misses what takes that path"
#: Modules that may have changed the order of axes of equal length.
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.RNNBase, nn.MultiheadAttention)


def shortest_side(map_size: tuple[int, ...]) -> int:
    """Return the shortest side of a map; the first of three is time or depth, which is coarse, and does not count."""
    return min(map_size[-2:], default=0)


@dataclass(frozen=True)
class Layout:
    """How to read what a layer returns."""

    map_size: tuple[int, ...]
    reshape: Literal["auto"] | None
    rearrange: Callable[[Tensor], Tensor]  #: of activations and gradients, to (N, C, *spatial)
    input_size: tuple[int, ...]  #: of the input that has as many sides; empty if that may be several

    @staticmethod
    def of(call: Call, model: Callable[..., Any], trace: Trace) -> Layout | None:
        """Return how to read a run's result; None if it has no places or is uncertain."""
        blank = torch.empty(call.shape or (), device="meta")
        if blank.dim() < 3:
            return None
        shape = trace.spatial_inputs[0].shape
        try:
            rearrange = find_reshape(
                # What a convolution made is (N, C, *spatial) also if the inputs are words or figures.
                None if _ends_in_convolution(call, trace) else "auto",
                blank,
                forward_func=model,
                layer=call.module,
                input_size=tuple(shape[2:]),
                samples=shape[0],
            )
        except ValueError:
            return None
        size = tuple(rearrange(blank).shape[2:])
        if prod(size) < 2:
            return None
        sizes = {tuple(each.shape[2:]) for each in trace.spatial_inputs if each.dim() == len(size) + 2}
        reshape: Literal["auto"] | None = "auto" if rearrange(blank).shape != blank.shape else None
        return Layout(size, reshape, rearrange, sizes.pop() if len(sizes) == 1 else ())


def _ends_in_convolution(call: Call, trace: Trace) -> bool:
    """Return True if a convolution, or a norm or pooling after one, made the shape of what was returned.

    Nothing that might reorder it may follow. A block's additions, and modules such as ReLU, keep the order of the axes.
    """
    for inner in [call, *sorted(trace.inside(call), key=lambda one: -one.ended)]:
        if inner.shape != call.shape or isinstance(inner.module, _CHANNELS_LAST):
            return False
        if is_channels_first(inner.module):
            return True
    return False


@dataclass(frozen=True)
class LayerSuggestion:
    """A layer that can be explained."""

    name: str  #: dotted, as ``BatchGradCam(model, name)`` takes it
    shape: tuple[int, ...]  #: of what it returns, samples included
    map_size: tuple[int, ...]  #: (h, w) of its maps
    #: Of the map relative to the input, along a side: 1/32 if one place stands for 32 pixels; of videos that of a frame; None for
    #: inputs without sides.
    resolution: float | None
    batch_norm_follows: bool  #: if so, in train mode the map of an image depends on the others of its batch
    #: What ``BatchGradCam(…, reshape=)`` needs to make (N, C, *spatial) of it.
    reshape: Literal["auto"] | None
    recommended: bool = False
    remark: str = ""


class LayerSuggestions(Sequence[LayerSuggestion]):
    """The layers worth explaining, the last one first; ``print`` shows a table. Made by :func:`suggest_layers`.

    Args:
        rows: one per layer.
        left_out: names of layers that are not suggested, each with the reason.
        output: which part of the model's output holds the scores, as in :class:`BatchGradCam`.
    """

    def __init__(
        self,
        rows: Iterable[LayerSuggestion],
        left_out: dict[str, str] | None = None,
        output: Picker = None,
    ) -> None:
        self._rows = tuple(rows)
        self._output = output
        #: Layers that are not suggested, and why.
        self.left_out = dict(left_out or {})

    @property
    def recommended(self) -> LayerSuggestion | None:
        """Return the layer to begin with: the last whose maps have 4 places or more along each side, time left out."""
        return next((row for row in self._rows if row.recommended), None)

    def __getitem__(self, index: Any) -> Any:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __str__(self) -> str:
        lines = ["no layer with places on the way to the scores"]
        if self._rows:
            head = ("", "layer", "returns", "map", "resolution", "BatchNorm follows", "")
            cells = [head, *(_cells(row) for row in self._rows)]
            widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
            lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
        best = self.recommended
        if best is not None:
            options = "" if best.reshape is None else f', reshape="{best.reshape}"'
            if self._output is not None:
                options += (
                    f", output={self._output!r}" if isinstance(self._output, str | int) else ", output=…"
                )
            lines.append(f'* begin with BatchGradCam(model, "{best.name}"{options})')
        for reason in dict.fromkeys(self.left_out.values()):
            names = ", ".join(name for name, why in self.left_out.items() if why == reason)
            lines.append(f"left out: {names}: {reason}")
        return "\n".join(lines)

    __repr__ = __str__


def _cells(row: LayerSuggestion) -> tuple[str, ...]:
    pixels = 1 / row.resolution if row.resolution else None
    return (
        "*" if row.recommended else "",
        row.name,
        str(row.shape),
        " x ".join(map(str, row.map_size)),
        "-" if pixels is None else f"1/{pixels:.0f}" if pixels >= 1 else f"{1 / pixels:.0f}",
        "yes" if row.batch_norm_follows else "no",
        row.remark,
    )


def suggest_layers(
    model: nn.Module,
    example: Tensor | tuple[Tensor, ...],
    *,
    additional_forward_args: object = None,
    output: Picker = None,
) -> LayerSuggestions:
    """Suggest layers to explain: the last one at each resolution.

    Runs the model once on the example, forward and backward, and leaves everything as it was. Suggested are layers that every
    path to the scores passes, that run once, and whose places the scores depend on.

    Args:
        model: the model, in the mode in which it will be explained.
        example: inputs of a few samples, of the size that the model will see; a tuple if it takes several.
        additional_forward_args: further arguments of the model.
        output: which part of the model's output holds the scores, as in :class:`~batchcam_captum.BatchGradCam`.

    Returns:
        A sequence of suggestions, the last layer first; its ``recommended`` is the one to begin with.

    Raises:
        TypeError: ``model`` is no module, or its output is no tensor.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from batchcam_captum import suggest_layers
        >>> model = nn.Sequential(
        ...     nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()), nn.MaxPool2d(2),
        ...     nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 16 * 16, 10),
        ... )
        >>> print(suggest_layers(model, torch.rand(2, 3, 32, 32)))
           layer  returns          map      resolution  BatchNorm follows
        *  3      (2, 16, 16, 16)  16 x 16  1/2         no
           0      (2, 8, 32, 32)   32 x 32  1/1         no
        * begin with BatchGradCam(model, "3")
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model: expected a torch.nn.Module, whose layers have names, got {type(model).__name__}"
        )
    inputs = _captum.format_tensor_into_tuples(example)
    arguments = _captum.format_additional_forward_args(additional_forward_args) or ()
    plain = original(model)
    with eager_stance(), traced(plain, inputs, arguments) as trace:
        return suggest_from(trace, plain, pick_output(trace.output, output), output)


def reshape_needed(model: nn.Module, layer: nn.Module, example: Tensor) -> Literal["auto"] | None:
    """Return what ``BatchGradCam(…, reshape=)`` needs for a layer; None as well if that is uncertain."""
    plain = original(model)
    with eager_stance(), traced(plain, (example,)) as trace:
        runs = trace.runs(layer)
        layout = Layout.of(runs[-1], plain, trace) if runs else None
    return layout.reshape if layout else None


def suggest_from(
    trace: Trace, model: Callable[..., Any], scores: Tensor, output: Picker = None
) -> LayerSuggestions:
    """Return the suggestions for a traced forward whose graph is still there.

    Args:
        trace: of the forward.
        model: the model.
        scores: what the model returned, (N, K) or (N, K, …).
        output: how they were picked, for what is printed.
    """
    remark, calls = "", trace.candidates(scores)
    if not calls:
        remark, calls = _BYPASSED, trace.candidates(scores, anywhere=True)
    layouts = _layouts(calls, model, trace)
    used = _places_used(scores, layouts)
    if used and not any(used.values()):  # no layer is better than another
        remark, used = "the gradient is zero at every layer: are the head's weights zero?", {}
    rows: list[LayerSuggestion] = []
    left_out: dict[str, str] = {}
    sizes: set[tuple[int, ...]] = set()
    for call, layout in sorted(layouts.items(), key=lambda item: -item[0].ended):
        if not used.get(call, True):
            inner = None if left_out else _inside(trace, model, scores, call)
            left_out[call.name] = _UNUSED
            if inner is not None:
                rows.append(_row(trace, *inner, remark))
        elif any(row.name == call.name for row in rows):
            sizes.add(layout.map_size)
        elif layout.map_size not in sizes and not _begins_a_stage(call, layouts):
            sizes.add(layout.map_size)
            rows.append(_row(trace, call, layout, remark))
    fine = [row for row in rows if shortest_side(row.map_size) >= MIN_MAP_SIZE]
    best = fine[0] if fine else max(rows, key=lambda row: shortest_side(row.map_size), default=None)
    left_out |= _repeated(trace, model)
    return LayerSuggestions((replace(row, recommended=row is best) for row in rows), left_out, output)


def _layouts(calls: Iterable[Call], model: Callable[..., Any], trace: Trace) -> dict[Call, Layout]:
    return {call: layout for call in calls if (layout := Layout.of(call, model, trace)) is not None}


def _begins_a_stage(call: Call, layouts: dict[Call, Layout]) -> bool:
    """Return True for a part of a block that goes on to another resolution; the block before it has this one's."""
    return any(
        other.began < call.began and other.ended > call.ended and layout.map_size != layouts[call].map_size
        for other, layout in layouts.items()
    )


def _row(trace: Trace, call: Call, layout: Layout, remark: str) -> LayerSuggestion:
    shares = [size / side for side, size in zip(layout.input_size[-2:], layout.map_size[-2:], strict=False)]
    follows = any(isinstance(later.module, _BatchNorm) for later in trace.after(call))
    if shortest_side(layout.map_size) < MIN_MAP_SIZE:
        remark = f"under {MIN_MAP_SIZE} x {MIN_MAP_SIZE}: says next to nothing"
    return LayerSuggestion(
        call.name,
        call.shape or (),
        layout.map_size,
        max(shares, default=None),
        follows,
        layout.reshape,
        remark=remark,
    )


def _places_used(scores: Tensor, layouts: dict[Call, Layout]) -> dict[Call, bool]:
    """Return whether the gradient of the highest scores is nonzero at any place; empty if no gradient can be taken."""
    if not layouts:
        return {}
    highest = scores.flatten(1).amax(1).sum() if scores.dim() > 1 else scores.sum()
    try:
        gradients = torch.autograd.grad(
            highest, [call.edges[0] for call in layouts], retain_graph=True, allow_unused=True
        )
    except RuntimeError:  # reentrant checkpointing rejects it
        return {}
    return {
        call: gradient is not None and bool(layout.rearrange(gradient).any())
        for (call, layout), gradient in zip(layouts.items(), gradients, strict=True)
    }


def _inside(
    trace: Trace, model: Callable[..., Any], scores: Tensor, block: Call
) -> tuple[Call, Layout] | None:
    """Return the last layer inside of a block whose places the scores depend on: before its attention, such as ``norm1``."""
    calls = [
        call
        for call in trace.candidates(scores, anywhere=True)
        if call.ended <= block.ended and call.shape == block.shape
    ]
    layouts = _layouts(calls, model, trace)
    used = [call for call, is_used in _places_used(scores, layouts).items() if is_used]
    return (used[-1], layouts[used[-1]]) if used else None


def _repeated(trace: Trace, model: Callable[..., Any]) -> dict[str, str]:
    """Return the layers with places that run several times, without those inside of others."""
    times = Counter(call.module for call in trace.calls)
    found = {}
    for module, runs in times.items():
        last = trace.runs(module)[-1]
        is_inside = any(outer.began > 0 for outer in trace.around(last))  # the model itself began at 0
        has_weights = next(module.parameters(), None) is not None
        if runs > 1 and has_weights and not is_inside and Layout.of(last, model, trace) is not None:
            found[last.name] = f"it runs {runs} times in one forward"
    return found
