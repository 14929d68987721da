"""Activation checkpointing: blocks that run once more, in the middle of a gradient, do as they did in the forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.checkpoint import CheckpointError
from torch.utils.hooks import RemovableHandle

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

    def __init__(self, model: Callable[..., Any]) -> None:
        self._model = model if isinstance(model, nn.Module) else None
        self._before: set[nn.Module] | None = None
        self._known: frozenset[nn.Module] = frozenset()
        self._recomputed = False
        self._handle: RemovableHandle | None = None
        self._attention = MathAttention()

    def watch_forward(self, layer_has_run: Callable[[], bool]) -> None:
        """Note what runs before the layer; once, because a hook that sees every module slows all of them a little.

        Args:
            layer_has_run: asked before each module.
        """
        self.stop()
        if self._before is not None or self._model is None:
            return
        self._before = before = set()
        owner = get_ident()

        def look(module: nn.Module, _: Any) -> None:
            if get_ident() == owner and not attributing() and not layer_has_run():
                before.add(module)

        self._handle = register_module_forward_pre_hook(look)

    def forward_is_over(self, *, raised: bool) -> None:
        """Watch it no longer; one that raised is not the one to learn from."""
        if self._handle is not None and raised:
            self._before = None
        self.stop()

    def stop(self) -> None:
        """Watch no longer."""
        self._attention.stop()
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.remove()

    @contextmanager
    def for_cams(self) -> Iterator[None]:
        """Around the gradients that cams are made of."""
        buffers = BufferCopies()
        self._look_after(buffers)
        try:
            yield
        finally:
            self.stop()
            buffers.restore()

    def for_backward(self, total: Tensor) -> None:
        """Look after the ``backward()`` that begins with this tensor, where blocks have run again for the cams already."""
        if not self._recomputed or not total.requires_grad:
            return

        def begin(_: Tensor) -> None:
            self._look_after(None)
            torch.autograd.Variable._execution_engine.queue_callback(self.stop)

        total.register_hook(begin)

    def _look_after(self, buffers: BufferCopies | None) -> None:
        self.stop()
        if self._model is None:
            return
        model = self._model

        def look(module: nn.Module, _: Any) -> None:
            # Not by the thread: on a GPU gradients are computed in threads of torch's own.
            if module not in self._known:
                self._known = frozenset(model.modules())
                if module not in self._known:
                    return
            self._recomputed = True
            if module in (self._before or ()):
                self._attention.stop()
            else:
                self._attention.start()
            if buffers is not None:
                buffers.save(module)

        self._handle = register_module_forward_pre_hook(look)

    def __getstate__(self) -> dict[str, Any]:
        """A copy watches nothing."""
        return {**self.__dict__, "_handle": None}


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
