"""One forward of a model, recorded: which module ran when, what it returned, and where that is in the autograd graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import prod
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._pytree import tree_leaves

from ..functional.math_attention import MathAttention
from .forward import run_forward
from .graph import bottlenecks, edge_of, node_of, walk
from .layers import module_names
from .state import recordable

#: Pooling to a fixed size says nothing about places: it copies them if the map is smaller.
_FIXED_SIZE = (
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Call:
    """One run of one module."""

    module: nn.Module
    name: str  #: dotted, in the model; its class if the model does not hold it
    began: int  #: in a count of all runs' begins and ends
    ended: int
    #: Of the floating-point tensor that it returned, alone or as the only one of a tuple or list; otherwise None.
    shape: tuple[int, ...] | None
    edges: tuple[GradientEdge, ...]  #: of the returned floating-point tensors that have a graph


@dataclass
class Trace:
    """What a forward did. Its graph lives as long as the block of :func:`traced`."""

    inputs: list[Tensor]  #: the tensors among the inputs, floating-point ones as leaves of the graph
    output: Any = None
    calls: list[Call] = field(default_factory=list)  #: in the order in which they ended

    @property
    def spatial_inputs(self) -> list[Tensor]:
        """Return the inputs with spatial dimensions, or the first input if there are none."""
        return [tensor for tensor in self.inputs if tensor.dim() > 2] or self.inputs[:1]

    def runs(self, module: nn.Module) -> list[Call]:
        """Return the runs of a module."""
        return [call for call in self.calls if call.module is module]

    def after(self, run: Call) -> list[Call]:
        """Return the calls that began after this run had ended."""
        return [call for call in self.calls if call.began > run.ended]

    def around(self, run: Call) -> list[Call]:
        """Return the calls that this run is a part of."""
        return [call for call in self.calls if call.began < run.began and call.ended > run.ended]

    def inside(self, run: Call) -> list[Call]:
        """Return the calls that are a part of this run."""
        return [call for call in self.calls if call.began > run.began and call.ended < run.ended]

    def candidates(self, scores: Tensor, *, anywhere: bool = False) -> list[Call]:
        """Return the layers worth explaining, in the order in which they ran.

        They run once and return one tensor with one row per sample and more than one place, and every path from an input to the
        scores passes them. Of modules that return the same tensor the outermost counts, unless it is half of the network or
        more: ``layer4`` rather than ``layer4.1.relu``, but ``features.12`` rather than ``features``. A layer that makes dense
        scores, such as those of a segmentation, is none.

        Args:
            scores: what the model returned.
            anywhere: include layers that some path bypasses.
        """
        root = node_of(scores)
        passed = set(walk([root])) if anywhere else self._passed(root)
        times = Counter(call.module for call in self.calls)
        half = max((call.ended for call in self.calls), default=0) / 2
        found: dict[tuple[Node, int], Call] = {}
        for call in self.calls:
            if len(call.edges) != 1 or times[call.module] > 1 or not self._has_places(call):
                continue
            node = call.edges[0].node
            if node is root or node not in passed or _makes_scores(call, scores):
                continue
            key = node, call.edges[0].output_nr
            inner = found.get(key)
            if inner is None:
                if not isinstance(call.module, _FIXED_SIZE):
                    found[key] = call
            elif call.began < inner.began and call.ended - call.began < half:  # around the inner one
                found[key] = call
        return sorted(found.values(), key=lambda call: call.ended)

    def _passed(self, root: Node | None) -> set[Node]:
        """Return the nodes that every path from one of the inputs passes; an image and a sound may have layers of their own."""
        leaves = {node for tensor in self.spatial_inputs if (node := node_of(tensor)) is not None}
        reached = leaves.intersection(walk([root]))
        if not reached:
            return set(walk([root]))
        return {node for leaf in reached for node in bottlenecks(root, [leaf])}

    def _has_places(self, call: Call) -> bool:
        shape = call.shape or ()
        return (
            len(shape) > 2
            and shape[0] == len(self.inputs[0])
            and prod(shape[2:]) > 1
            and prod(shape[1:-1]) > 1
        )


def _makes_scores(call: Call, scores: Tensor) -> bool:
    """Return True if a call returned dense scores: a map for each class."""
    return (
        scores.dim() > 2
        and call.shape is not None
        and len(call.shape) == scores.dim()
        and call.shape[1] == scores.shape[1]
    )


@contextmanager
def traced(
    forward_func: Callable[..., Any],
    inputs: Sequence[Any],
    additional_forward_args: Sequence[Any] = (),
    *,
    math_from: Sequence[nn.Module] = (),
) -> Iterator[Trace]:
    """Run the model, with everything recorded from the inputs on, and note each call of a module.

    The model and the inputs stay as they were.

    Args:
        forward_func: the model. The modules of a function are seen as well, without their names.
        inputs: its inputs; floating-point tensors are copied.
        additional_forward_args: further arguments.
        math_from: once one of these layers has run, attention is computed so that it has a second derivative.
    """
    model = forward_func.module if isinstance(forward_func, nn.DataParallel) else forward_func
    with torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
        leaves = [_leaf(recordable(value)) for value in inputs]
        trace = Trace([value for value in leaves if isinstance(value, Tensor)])
        # A leaf itself must not be changed in place.
        copies = tuple(value.clone() if isinstance(value, Tensor) else value for value in leaves)
        arguments = tuple(map(recordable, additional_forward_args))
        with _calls_noted(trace.calls, module_names(forward_func), math_from):
            trace.output = stack.enter_context(run_forward(model, [], copies, arguments)).output
        yield trace


@contextmanager
def _calls_noted(
    calls: list[Call], names: dict[nn.Module, str], math_from: Sequence[nn.Module]
) -> Iterator[None]:
    """Append the calls of this thread's modules."""
    owner = get_ident()
    events = 0
    open_calls: list[tuple[nn.Module, int]] = []

    def begin(module: nn.Module, _: Any) -> None:
        nonlocal events
        if get_ident() == owner:
            open_calls.append((module, events))
            events += 1

    def end(module: nn.Module, _: Any, returned: Any) -> None:
        nonlocal events
        if get_ident() != owner:
            return
        while open_calls and open_calls[-1][0] is not module:  # it raised, and the model caught the error
            open_calls.pop()
        if open_calls:
            name = names.get(module) or type(module).__name__
            calls.append(_call(module, name, open_calls.pop()[1], events, returned))
            events += 1
        if module in math_from:
            math.start()

    with MathAttention() as math, ExitStack() as stack:
        stack.callback(register_module_forward_pre_hook(begin).remove)
        stack.callback(register_module_forward_hook(end).remove)
        yield


def _call(module: nn.Module, name: str, began: int, ended: int, returned: Any) -> Call:
    # Of nn.LSTM's (steps, (hidden, cell)) only the steps are activations.
    entries = returned if isinstance(returned, tuple | list) else tree_leaves(returned)
    tensors = [entry for entry in entries if isinstance(entry, Tensor) and entry.is_floating_point()]
    is_single = len(tensors) == 1 and isinstance(returned, Tensor | tuple | list)
    edges = tuple(edge for tensor in tensors if (edge := edge_of(tensor)) is not None)
    return Call(module, name, began, ended, tuple(tensors[0].shape) if is_single else None, edges)


def _leaf(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().clone().requires_grad_()
    return value
