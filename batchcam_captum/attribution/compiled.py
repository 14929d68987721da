"""Models of torch.compile: hooks do not run inside compiled code, and it has no second derivative."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def compiled_modules(forward_func: Callable[..., Any]) -> dict[str, nn.Module]:
    """Return the modules of a model that ``torch.compile`` has compiled, by their names."""
    eval_frame = _eval_frame()
    if eval_frame is None or not isinstance(forward_func, nn.Module):
        return {}
    return {
        name: module
        for name, module in forward_func.named_modules()
        if isinstance(module, eval_frame.OptimizedModule)
        or module._compiled_call_impl
        or hasattr(module.forward, "_torchdynamo_orig_callable")
    }


def _eval_frame() -> Any:
    """Return Dynamo's module if it is loaded; loading takes a second, and nothing is compiled without it."""
    return sys.modules.get("torch._dynamo.eval_frame")


def original(forward_func: Callable[..., Any]) -> Callable[..., Any]:
    """Return the model inside a wrapper of ``torch.compile``, and anything else as it is."""
    inner: Callable[..., Any] = getattr(forward_func, "_orig_mod", forward_func)
    return inner


@contextmanager
def eager_stance() -> Iterator[None]:
    """Run code of ``torch.compile`` uncompiled."""
    if _eval_frame() is None:
        yield
        return
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        # The global hooks are ours.
        warnings.filterwarnings("ignore", message=r"Using `torch.compile\(module\)` when there are global")
        yield
