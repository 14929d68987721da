"""Activation checkpointing: blocks that run once more, in the middle of a gradient, do as they did in the forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import Any, Self
from weakref import WeakKeyDictionary, WeakSet, finalize

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.checkpoint import CheckpointError

from ..attribution.graph import node_of, walk
from ..attribution.recorder import attributing
from ..attribution.state import BufferCopies
from ..functional.math_attention import MathAttention

#: What reentrant checkpointing leaves in the graph.
_REENTRANT = "CheckpointFunctionBackward"


class Recomputation:
    """Knows which modules run before the explained layer, and looks after those that run again.

    A checkpointed block keeps none of its activations, but runs again for each gradient that needs them: for the cam's, if it
    comes after the layer or around it, and for the ``backward()`` of the whole. What it saves must then be what it would have
    saved in the forward, so attention runs on the same backend as it did there. The run for the cam's gradient leaves BatchNorm's
    statistics alone: they move as often as they do without the regularizer. Costs nothing where nothing is checkpointed.

    Args:
        model: the model, or a function around it, of which nothing is known: then nothing is looked after.
    """

    def __init__(self, model: Callable[..., Any] | None) -> None:
        self._model = model if isinstance(model, nn.Module) else None
        # Whether a module ran before the layer, of those that ran in a forward; and what has run again for a cam's gradient.
        self._before: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
        self._again: WeakSet[nn.Module] = WeakSet()
        self._known: frozenset[nn.Module] = frozenset()
        self._differentiated = False
        self._forward: _WatchedOrder | None = None

    def watch_forward(self, layer_has_run: Callable[[], bool]) -> None:
        """Note what runs before the layer.

        In every forward where blocks run again, as not all modules run in all of them (stochastic depth); otherwise only until
        that is known, because a hook that sees every module slows all of them a little.

        Args:
            layer_has_run: asked before each module.
        """
        self.forward_is_over(raised=True)
        if self._model is not None and (self._again or not self._differentiated):
            self._forward = _WatchedOrder(layer_has_run)

    def forward_is_over(self, *, raised: bool) -> None:
        """Watch it no longer; one that raised, or missed the layer, is not the one to learn from."""
        forward, self._forward = self._forward, None
        if forward is not None:
            forward.stop()
            if not raised and forward.layer_has_run():
                self._before.update(forward.before)

    @contextmanager
    def for_cams(self) -> Iterator[None]:
        """Around the gradients that cams are made of."""
        self.forward_is_over(raised=False)
        buffers = BufferCopies()
        stop = self._look_after(buffers)
        try:
            yield
        finally:
            stop()
            buffers.restore()
            self._differentiated = True

    def for_backward(self, total: Tensor) -> None:
        """Look after the ``backward()`` that begins with this tensor, where blocks have run again for the cams already."""
        if not self._again or not total.requires_grad:
            return

        def begin(_: Tensor) -> None:
            stop = self._look_after(None)

            def over() -> None:
                stop()

            # A backward that raises calls nobody, but lets go of whom it would have called: nobody else may hold `over`.
            finalize(over, stop)
            torch.autograd.Variable._execution_engine.queue_callback(over)

        total.register_hook(begin)

    def _look_after(self, buffers: BufferCopies | None) -> Callable[[], None]:
        """Begin to.

        Args:
            buffers: those of what runs again are saved here, and the gradient is a cam's; None: it is the step's.

        Returns:
            What ends it; may be called twice.
        """
        if self._model is None:
            return lambda: None
        model = self._model
        attention = MathAttention()

        def look(module: nn.Module, _: Any) -> None:
            # Not by the thread: on a GPU gradients are computed in threads of torch's own.
            if module not in self._known:
                self._known = frozenset(model.modules())
                if module not in self._known:
                    return
            if buffers is not None:
                self._again.add(module)
                buffers.save(module)
            # What no forward has shown is after the layer if a cam's gradient needs it.
            if self._before.get(module, module not in self._again):
                attention.stop()
            else:
                attention.start()

        handle = register_module_forward_pre_hook(look)

        def stop() -> None:
            attention.stop()
            handle.remove()

        return stop

    def __reduce__(self) -> tuple[type[Self], tuple[nn.Module | None]]:
        """A copy watches nothing, and learns anew."""
        return type(self), (self._model,)


class _WatchedOrder:
    """Notes which modules run before the layer in this thread, until :meth:`stop`.

    Args:
        layer_has_run: asked before each module.
    """

    def __init__(self, layer_has_run: Callable[[], bool]) -> None:
        self.layer_has_run = layer_has_run
        self.before: dict[nn.Module, bool] = {}
        owner = get_ident()

        def look(module: nn.Module, _: Any) -> None:
            # The first of its runs counts.
            if module not in self.before and get_ident() == owner and not attributing():
                self.before[module] = not layer_has_run()

        self.stop: Callable[[], None] = register_module_forward_pre_hook(look).remove


def checkpointing_error(
    error: RuntimeError, scores: Tensor, activations: Sequence[Tensor]
) -> RuntimeError | None:
    """What to say where a gradient could not be taken because of checkpointing.

    Only a ``backward()`` passes reentrant checkpointing. And a layer without a graph, whose output is marked in the forward, is
    not marked when it runs again: inside of a checkpointed block other tensors are then saved.

    Args:
        error: what came of the attempt.
        scores: what was differentiated.
        activations: with respect to what.

    Returns:
        The error to raise instead, or None if that is not the cause.
    """
    # A layer inside such a block runs without a graph, so its activations have none; what the block returns has one.
    inside = any(each.is_leaf for each in activations)
    if inside and isinstance(error, CheckpointError):
        return RuntimeError(
            "scores: expected a frozen layer outside of checkpointed blocks, or at the end of one, got one in the middle; "
            "checkpoint only what comes after the layer (a frozen trunk keeps nothing for its backward anyway)"
        )
    if "use_reentrant" not in str(error) and not (
        inside and any(node.name() == _REENTRANT for node in walk([node_of(scores)]))
    ):
        return None
    return RuntimeError(
        "scores: expected checkpointing that lets a gradient pass, got reentrant checkpointing after or around the layer; pass "
        "use_reentrant=False to torch.utils.checkpoint (before the layer either kind works)"
    )
