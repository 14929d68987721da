"""One forward, looked at from outside: which module ran when, and what it left in the autograd graph."""

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
from .engine import Recording, own_run
from .graph import bottlenecks, edge_of, node_of, walk
from .state import recordable

#: Pooling to a fixed size says nothing about places: it copies them where the map is smaller.
_FIXED_SIZE = (
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Call:
    """One run of one module."""

    module: nn.Module
    name: str  #: dotted, in the model; the kind of module where it has none
    depth: int  #: how many other modules it runs inside of
    began: int  #: how many runs had begun, or ended, before it
    ended: int
    #: Of the floating tensor that it returns, alone or as the only one of a tuple or list; None where there are several.
    shape: tuple[int, ...] | None
    edges: tuple[GradientEdge, ...]  #: of the returned floating tensors that have a graph
    operators: tuple[
        int, int
    ]  #: sequence numbers of the autograd operators recorded in it: after the first, up to the last


@dataclass
class Trace:
    """What a forward did. Its graph is there as long as the block of :func:`traced`."""

    input_shape: tuple[int, ...]  #: of the first input
    output: Any = None
    calls: list[Call] = field(default_factory=list)  #: in the order in which they ended
    leaves: list[Node] = field(
        default_factory=list
    )  #: of the inputs; of those with places, where there are any
    input_shapes: tuple[
        tuple[int, ...], ...
    ] = ()  #: of those inputs with places, (N, C, *spatial), and the first

    def runs(self, module: nn.Module) -> list[Call]:
        """The runs of a module."""
        return [call for call in self.calls if call.module is module]

    def after(self, run: Call) -> list[Call]:
        """What began after this run had ended."""
        return [call for call in self.calls if call.began > run.ended]

    def around(self, run: Call) -> list[Call]:
        """What this run is a part of; such a module returns later than it."""
        return [call for call in self.calls if call.began < run.began and call.ended > run.ended]

    def inside(self, run: Call) -> list[Call]:
        """What ran as a part of this run."""
        return [call for call in self.calls if call.began > run.began and call.ended < run.ended]

    def candidates(self, scores: Tensor, *, anywhere: bool = False) -> list[Call]:
        """The layers worth explaining, in the order in which they ran.

        They run once, return one tensor with a row for each sample and more than one place, and every path from an input with
        places to the scores passes them. Of several modules that return the very same tensor the outermost counts, unless it is
        half of the network or more: ``layer4`` rather than ``layer4.1.relu``, but ``features.12`` rather than ``features``.

        Args:
            scores: what the model returned.
            anywhere: also those that a path leads around.
        """
        root = node_of(scores)
        passed = bottlenecks(root, ()) if anywhere else self._passed(root)
        times = Counter(call.module for call in self.calls)
        half = max((call.ended for call in self.calls), default=0) / 2
        found: dict[tuple[Node, int], Call] = {}
        for call in self.calls:
            if call.shape is None or len(call.edges) != 1 or times[call.module] > 1:
                continue
            node = call.edges[0].node
            if node is root or node not in passed or not self._has_places(call):
                continue
            key = node, call.edges[0].output_nr
            inner = found.get(key)
            # Later ones are either around the first, or hand on what they were given.
            if inner is None:
                if not isinstance(call.module, _FIXED_SIZE):
                    found[key] = call
            elif call.began < inner.began and call.ended - call.began < half:
                found[key] = call
        return sorted(found.values(), key=lambda call: call.ended)

    def _passed(self, root: Node | None) -> set[Node]:
        """What every path from one of the inputs passes; an image and a sound may each have layers of their own."""
        reached = set(walk([root])).intersection(self.leaves)
        if not reached:
            return bottlenecks(root, ())
        return {node for leaf in reached for node in bottlenecks(root, [leaf])}

    def _has_places(self, call: Call) -> bool:
        shape = call.shape or ()
        return (
            len(shape) > 2
            and shape[0] == self.input_shape[0]
            and prod(shape[2:]) > 1
            and prod(shape[1:-1]) > 1
        )

    def made(self, operator: Node) -> str | None:
        """The innermost module in which an operator was recorded."""
        number = operator._sequence_nr()
        around = [call for call in self.calls if call.operators[0] < number <= call.operators[1]]
        return min(around, key=lambda call: call.operators[1] - call.operators[0]).name if around else None


def makes_scores(call: Call, scores: Tensor | None) -> bool:
    """Whether a run returned dense scores, a map for each class, such as those of a segmentation: no layer to explain."""
    return (
        scores is not None
        and scores.dim() > 2
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
    """Run the model, everything recorded from the inputs on, and look at every module.

    Nothing is left behind: see :func:`~batchcam_captum.attribution.engine.own_run`.

    Args:
        forward_func: the model. The modules of what is none are seen, too, without their names.
        inputs: its inputs; floating tensors are copied.
        additional_forward_args: further arguments.
        math_from: attention has a second derivative once one of these layers has run.
    """
    model = forward_func.module if isinstance(forward_func, nn.DataParallel) else forward_func
    with torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
        leaves = [_leaf(value) for value in map(recordable, inputs)]
        tensors = [value for value in leaves if isinstance(value, Tensor)]
        # Paths from an input without places, such as age and sex beside an image, have no layer worth explaining.
        with_places = [tensor for tensor in tensors if tensor.dim() > 2]
        trace = Trace(tuple(tensors[0].shape) if tensors else ())
        trace.input_shapes = tuple(
            dict.fromkeys(tuple(tensor.shape) for tensor in with_places or tensors[:1])
        )
        trace.leaves = [node for tensor in with_places or tensors if (node := node_of(tensor)) is not None]
        # A leaf itself must not be changed in place.
        copies = tuple(value.clone() if isinstance(value, Tensor) else value for value in leaves)
        with _watched(trace, forward_func, math_from):
            _, trace.output = stack.enter_context(
                own_run(
                    model,
                    [],
                    copies,
                    tuple(map(recordable, additional_forward_args)),
                    recording=Recording.MODEL,
                )
            )
        yield trace


@contextmanager
def _watched(
    trace: Trace, forward_func: Callable[..., Any], math_from: Sequence[nn.Module]
) -> Iterator[None]:
    names: dict[nn.Module, str] = {}
    if isinstance(forward_func, nn.Module):
        names = {module: name for name, module in forward_func.named_modules()}
    owner = get_ident()
    events = 0
    open_calls: list[tuple[nn.Module, int, int]] = []

    def begin(module: nn.Module, received: Any) -> None:
        nonlocal events
        if get_ident() == owner:
            open_calls.append((module, events, _last_operator(received)))
            events += 1

    def end(module: nn.Module, _: Any, returned: Any) -> None:
        nonlocal events
        if get_ident() != owner:
            return
        while (
            open_calls and open_calls[-1][0] is not module
        ):  # a run that raised, and was caught by the model
            open_calls.pop()
        if not open_calls:
            return
        _, began, first = open_calls.pop()
        # What a recorder keeps: nn.LSTM returns (steps, (hidden, cell)), of which it is the steps.
        entries = returned if isinstance(returned, tuple | list) else tree_leaves(returned)
        tensors = [entry for entry in entries if isinstance(entry, Tensor) and entry.is_floating_point()]
        trace.calls.append(
            Call(
                module,
                names.get(module) or type(module).__name__,
                len(open_calls),
                began,
                events,
                tuple(tensors[0].shape)
                if len(tensors) == 1 and isinstance(returned, Tensor | tuple | list)
                else None,
                tuple(edge for tensor in tensors if (edge := edge_of(tensor)) is not None),
                (first, _last_operator(returned)),
            )
        )
        events += 1
        if module in math_from:
            math.start()

    with MathAttention() as math:
        handles = [register_module_forward_pre_hook(begin), register_module_forward_hook(end)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _last_operator(value: Any) -> int:
    """The highest sequence number among the operators that made these tensors; leaves have none."""
    numbers = [
        leaf.grad_fn._sequence_nr()
        for leaf in tree_leaves(value)
        if isinstance(leaf, Tensor) and leaf.grad_fn is not None
    ]
    return max(numbers, default=-1)


def _leaf(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().clone().requires_grad_()
    return value
