"""The training forward, watched: what the layers returned, and what the model itself returned."""

from __future__ import annotations

from contextlib import AbstractContextManager
from threading import get_ident
from types import TracebackType
from typing import Any, NamedTuple, NoReturn
from weakref import ref

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from ..attribution import BatchGradCam
from ..attribution.graph import edge_of, node_of, walk
from ..attribution.mixing import mixing_watched
from ..attribution.recorder import InputShape, LayerRecorder, is_meant
from ..attribution.survey import survey
from ..distributed import is_distributed
from ..functional.math_attention import MathAttention

#: What DistributedDataParallel puts after the model's own output. Under static_graph a gradient taken through it in the first
#: step makes the ranks drift apart silently.
_SINK = "_DDPSinkBackward"


class WatchedForward(NamedTuple):
    """What is left of a forward when it is over."""

    activations: list[Tensor]  #: one for each layer, graph attached
    output: Any  #: what the model itself returned, inside of any wrapper; None outside of a process group
    #: Of the model's first input that has places, where it was looked for.
    input_shape: tuple[int, ...] | None
    hooked: bool = False  #: whether somebody's hook waits for the gradient of the activations


class ForwardWatch:
    """Watches one forward at a time, from :meth:`open` to :meth:`close`, for the thread that opened it.

    Args:
        grad_cam: the model and its layers.
    """

    def __init__(self, grad_cam: BatchGradCam) -> None:
        self._grad_cam = grad_cam
        self._recorders: list[LayerRecorder] | None = None
        self._aliases: dict[int, tuple[Tensor, Tensor]] = {}
        self._hooked = False
        self._handed_on: list[ref[Tensor]] = []
        self._owner = 0
        self._attention = MathAttention()
        self._input = InputShape()
        self._output: list[Any] = []
        self._handle: RemovableHandle | None = None
        self._mixing_looked_for = False
        self._mixing: AbstractContextManager[None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether hooks are in place."""
        return bool(self._recorders) and any(recorder.attached for recorder in self._recorders or ())

    @property
    def layer_has_run(self) -> bool:
        """Whether one of the layers has."""
        return any(recorder.tensors for recorder in self._recorders or ())

    def open(self) -> None:
        """Forget what was seen, and watch the next forward."""
        self.drop()
        self._owner = get_ident()
        model = self._grad_cam.forward_func
        self._recorders = [
            LayerRecorder(layer, once=True, on_seen=self._attention.start, aliases=self._aliases)
            for layer in self._grad_cam.layers
        ]
        for recorder in self._recorders:
            recorder.attach()
        if isinstance(model, nn.Module):
            if self._grad_cam.reshape is not None:
                self._input.attach(model)  # the grid of a layer's tokens follows from the image's
            if is_distributed():
                self._handle = unwrapped(model).register_forward_hook(self._see_output)  # see own_scores
        if not self._mixing_looked_for and survey(model).batch_norm_may_mix:
            # Once: the hook that sees every module slows all of them a little.
            self._mixing_looked_for = True
            self._mixing = mixing_watched(model, self._recorders)
            self._mixing.__enter__()

    def close(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take all hooks away. What was seen stays, unless the forward raised."""
        self._attention.stop()
        self._input.detach()
        self._hooked = any(tensor._backward_hooks for pair in self._aliases.values() for tensor in pair)
        # Weak: the graph may need none of the clones, but a hook may still be put on one that the user holds.
        self._handed_on = [ref(clone) for clone, _ in self._aliases.values()]
        self._aliases.clear()
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        mixing, self._mixing = self._mixing, None
        if kind is not None:
            self.drop()
        for recorder in self._recorders or ():
            recorder.detach()
        if mixing is not None:  # last: the warning may be an error
            mixing.__exit__(kind, error, trace)

    def drop(self) -> None:
        """Forget what was seen, and undo the marks on it."""
        recorders, self._recorders = self._recorders, None
        self._output.clear()
        self._handed_on.clear()
        for recorder in recorders or ():
            recorder.release()

    def seen(self) -> WatchedForward:
        """What the last forward left. Whoever asks calls :meth:`drop` when done.

        Raises:
            RuntimeError: there was none, it did not run through a layer, or a layer returned several tensors.
        """
        if self._recorders is None:
            raise RuntimeError(
                "CamRegularizer: expected a captured forward, got none; run the model inside `with regularizer:`, and call the "
                "regularizer once for each such block"
            )
        for recorder in self._recorders:
            recorder.detach()  # a checkpointed layer runs once more for its gradients
        activations = [self._activations(recorder) for recorder in self._recorders]
        handed_on = [clone for clone in (each() for each in self._handed_on) if clone is not None]
        return WatchedForward(
            activations,
            self._output[0] if self._output else None,
            self._input.shape,
            self._hooked or any(tensor._backward_hooks for tensor in activations + handed_on),
        )

    def _activations(self, recorder: LayerRecorder) -> Tensor:
        name = type(recorder.layer).__name__
        if not recorder.tensors:
            self._complain(name, recorder.layer)
        if len(recorder.tensors) > 1:
            raise RuntimeError(
                f"{name}: expected a single tensor of activations on one device, got one on each of "
                f"{', '.join(map(str, recorder.tensors))}: DataParallel runs a copy of the layer on every device, while the loss "
                f"and its gradient are taken in one place; train with DistributedDataParallel instead of DataParallel"
            )
        if not recorder.is_single:
            raise RuntimeError(
                f"{name}: expected a single tensor of activations on one device, got several; choose a layer with one output"
            )
        ((activations,),) = recorder.tensors.values()
        return activations

    def _complain(self, name: str, layer: nn.Module) -> NoReturn:
        model = self._grad_cam.forward_func
        text = f"{name}: expected one run of the layer inside `with regularizer:`, got none; "
        if isinstance(model, nn.Module) and layer not in set(model.modules()):
            raise RuntimeError(
                f"{text}the layer is no part of {type(model).__name__}, which the regularizer was made with: take the layer of "
                f"the model that is trained, not of a copy or of what it was before it was replaced"
            )
        raise RuntimeError(
            f"{text}call the model that the layer belongs to inside the block (a compiled model runs no hooks; one with "
            f"checkpointing may run the blocks of a Sequential one by one: choose its last block)"
        )

    def _see_output(self, module: nn.Module, _: Any, output: Any) -> None:
        if self.layer_has_run and is_meant(module, self._owner):
            self._output[:] = [output]

    def __getstate__(self) -> dict[str, Any]:
        """A copy made inside a block watches nothing; what was seen stays with the original."""
        nothing: dict[str, Any] = {
            "_recorders": None,
            "_aliases": {},
            "_mixing": None,
            "_handle": None,
            "_handed_on": [],
            "_output": [],
        }
        return {**self.__dict__, **nothing}


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of DistributedDataParallel, whose forward other ranks wait for; itself otherwise."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def own_scores(scores: Tensor, forward: WatchedForward) -> Tensor:
    """The model's own scores, where what was given came out of DistributedDataParallel.

    Its output may have passed an operator of its, through which no gradient but the step's own must be taken.

    Args:
        scores: what the training loop got.
        forward: in which they were made.

    Returns:
        The same values, before that operator; the scores themselves where there is none.

    Raises:
        RuntimeError: something was computed from the wrapper's output.
    """
    node = node_of(scores)
    if node is None:
        return scores
    if node.name() == _SINK:
        # It takes all leaves of the output and returns as many, but has edges to those that are tensors only.
        for leaf in tree_leaves(forward.output)[scores.output_nr :][:1]:
            own = edge_of(leaf) if isinstance(leaf, Tensor) else None
            if own is not None and (own.node, own.output_nr) in node.next_functions:
                return leaf  # type: ignore[no-any-return]
    ends = [end for end in map(node_of, forward.activations) if end is not None]
    if any(each.name() == _SINK for each in walk([node], stop=ends)):
        raise RuntimeError(
            "scores: expected the very scores that DistributedDataParallel returned, got something computed from them, through "
            "which no gradient can be taken without stopping the synchronisation of the ranks; pass them as they are, or move "
            "the computation into the model"
        )
    return scores
