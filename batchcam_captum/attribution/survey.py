"""What one walk over a model's modules says about the forward that is going to run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import fx, nn
from torch.jit import ScriptModule
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

# Transformer modules of torch take another path without recording, which zeroes padded positions; DataParallel's workers have
# a grad mode each.
_NEED_GRAD_MODE = (nn.DataParallel, nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)
_COMPILED = (ScriptModule, fx.GraphModule)


class Survey(NamedTuple):
    """What has to be known of a model before a forward of our own."""

    modules: frozenset[nn.Module]  #: all of them; none where ``forward_func`` is no module
    training: tuple[nn.Module, ...]  #: those in training mode
    batch_norm_may_mix: bool  #: a BatchNorm uses the batch's statistics, or may do so unseen
    #: A trunk without recording may compute something else, or leave something behind.
    asks_for_grad_mode: bool
    #: Worth a closer look, see :mod:`~batchcam_captum.attribution.compiled`.
    may_be_compiled: bool

    def sees(self, layers: Iterable[nn.Module]) -> bool:
        """Whether the layers are among the modules, so that no module is likely to be hidden."""
        return self.modules.issuperset(layers)

    def may_train(self, layers: Iterable[nn.Module]) -> bool:
        """Whether a module trains, or may do so unseen."""
        return bool(self.training) or not self.sees(layers)


def survey(forward_func: Callable[..., Any]) -> Survey:
    """Look at every module once.

    Args:
        forward_func: the model. What is no module cannot be looked into, but its modules can be watched, see
            :func:`asks_for_grad_mode`.
    """
    if not isinstance(forward_func, nn.Module):
        return Survey(
            frozenset(),
            (),
            batch_norm_may_mix=True,
            asks_for_grad_mode=bool(parametrize._cache_enabled),
            may_be_compiled=True,
        )
    modules = frozenset(_all_modules(forward_func))
    # Far fewer than modules, and each call of a small model counts.
    kinds = {type(module) for module in modules}
    return Survey(
        modules,
        tuple(module for module in modules if module.training),
        batch_norm_may_mix=any(issubclass(kind, _BatchNorm) for kind in kinds) and any(map(mixes, modules)),
        # Cached parametrizations would keep tensors without a graph.
        asks_for_grad_mode=bool(parametrize._cache_enabled) or any(map(asks_for_grad_mode, kinds)),
        may_be_compiled=any(
            issubclass(kind, _COMPILED) or kind.__name__ == "OptimizedModule" for kind in kinds
        )
        or any(module._compiled_call_impl is not None or "forward" in module.__dict__ for module in modules),
    )


def _all_modules(root: nn.Module) -> set[nn.Module]:
    """``set(root.modules())`` without the names, which take most of its time: it counts for a single small image."""
    found, waiting = {root}, [root]
    while waiting:
        for module in waiting.pop()._modules.values():
            if module is not None and module not in found:
                found.add(module)
                waiting.append(module)
    return found


def asks_for_grad_mode(kind: type[nn.Module]) -> bool:
    """Whether a module of this class computes something else, or hands on no grad mode, without recording."""
    return issubclass(kind, _NEED_GRAD_MODE)


def mixes(module: nn.Module) -> bool:
    """Whether this is a BatchNorm that uses the batch's statistics."""
    return isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)
