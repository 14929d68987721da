"""Gradients in the middle of a training step, with DistributedDataParallel, FSDP2 and activation checkpointing.

A cam is made of a gradient that is taken between the forward and the step's ``backward()``, and is then differentiated itself.
:class:`MidStepGradients` has what these three need for that.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import finalize

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import CheckpointError

from ..attribution import BufferCopies, graph
from ..functional.math_attention import MathAttention

#: What DistributedDataParallel puts after the model's own output. Under static_graph a gradient taken through it in the first
#: step silently stops the synchronization of the ranks.
_DDP_SINK = "_DDPSinkBackward"
_REENTRANT_CHECKPOINT = "CheckpointFunctionBackward"


def unwrapped(model: Any) -> Any:
    """Return the model inside of DistributedDataParallel, whose own forward would wait for the other ranks."""
    return model.module if isinstance(model, DistributedDataParallel) else model


class MidStepGradients:
    """Take gradients in the middle of a step without disturbing what shards, synchronizes or recomputes the model.

    Args:
        model: the model. If it is a function, nothing is known of its modules, and nothing is done.
        layers: the explained layers.
    """

    def __init__(self, model: Callable[..., Any], layers: Sequence[nn.Module]) -> None:
        self._model = model if isinstance(model, nn.Module) else None
        self._layers = list(layers)
        # True once a checkpointed block has run again for a cam's gradient.
        self._recomputes = False
        self._positions: dict[nn.Module, bool] = {}

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Enter this around the gradients that cams are made of."""
        buffers = BufferCopies()
        with _kept_unsharded(self._model):
            stop = self._watch_recomputation(buffers)
            try:
                yield
            finally:
                stop()
                # BatchNorm's statistics move as often as they do without the regularizer.
                buffers.restore()

    def prepare_backward(self, total: Tensor) -> None:
        """Prepare the ``backward()`` that begins with this tensor, after gradients have been taken."""
        if not total.requires_grad:
            return
        _gather_again(total, self._model)
        if self._recomputes:
            total.register_hook(self._begin_backward)

    def _begin_backward(self, _: Tensor) -> None:
        stop = self._watch_recomputation(None)

        def over() -> None:
            stop()

        # A backward that raises calls nobody, but drops its callbacks: nobody else may hold `over`.
        finalize(over, stop)
        torch.autograd.Variable._execution_engine.queue_callback(over)

    def _watch_recomputation(self, buffers: BufferCopies | None) -> Callable[[], None]:
        """Give each block that runs again the attention backend that it had in the forward.

        A checkpointed block keeps no activations, but runs again for each gradient that needs them, and has to save what it would
        have saved in the forward. Attention used its math backend there from the layer on, see
        :class:`~batchcam_captum.attribution.observer.ForwardObserver`. What ran before the layer is what stands before it among
        the model's modules, or holds it, or is part of it. Costs nothing if nothing is checkpointed.

        Args:
            buffers: where the buffers of modules that run again are saved; None in the step's own backward.

        Returns:
            A function that ends the watch; it may be called twice.
        """
        if self._model is None:
            return lambda: None
        attention = MathAttention()

        def look(module: nn.Module, _: Any) -> None:
            # Not by the thread: on a GPU torch computes gradients in threads of its own.
            after = self._runs_after_layer(module)
            if after is None:
                return
            if buffers is not None:
                self._recomputes = True
                buffers.save(module)
            (attention.start if after else attention.stop)()

        handle = register_module_forward_pre_hook(look)

        def stop() -> None:
            attention.stop()
            handle.remove()

        return stop

    def _runs_after_layer(self, module: nn.Module) -> bool | None:
        """Return whether a module stands after the first of the layers; None if it is not the model's."""
        if module not in self._positions:
            assert self._model is not None
            modules = list(self._model.modules())
            first = min((modules.index(layer) for layer in self._layers if layer in modules), default=0)
            inside = set(modules[first].modules())
            self._positions = {
                each: position > first and each not in inside for position, each in enumerate(modules)
            }
        return self._positions.get(module)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._model, self._layers)


def own_scores(scores: Tensor, output: Any, activations: Sequence[Tensor]) -> Tensor:
    """Return the model's own scores, if those that are given came out of DistributedDataParallel.

    Args:
        scores: what the training loop has.
        output: what the model itself returned, inside of the wrapper.
        activations: of the layers.

    Returns:
        The same values, from before the wrapper's own operator; the scores themselves if there is none.

    Raises:
        RuntimeError: something was computed from the wrapper's output.
    """
    node = graph.node_of(scores)
    if node is None:
        return scores
    if node.name() == _DDP_SINK:
        # It takes all leaves of the output and returns as many, but has edges to those only that are tensors.
        for leaf in tree_leaves(output)[scores.output_nr :][:1]:
            own = graph.edge_of(leaf) if isinstance(leaf, Tensor) else None
            if own is not None and (own.node, own.output_nr) in node.next_functions:
                return leaf  # type: ignore[no-any-return]
    ends = [end for end in map(graph.node_of, activations) if end is not None]
    if any(each.name() == _DDP_SINK for each in graph.walk([node], stop=ends)):
        raise RuntimeError(
            "scores: expected the very scores that DistributedDataParallel returned, got something computed from them, and a "
            "gradient through that would stop the synchronization of the ranks; pass the scores as they are, or move the "
            "computation into the model"
        )
    return scores


def checkpointing_error(
    error: RuntimeError, scores: Tensor, activations: Sequence[Tensor]
) -> RuntimeError | None:
    """Return what to raise if a gradient could not be taken because of checkpointing; None if that is not the cause.

    Only ``backward()`` passes reentrant checkpointing. And if a layer without a graph, whose output is marked in the forward, is
    inside of a checkpointed block, it is not marked when the block runs again, which then saves other tensors.

    Args:
        error: what was raised.
        scores: what was differentiated.
        activations: with respect to what.
    """
    # A layer inside such a block runs without a graph, so its activations have none; what the block returns has one.
    inside = any(each.is_leaf for each in activations)
    if inside and isinstance(error, CheckpointError):
        return RuntimeError(
            "scores: expected a frozen layer outside of checkpointed blocks, or at the end of one, got one in the middle; "
            "checkpoint only what comes after the layer (a frozen trunk keeps nothing for its backward anyway)"
        )
    if "use_reentrant" not in str(error) and not (
        inside and any(node.name() == _REENTRANT_CHECKPOINT for node in graph.walk([graph.node_of(scores)]))
    ):
        return None
    return RuntimeError(
        "scores: expected checkpointing that lets a gradient pass, got reentrant checkpointing after or around the layer; pass "
        "use_reentrant=False to torch.utils.checkpoint (before the layer either kind works)"
    )


@contextmanager
def _kept_unsharded(model: nn.Module | None) -> Iterator[None]:
    """Keep what a gradient gathers in here gathered until the step's own backward has passed.

    ``fully_shard`` frees a module's gathered parameters once a gradient has passed through it. The step's backward begins with
    the gradient of the cam, before any hook of FSDP gathers them again. Only the head, which this gradient passes, is kept.
    """
    earlier = {module: _reshards(module) for module in _sharded_modules(model)}
    try:
        for module in earlier:
            module.set_reshard_after_backward(False, recurse=False)
        yield
    finally:
        for module, reshards in earlier.items():
            module.set_reshard_after_backward(reshards, recurse=False)


def _gather_again(total: Tensor, model: nn.Module | None) -> None:
    """Gather what was kept once more when the backward begins: another forward or backward in between has freed it."""
    kept = [module for module in _sharded_modules(model) if _is_gathered(module)]

    def gather(_: Tensor) -> None:
        for module in kept:
            module.unshard()  # does nothing if it is gathered

    if kept:
        total.register_hook(gather)


def _sharded_modules(model: nn.Module | None) -> list[Any]:
    # If FSDP2 is not imported, no module is sharded.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None or model is None:
        return []
    return [module for module in model.modules() if isinstance(module, fsdp.FSDPModule)]


def _parameter_groups(module: Any) -> list[Any]:
    """Return the groups of parameters that are gathered and freed together; a module may have none of its own."""
    state = module._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None) or [getattr(state, "_fsdp_param_group", None)]
    return [group for group in groups if group is not None]


def _reshards(module: Any) -> bool:
    """Return True if parameters are freed after a backward: the default, unless the user has chosen otherwise."""
    return all(getattr(group, "reshard_after_backward", True) for group in _parameter_groups(module))


def _is_gathered(module: Any) -> bool:
    return any(getattr(group, "is_unsharded", False) for group in _parameter_groups(module))
