"""Compiled models: hooks do not run inside compiled code, so the explained layer has to lie outside of it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.jit import ScriptModule


class CompiledPart(NamedTuple):
    """A compiled module of a model."""

    name: str  #: dotted, in the model; of the model itself, its class
    kind: str
    hidden: frozenset[nn.Module]  #: the modules in it whose hooks do not run
    is_whole: bool  #: it is the model itself


def compiled_parts(forward_func: Callable[..., Any]) -> list[CompiledPart]:
    """Return the parts of a model that are compiled by torch.compile, TorchScript, torch.export or torch.fx.

    Args:
        forward_func: the model, or a function, which can be seen as a whole only.

    Returns:
        The parts, without those inside of others. Code of ``torch.compile`` does not count inside
        ``torch.compiler.set_stance("force_eager")``.
    """
    if not isinstance(forward_func, nn.Module):
        name = getattr(forward_func, "__name__", "forward_func")
        is_compiled = _is_compiled(forward_func) and not _runs_eagerly()
        return [CompiledPart(name, "torch.compile", frozenset(), True)] if is_compiled else []
    parts: list[CompiledPart] = []
    seen: set[nn.Module] = set()
    for name, module in forward_func.named_modules():
        kind = None if module in seen else _kind(module)
        hidden = frozenset(module.modules()) - {module} - _called(module) if kind else frozenset()
        if kind is not None and not (isinstance(module, fx.GraphModule) and not hidden):
            seen |= hidden
            parts.append(CompiledPart(name or type(module).__name__, kind, hidden, not name))
    return parts


def _kind(module: nn.Module) -> str | None:
    if isinstance(module, ScriptModule):
        return "TorchScript"
    if isinstance(module, fx.GraphModule):
        return "torch.fx"
    compiled = _is_wrapper(module) or module._compiled_call_impl or _is_compiled(module.forward)
    return "torch.compile" if compiled and not _runs_eagerly() else None


def _called(module: nn.Module) -> set[nn.Module]:
    """Return the modules that a graph calls as modules, and those inside of them."""
    if not isinstance(module, fx.GraphModule):
        return set()
    targets = [str(node.target) for node in module.graph.nodes if node.op == "call_module"]
    return {inner for target in targets for inner in module.get_submodule(target).modules()}


def _is_compiled(function: Any) -> bool:
    return getattr(function, "_torchdynamo_orig_callable", None) is not None


def _eval_frame() -> Any:
    """Return Dynamo's module if it is loaded; loading takes a second, and nothing is compiled without it."""
    return sys.modules.get("torch._dynamo.eval_frame")


def _is_wrapper(module: nn.Module) -> bool:
    eval_frame = _eval_frame()
    return eval_frame is not None and isinstance(module, eval_frame.OptimizedModule)


def _runs_eagerly() -> bool:
    stance = getattr(_eval_frame(), "_stance", None)
    return getattr(stance, "stance", None) == "force_eager"


def original(forward_func: Callable[..., Any]) -> Callable[..., Any]:
    """Return the model inside a wrapper of ``torch.compile``, and anything else as it is."""
    if isinstance(forward_func, nn.Module) and _is_wrapper(forward_func):
        return forward_func._orig_mod  # type: ignore[return-value]
    return forward_func


@contextmanager
def eager_stance() -> Iterator[None]:
    """Run code of ``torch.compile`` uncompiled."""
    if _eval_frame() is None:
        yield
        return
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        ignore_own_hooks()
        yield


def ignore_own_hooks() -> None:
    """Ignore torch's warning about global hooks around compiled code: the hooks are ours."""
    warnings.filterwarnings("ignore", message=r"Using `torch.compile\(module\)` when there are global hooks")


def check_hooks_run(forward_func: Callable[..., Any], layers: Sequence[nn.Module]) -> None:
    """Raise if a layer is inside compiled code. Compiled parts before or after the layer do no harm.

    Args:
        forward_func: the model.
        layers: the explained layers.

    Raises:
        RuntimeError: names the compiled part and the remedy.
    """
    problem = hidden_layers(forward_func, layers)
    if problem is not None:
        raise RuntimeError(problem)


def hidden_layers(forward_func: Callable[..., Any], layers: Sequence[nn.Module]) -> str | None:
    """Return the message of :func:`check_hooks_run`, or None."""
    parts = compiled_parts(forward_func)
    known = set(forward_func.modules()) if parts and isinstance(forward_func, nn.Module) else set()
    for layer in layers:
        for part in parts:
            if layer in part.hidden or (part.is_whole and layer not in known):
                remedy = (
                    "pass the original model (`._orig_mod` of a wrapper, whose weights are the same), or call inside `with "
                    'torch.compiler.set_stance("force_eager"):`'
                    if part.kind == "torch.compile"
                    else "use the model that it was made of"
                )
                return (
                    f"{type(layer).__name__}: expected a layer outside compiled code, got one inside {part.name}, which is "
                    f"compiled by {part.kind}, where hooks do not run; {remedy}; to train a compiled model see split_model"
                )
    return None
