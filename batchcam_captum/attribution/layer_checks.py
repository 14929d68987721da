"""What a preflight looks for at one layer, in a forward that has been traced."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils.checkpoint import CheckpointError

from .graph import between, node_of, walk
from .mixing import way_out
from .places import Layout
from .report import Finding
from .second_order import nearest_later_layer, second_derivative_missing, second_order_remedy
from .suggestions import LayerSuggestions
from .survey import mixes
from .trace import Call, Trace

_CHECKPOINT = "CheckpointFunctionBackward"
_LISTED = 3


@dataclass(frozen=True)
class Look:
    """A layer in a traced forward."""

    trace: Trace
    run: Call  #: its last
    selected: Tensor  #: one score a sample
    layout: Layout | None
    reshaped: bool  #: the caller's grad_cam brings what it returns to (N, C, *spatial)
    suggestions: LayerSuggestions

    @property
    def name(self) -> str:
        """The layer's."""
        return self.run.name

    @property
    def later_operators(self) -> set[Node]:
        """What leads from the layer to the scores; the whole graph where the layer is not in it."""
        root = node_of(self.selected)
        ends = {edge.node for edge in self.run.edges}
        return between(root, ends) - ends if ends else set(walk([root]))

    def gradients(self, scores: Tensor) -> list[Tensor | None]:
        """With respect to what the layer returned."""
        return list(torch.autograd.grad(scores.sum(), self.run.edges, retain_graph=True, allow_unused=True))


def listed(names: list[str]) -> str:
    """Some names, and how many more there are."""
    unique = list(dict.fromkeys(names))
    more = f" and {len(unique) - _LISTED} more" if len(unique) > _LISTED else ""
    return ", ".join(unique[:_LISTED]) + more


def instead(suggestions: LayerSuggestions, name: str) -> str:
    """Which layer to choose instead of this one, in words."""
    best = suggestions.recommended
    if best is None or best.name == name:
        return "choose another layer"
    reshape = f' with reshape="{best.reshape}"' if best.reshape else ""
    return f"choose {best.name!r} ({' x '.join(map(str, best.map_size))}){reshape}"


def findings_of_layer(look: Look) -> Iterator[Finding]:
    """All that concerns first-order maps."""
    operators = look.later_operators
    if any(node.name() == _CHECKPOINT for node in operators):
        where = "after the layer" if look.run.edges else "around the layer"
        yield Finding(
            "checkpoint",
            "error",
            f"reentrant checkpointing {where} lets no gradient be taken at a layer; pass use_reentrant=False to "
            f"torch.utils.checkpoint.checkpoint",
            look.name,
        )
        return
    if not look.run.edges:
        return  # run without a graph on purpose; whether that works, the attribution says
    yield from _layout(look)
    yield from _gradients(look)
    fused = [node for node in operators if node.name().startswith("ScaledDotProduct")]
    fused.sort(key=lambda node: node._sequence_nr())
    if fused:
        names = [look.trace.made(node) or node.name() for node in fused]
        yield Finding(
            "attention",
            "note",
            f"fused attention after the layer ({listed(names)}) has no second derivative. Plain maps do not need one. For "
            f"differentiable maps and losses attention is computed without fusing, from the layer on: slower, and with memory "
            f"for every pair of tokens",
            look.name,
        )


def _layout(look: Look) -> Iterator[Finding]:
    if look.reshaped or look.run.shape is None:
        return
    if look.layout is not None and look.layout.reshape:
        yield Finding(
            "layout",
            "error",
            f"the layer returns {look.run.shape}, which is not (N, C, *spatial); pass reshape={look.layout.reshape!r} to "
            f"BatchGradCam, which makes maps of {' x '.join(map(str, look.layout.map_size))} of it",
            look.name,
        )
    elif look.layout is None and prod(look.run.shape[2:]) > 1:
        yield Finding(
            "layout",
            "warning",
            f"the layer returns {look.run.shape} for inputs {_shapes(look.trace)}, which is read as (N, C, *spatial); pass "
            f"a function as reshape= if it is something else, or {instead(look.suggestions, look.name)}",
            look.name,
        )


def _shapes(trace: Trace) -> str:
    return " and ".join(map(str, trace.input_shapes))


def _gradients(look: Look) -> Iterator[Finding]:
    gradients = look.gradients(look.selected)
    found = [gradient for gradient in gradients if gradient is not None]
    if not found:
        yield Finding(
            "disconnected",
            "error",
            f"the scores do not depend on what the layer returns; {instead(look.suggestions, look.name)}",
            look.name,
        )
        return
    if not any(gradient.any() for gradient in found):
        yield Finding(
            "zero_gradient",
            "error",
            "the gradient of the scores is zero everywhere, so that every map is zero; are the weights of the head zero, or "
            "is everything after the layer cut off by a ReLU?",
            look.name,
        )
        return
    if look.layout is not None and len(found) == 1 and not look.layout.bring(found[0]).any():
        yield Finding(
            "class_token",
            "error",
            f"the scores depend on the class token alone, and on none of the layer's places, so that every map is zero; "
            f"{instead(look.suggestions, look.name)}",
            look.name,
        )
        return
    yield from _mixing(look)


def _mixing(look: Look) -> Iterator[Finding]:
    """Whether the first sample's score depends on the activations of the others."""
    samples = len(look.selected)
    if samples < 2 or not any(
        gradient is not None and gradient.shape[:1] == (samples,) and bool(gradient[1:].any())
        for gradient in look.gradients(look.selected[:1])
    ):
        return
    norms = [call for call in look.trace.after(look.run) if mixes(call.module)]
    if norms:
        # The norm itself may be on one branch of a block, whose map misses the other.
        later = [call for call in look.trace.candidates(look.selected) if call.ended >= norms[-1].ended]
        yield Finding(
            "batch_norm",
            "warning",
            f"{listed([call.name for call in norms])}: BatchNorm with batch statistics after the layer mixes the samples, so "
            f"that each map depends on the other images, too; {way_out(repr(later[0].name) if later else None)}",
            look.name,
        )
    else:
        yield Finding(
            "mixing",
            "warning",
            "the score of an image depends on the activations of the others in its batch, so its map does, too; explain "
            "images one by one, or a later layer",
            look.name,
        )


def second_order_findings(
    trace: Trace, layer: nn.Module, selected: Tensor, scores: Tensor | None = None
) -> Iterator[Finding]:
    """What stands in the way of differentiable maps, in a forward that was traced with ``math_from``."""
    run = trace.runs(layer)[-1]
    if not run.edges:
        return
    try:
        operator = second_derivative_missing(run, selected)
    except CheckpointError:
        yield Finding(
            "checkpoint",
            "warning",
            "attention inside of checkpointing after the layer: its recomputation, in the backward, has to find the same "
            "backend as the forward did; for differentiable maps and losses put the whole training step inside "
            "torch.nn.attention.sdpa_kernel(SDPBackend.MATH)",
            run.name,
        )
        return
    if operator is not None:
        later = nearest_later_layer(trace, layer, selected, scores)
        yield Finding(
            "second_order",
            "warning",
            f"{operator} after the layer has no second derivative. Plain maps do not need one; differentiable maps and losses "
            f"on maps do: {second_order_remedy(operator, later)}",
            run.name,
        )
