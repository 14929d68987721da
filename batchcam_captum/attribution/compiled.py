"""Compiled models: hooks do not run inside compiled code, so the hook route has to be given the original modules."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import fx, nn
from torch.jit import ScriptModule

Kind = Literal["torch.compile", "Module.compile()", "TorchScript", "a traced graph"]


class Compiled(NamedTuple):
    """A compiled part of a model."""

    name: str  #: dotted, in the model; of the model itself its kind
    kind: Kind
    whole: bool  #: it is the whole model
    inside: frozenset[nn.Module]  #: the modules in it, whose hooks do not run


def compiled_modules(forward_func: Callable[..., Any]) -> list[Compiled]:
    """What of the model is compiled: by ``torch.compile``, ``Module.compile()``, TorchScript, ``torch.export`` or ``torch.fx``.

    Args:
        forward_func: the model, or a function; of a function no more than itself can be seen.

    Returns:
        The compiled parts, without those inside of others. ``torch.compile`` does not count while it is switched off by
        ``torch.compiler.set_stance("force_eager")``.
    """
    if not isinstance(forward_func, nn.Module):
        if _is_compiled(forward_func) and not _runs_eagerly():
            return [
                Compiled(
                    getattr(forward_func, "__name__", "forward_func"), "torch.compile", True, frozenset()
                )
            ]
        return []
    return list(_parts(forward_func))


def _parts(model: nn.Module) -> Iterator[Compiled]:
    eager = _runs_eagerly()
    seen: set[nn.Module] = set()
    for name, module in model.named_modules():
        kind = None if module in seen else _kind(module, eager)
        if kind is None:
            continue
        inside = frozenset(module.modules()) - {module}
        if isinstance(module, fx.GraphModule):
            inside -= _called(module)
            if not inside:
                continue
        seen |= inside
        yield Compiled(name or type(module).__name__, kind, not name, inside)


def _kind(module: nn.Module, eager: bool) -> Kind | None:
    if isinstance(module, ScriptModule):
        return "TorchScript"
    if isinstance(module, fx.GraphModule):
        return "a traced graph"
    if eager:
        return None
    if _is_wrapper(module):
        return "torch.compile"
    return "Module.compile()" if module._compiled_call_impl or _is_compiled(module.forward) else None


def _called(graph: fx.GraphModule) -> set[nn.Module]:
    """The modules that run as modules in a graph, and what is inside of them."""
    targets = [str(node.target) for node in graph.graph.nodes if node.op == "call_module"]
    return {module for target in targets for module in graph.get_submodule(target).modules()}


def _is_compiled(function: Any) -> bool:
    return getattr(function, "_torchdynamo_orig_callable", None) is not None


def _eval_frame() -> Any:
    """Dynamo's module, if anybody has loaded it; loading it takes a second, and nothing is compiled without it."""
    return sys.modules.get("torch._dynamo.eval_frame")


def _is_wrapper(module: nn.Module) -> bool:
    eval_frame = _eval_frame()
    return eval_frame is not None and isinstance(module, eval_frame.OptimizedModule)


def _runs_eagerly() -> bool:
    stance = getattr(_eval_frame(), "_stance", None)
    return getattr(stance, "stance", None) == "force_eager"


def original(forward_func: Callable[..., Any]) -> Callable[..., Any]:
    """The model inside of a wrapper of ``torch.compile``; anything else as it is."""
    if isinstance(forward_func, nn.Module) and _is_wrapper(forward_func):
        inner: Any = forward_func._orig_mod
        return inner  # type: ignore[no-any-return]
    return forward_func


@contextmanager
def eager_stance() -> Iterator[None]:
    """Run what ``torch.compile`` has compiled as it was written; for a look at a model, not for speed."""
    if _eval_frame() is None:
        yield
        return
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        ignore_own_hooks()
        yield


def ignore_own_hooks() -> None:
    """Leave out what torch warns of hooks on all modules, which compiled code would not take well: here they are our own."""
    warnings.filterwarnings("ignore", message=r"Using `torch.compile\(module\)` when there are global hooks")


def check_hooks_run(forward_func: Callable[..., Any], layers: Sequence[nn.Module]) -> None:
    """Raise where a layer is inside compiled code, or the whole of the model is. Compiled parts before or after it do no harm.

    Args:
        forward_func: the model.
        layers: the explained layers.

    Raises:
        RuntimeError: names what is compiled, and what to do.
    """
    problem = hidden_layers(forward_func, layers)
    if problem is not None:
        raise RuntimeError(problem)


def hidden_layers(forward_func: Callable[..., Any], layers: Sequence[nn.Module]) -> str | None:
    """What :func:`check_hooks_run` raises, or None."""
    parts = compiled_modules(forward_func)
    if not parts:
        return None
    modules = set(forward_func.modules()) if isinstance(forward_func, nn.Module) else set()
    for layer in layers:
        for part in parts:
            if layer in part.inside or (part.whole and layer not in modules):
                return _message(type(layer).__name__, part, isinstance(forward_func, nn.Module))
    return None


def _message(layer: str, part: Compiled, is_module: bool) -> str:
    if part.kind == "torch.compile" and is_module:
        remedy = (
            "pass the original model, model._orig_mod, whose weights are the same"
            if part.whole
            else f"put the original back, {part.name}._orig_mod, whose weights are the same, or explain {part.name} itself"
        )
    elif part.kind in ("torch.compile", "Module.compile()"):
        remedy = 'call inside `with torch.compiler.set_stance("force_eager"):`, or use a model that is not compiled'
    else:
        remedy = "use the model that it was made of"
    how = part.kind if part.kind == "a traced graph" else f"compiled by {part.kind}"
    return (
        f"{layer}: expected a layer that runs as it is written, got one inside {part.name}, which is {how}; hooks do "
        f"not run there: {remedy} (to train a compiled model, take the maps of a head callable: functional.head_cams)"
    )
