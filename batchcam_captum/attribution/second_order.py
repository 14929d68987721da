"""Operators after the layer that have no second derivative: found, named, and the nearest later layer that works.

A first-order map needs none of this. A differentiable one, and every loss on a map, differentiates the gradients a second time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from .graph import between, node_of, walk
from .trace import Call, Trace, makes_scores, traced

# How autograd's graph of the gradients shows that it cannot be differentiated: a placeholder for a missing formula; the end of
# a once_differentiable function; compiled code; cuDNN's recurrent layers.
_MISSING = "torch::autograd::NotImplemented"
_ONCE = ("torch::autograd::Error", "torch::autograd::DelayedError")
_COMPILED = "CompiledFunctionBackwardBackward"
_COMPILED_CODE = "code of torch.compile"
_RUN_AS_WRITTEN = 'run what is compiled as it is written, by torch.compiler.set_stance("force_eager") or with the original module'
_CUDNN_RNN = "CudnnRnnBackwardBackward0"
# These say so only when they are run: operators of C++ extensions (torchvision's), and two formulas of torch.
_TO_TRY = re.compile(r"GeneratedBackwardFor_|torch::autograd::CppNode|(Cdist|Pdist)BackwardBackward")
_REFUSAL = re.compile(r"double.?backward|not (yet )?(implemented|supported|differentiable)", re.IGNORECASE)


def unsupported_operator(
    gradients: Sequence[Tensor], scores: Tensor, activations: Sequence[Tensor]
) -> str | None:
    """The operator after the activations because of which their gradients cannot be differentiated again.

    Walks the graph of the gradients, which takes from 1 ms (ResNet-50) to 10 ms (DenseNet-201); only operators of C++ extensions
    are tried out, on zeros.

    Args:
        gradients: from ``torch.autograd.grad(scores, activations, create_graph=True)``.
        scores: what was differentiated.
        activations: with respect to what; nothing behind them is looked at.

    Returns:
        The name of the operator, such as ``"hardsigmoid"``, or None if a loss on the gradients can be differentiated.
    """
    return _find(gradients, node_of(scores), [n for n in map(node_of, activations) if n is not None])


def _find(gradients: Sequence[Tensor], root: Node | None, stop: Collection[Node]) -> str | None:
    suspects: list[Node] = []
    for node in walk(map(node_of, gradients), stop=stop):
        name = node.name()
        if name == _MISSING or name in _ONCE or name.endswith((_COMPILED, _CUDNN_RNN)):
            return _name_of(node, root, stop)
        if _TO_TRY.match(name):
            suspects.append(node)
    if suspects:
        # The gradients' graph leads into that of the scores. What is in there is differentiated once, not twice.
        once = set(walk([root]))
        for node in suspects:
            if node not in once and _refusal(node):
                return _name_of(node, root, stop)
    return None


def _refusal(node: Node) -> str:
    """What the operator's backward says when it is run, where it says that there is none."""
    zeros = [
        torch.zeros(entry.shape, dtype=entry.dtype, device=entry.device) for entry in node._input_metadata
    ]
    operator: Any = node
    backward = operator if callable(operator) else operator.apply  # in C++, in Python
    try:
        with torch.no_grad():
            backward(*zeros)
    except RuntimeError as error:  # NotImplementedError is one
        return str(error) if _REFUSAL.search(str(error)) else ""
    return ""


def _name_of(node: Node, root: Node | None, ends: Collection[Node]) -> str:
    name = node.name()
    if name.endswith(_COMPILED):
        return _COMPILED_CODE
    if name.endswith(_CUDNN_RNN):
        return "cuDNN's recurrent layer (torch.backends.cudnn.flags(enabled=False) replaces it)"
    if name in _ONCE:
        return _once_differentiable(between(root, ends)) or "a once_differentiable autograd.Function"
    text = _refusal(node)
    found = re.search(r"aten::(\w+)|derivative for '(\w+)'|on (\w+) not", text)
    if found is None:
        return text or str(name)
    operator: str = next(filter(None, found.groups())).removesuffix("_backward").strip("_")
    if operator.startswith("scaled_dot_product"):
        kind = operator.removeprefix("scaled_dot_product_").replace("_attention", "").replace("_", " ")
        return f"scaled_dot_product_attention ({kind} backend)"
    return operator


def _once_differentiable(nodes: Collection[Node]) -> str | None:
    """The name of an autograd.Function among them whose backward is marked so."""
    for node in nodes:
        function = getattr(node, "_forward_cls", None)
        code = getattr(getattr(function, "backward", None), "__code__", None)
        if function is not None and code is not None and "once_differentiable" in code.co_qualname:
            return str(function.__name__)
    return None


def nearest_later_layer(
    trace: Trace, layer: nn.Module, selected: Tensor, scores: Tensor | None = None
) -> str | None:
    """The first layer to run after this one from which on every operator has a second derivative.

    Looked for among :meth:`~batchcam_captum.attribution.trace.Trace.candidates`, each of which sees less than the one before it,
    so that halving finds it.

    Args:
        trace: of a forward with ``math_from=[layer]``, its graph still there.
        layer: after which to look.
        selected: the scores, one a sample.
        scores: what the model returned, where that is known: of dense scores, such as those of a segmentation, the layer that
            makes them is no layer to explain.

    Returns:
        Its dotted name, or None if there is none.
    """
    runs = trace.runs(layer)
    later = {call for run in runs[-1:] for call in (*trace.after(run), *trace.around(run))}
    ends = {edge.node for run in runs for edge in run.edges}
    candidates = [
        call
        for call in trace.candidates(selected)
        if call in later
        and between(call.edges[0].node, ends)  # not on the branch of another input
        and not makes_scores(call, scores)
    ]
    low, high = 0, len(candidates)
    while low < high:
        middle = (low + high) // 2
        if second_derivative_missing(candidates[middle], selected) is None:
            high = middle
        else:
            low = middle + 1
    return candidates[low].name if low < len(candidates) else None


def second_derivative_missing(call: Call, scores: Tensor) -> str | None:
    """The operator after this run of a layer that has no second derivative, or None."""
    gradients = torch.autograd.grad(
        scores.sum(), call.edges, create_graph=True, retain_graph=True, allow_unused=True
    )
    found = [gradient for gradient in gradients if gradient is not None]
    return _find(found, node_of(scores), [edge.node for edge in call.edges])


def second_order_error(
    operator: str,
    forward_func: Callable[..., Any],
    layer: nn.Module,
    inputs: Sequence[Any],
    additional_forward_args: Sequence[Any],
    select: Callable[[Any], Tensor],
) -> RuntimeError:
    """The error for a differentiable map that cannot be differentiated. Runs the model once more to say which layer can.

    Args:
        operator: from :func:`unsupported_operator`.
        forward_func: the model.
        layer: the explained one, of several the one that runs first.
        inputs: its inputs.
        additional_forward_args: further arguments.
        select: the output -> one score a sample.

    Returns:
        The error, to be raised.
    """
    later: str | None = None
    with traced(forward_func, inputs, additional_forward_args, math_from=[layer]) as trace:
        scores = trace.output if isinstance(trace.output, Tensor) else None
        later = nearest_later_layer(trace, layer, select(trace.output), scores)
        runs = trace.runs(layer)
    return RuntimeError(
        second_order_message(operator, runs[-1].name if runs else type(layer).__name__, later)
    )


def second_order_message(operator: str, layer: str, later: str | None) -> str:
    """What is wrong, and which layer to choose instead."""
    return (
        f"{layer}: expected operators with a second derivative after the layer, as differentiable maps need, got "
        f"{operator}, which has none; {second_order_remedy(operator, later)} (first-order maps are not affected)"
    )


def second_order_remedy(operator: str, later: str | None) -> str:
    """What to do about it."""
    replace = _RUN_AS_WRITTEN if operator == _COMPILED_CODE else "replace the operator"
    if later:
        return f"choose {later!r}, the nearest later layer that works, or {replace}"
    return f"no later layer with places works: {replace}"


def training_error(operator: str, layer: str) -> RuntimeError:
    """The error for a training step, where the model must not be run again.

    Args:
        operator: from :func:`unsupported_operator`.
        layer: the name of the captured layer.

    Returns:
        The error, to be raised.
    """
    remedy = "batchcam_captum.check(model, layer, images) names the nearest later layer that works"
    if operator == _COMPILED_CODE:  # which check runs as it is written
        remedy = _RUN_AS_WRITTEN
    return RuntimeError(
        f"{layer}: expected operators with a second derivative after the layer, as a loss on maps needs, got {operator}, "
        f"which has none; {remedy}"
    )
