"""A forward of our own, and what is done with it while its graph is there: for a whole batch, at one layer or at several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from enum import IntEnum
from threading import get_ident
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ..functional.math_attention import MathAttention
from ..warn import warn_user
from . import _captum
from .compiled import check_hooks_run, eager_stance
from .mixing import mixing_watched
from .recorder import LayerRecorder, TrunkNeedsGraphError, own_forward
from .state import recordable, state_kept
from .survey import Survey, asks_for_grad_mode, survey

T = TypeVar("T")
Tensors = tuple[Tensor, ...]


class Forward(NamedTuple):
    """A forward that has run, its graph there from the layers on."""

    output: Any  #: what the model returned
    #: For each layer and, where DataParallel spread it, for each device in turn: its tensors, (N, C, *spatial).
    rows: list[Tensors]
    devices: int  #: how many rows belong to one layer
    hooked: (
        bool  #: a hook of the user's, on what the model was handed in a layer's stead, changes its gradient
    )

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors of all rows, one after the other: what is differentiated with respect to."""
        return [tensor for row in self.rows for tensor in row]

    def gathered(self, flat: Sequence[Tensor]) -> list[Tensors]:
        """One tensor for each of :attr:`tensors` -> one tuple a layer, put together from all devices along the samples."""
        remaining = iter(flat)
        rows = [tuple(next(remaining) for _ in row) for row in self.rows]
        starts = range(0, len(rows), self.devices)
        return [_captum.reduce_list(rows[start : start + self.devices]) for start in starts]


class Recording(IntEnum):
    """From where on a forward of our own is recorded. Each does where the one before it does not."""

    LAYER = 0  #: from the first of the layers on: the trunk has no graph
    MODEL = 1  #: everything; of a frozen model nothing before the layer
    INPUTS = 2  #: everything, from copies of the inputs on that ask for a gradient


class Outcome(NamedTuple, Generic[T]):
    """What came of a run."""

    result: T
    recording: Recording  #: what it took


@contextmanager
def hidden_modules_watched() -> Iterator[None]:
    """Raise :class:`TrunkNeedsGraphError` where a module that no walk has seen asks for the grad mode while that is off."""
    owner = get_ident()

    def look(module: nn.Module, _: Any) -> None:
        if get_ident() == owner and asks_for_grad_mode(type(module)) and not torch.is_grad_enabled():
            raise TrunkNeedsGraphError(type(module).__name__)

    handle = register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def own_run(
    forward_func: Callable[..., Any],
    layers: Sequence[nn.Module],
    inputs: tuple[Any, ...],
    additional_forward_args: tuple[Any, ...] = (),
    *,
    recording: Recording,
    at_input: bool = False,
    second_order: bool = False,
    needs_graph: bool = False,
    keep_rng: bool = True,
    facts: Survey | None = None,
) -> Iterator[tuple[list[LayerRecorder], Any]]:
    """Run the model in a forward of our own, and give what the layers did and what it returned.

    Afterwards, also when the body raises, hooks, marks, buffers and random state are as they were.

    Args:
        forward_func: see :func:`run`.
        layers: see :func:`run`.
        inputs: see :func:`run`.
        additional_forward_args: see :func:`run`.
        recording: from where on it is recorded.
        at_input: see :func:`run`.
        second_order: see :func:`run`.
        needs_graph: see :class:`~batchcam_captum.attribution.recorder.LayerRecorder`.
        keep_rng: see :func:`~batchcam_captum.attribution.state.state_kept`.
        facts: of ``forward_func``, where they are known already.
    """
    facts = facts or survey(forward_func)
    recorded = recording > Recording.LAYER
    if recording is Recording.INPUTS:
        inputs = tuple(map(_recorded, inputs))
    tensors = [value for value in (*inputs, *additional_forward_args) if isinstance(value, Tensor)]
    aliases: dict[int, tuple[Tensor, Tensor]] = {}
    attention = MathAttention()
    recorders = [
        LayerRecorder(
            layer,
            at_input=at_input,
            inside_attribution=True,
            records=True,
            needs_graph=needs_graph,
            aliases=aliases,
            on_seen=attention.start if second_order else None,
            # Of several layers one may be inside of another, or before it.
            inside_dropped=not recorded and len(layers) == 1 and not facts.may_be_compiled,
        )
        for layer in layers
    ]
    with ExitStack() as stack:
        stack.enter_context(state_kept(facts, layers, tensors, keep_rng=keep_rng))
        stack.enter_context(own_forward())
        for recorder in recorders:
            stack.callback(recorder.release)
            recorder.attach()
        with torch.set_grad_enabled(recorded), attention, ExitStack() as watch:
            if not (recorded or facts.sees(layers)):
                watch.enter_context(hidden_modules_watched())
            if facts.batch_norm_may_mix:
                watch.enter_context(mixing_watched(forward_func, recorders))
            output = _captum.run_forward(forward_func, inputs, None, additional_forward_args)
            if not torch.is_grad_enabled():
                raise TrunkNeedsGraphError("a grad mode of the model's own ended after the layer")
        for recorder in recorders:
            recorder.detach()
            recorder.hooked = any(clone._backward_hooks for clone, _ in aliases.values())
        aliases.clear()
        yield recorders, output


def run(
    use: Callable[[Forward], T],
    forward_func: Callable[..., Any],
    layers: Sequence[nn.Module],
    inputs: tuple[Any, ...],
    additional_forward_args: tuple[Any, ...] = (),
    *,
    at_input: bool = False,
    device_ids: list[int] | None = None,
    start: Recording = Recording.LAYER,
    second_order: bool = False,
    several_gradients: bool = False,
    keep_rng: bool = True,
) -> Outcome[T]:
    """Run the model once, and use its graph: it is there from the layers on.

    Gradients are needed from the layer on. What comes before it, the trunk, runs without recording: a layer's hook marks its
    very output with ``requires_grad_()`` and switches recording on. Where that does not work (see below), the model is run
    again with everything recorded, from the same state and random numbers.

    Args:
        use: called with the forward while hooks, marks and state are still to be undone; takes the gradients. It may be called
            again, with a recorded forward, where it raised.
        forward_func: the model, or any callable that runs it.
        layers: whose activations are asked for.
        inputs: its inputs.
        additional_forward_args: further arguments.
        at_input: look at what the layers receive instead of what they return.
        device_ids: see ``captum.attr.LayerGradCam``.
        start: what to try first. The activations' own graph needs ``Recording.MODEL``.
        second_order: the gradients are to be differentiated again: from the layer on attention uses its math backend.
        several_gradients: ``use`` takes several gradients of one graph, which compiled code may not allow.
        keep_rng: see :func:`~batchcam_captum.attribution.state.state_kept`.

    Returns:
        What ``use`` returned; and what it took.

    Raises:
        RuntimeError: a layer is not reached, or the scores do not depend on it, also in a recorded forward; or it is compiled,
            so that hooks do not run.

    A second, recorded run happens if the first one raises (what is no ``TypeError`` or ``ValueError``), if it does not reach a
    layer, if a layer hands on what it was given (which may have been used already), if what it returned is changed in place
    later on, if a grad mode of the model's own ends after the layer, or if the scores do not depend on the layer. A third one,
    with a graph from the inputs on, if a frozen model works in place on the marked tensor, or its layer hands on what it was
    given. Recorded from the start are what a layer receives, DataParallel, and models with torch's own transformer modules, see
    :class:`~batchcam_captum.attribution.survey.Survey`; where these are hidden in a function, from the second run on.
    """
    inputs = tuple(map(recordable, inputs))
    additional_forward_args = tuple(map(recordable, additional_forward_args))
    facts = survey(forward_func)
    if facts.may_be_compiled:
        check_hooks_run(forward_func, layers)
    # Compiled code cannot be differentiated twice, may free what several gradients need, and compiles anew where it meets the
    # hooks of state_kept: then it runs as it was written.
    as_written = second_order or several_gradients or facts.may_train(layers)
    eager = eager_stance if facts.may_be_compiled and as_written else nullcontext
    if at_input or device_ids or facts.asks_for_grad_mode:
        start = max(start, Recording.MODEL)

    def once(recording: Recording) -> Outcome[T]:
        with (
            eager(),
            own_run(
                forward_func,
                layers,
                inputs,
                additional_forward_args,
                recording=recording,
                at_input=at_input,
                second_order=second_order,
                needs_graph=recording < Recording.INPUTS,
                keep_rng=keep_rng,
                facts=facts,
            ) as (recorders, output),
        ):
            if recording is Recording.LAYER and any(recorder.rewritten for recorder in recorders):
                raise TrunkNeedsGraphError("a base of the layer's output was changed in place")
            return Outcome(use(_forward(forward_func, recorders, output, device_ids)), recording)

    if start is Recording.LAYER:
        versions = [value._version for value in inputs if isinstance(value, Tensor)]
        try:
            return once(Recording.LAYER)
        except (TypeError, ValueError, torch.OutOfMemoryError):
            raise
        except Exception:
            if versions != [value._version for value in inputs if isinstance(value, Tensor)]:
                raise  # the forward changes its inputs in place: another one would not see the same
    # Outside of the except block, so that the error of the second run stands alone.
    if start < Recording.INPUTS:
        try:
            return once(Recording.MODEL)
        except TrunkNeedsGraphError:
            pass
        except RuntimeError as error:
            if "a leaf Variable that requires grad" not in str(error):
                raise
    return once(Recording.INPUTS)


def _recorded(value: Any) -> Any:
    """A copy of a tensor with a graph; the tensor itself is left alone."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().requires_grad_().clone()
    return value


def _forward(
    forward_func: Callable[..., Any],
    recorders: Sequence[LayerRecorder],
    output: Any,
    device_ids: list[int] | None,
) -> Forward:
    for recorder in recorders:
        _check_run(recorder)
    saved = {recorder.layer: recorder.tensors for recorder in recorders}
    ids = _captum.extract_device_ids(forward_func, saved, device_ids)
    devices = _captum.sort_key_list(list(recorders[0].tensors), ids)
    return Forward(
        output,
        [recorder.tensors[device] for recorder in recorders for device in devices],
        len(devices),
        any(recorder.hooked for recorder in recorders),
    )


def _check_run(recorder: LayerRecorder) -> None:
    name = type(recorder.layer).__name__
    if not recorder.tensors:
        raise RuntimeError(
            f"{name}: expected a layer that the forward runs through, got no run of it; check that the layer belongs to "
            f"forward_func and is used for these inputs (a compiled model runs no hooks: pass the original one)"
        )
    runs = max(recorder.runs.values())
    if runs > 1:
        warn_user(
            f"{name}: the layer runs {runs} times in one forward; its last run is explained, as in Captum. To explain another "
            f"run give each its own module",
        )
    for tensor in (tensor for tensors in recorder.tensors.values() for tensor in tensors):
        if tensor.dim() < 2:
            raise ValueError(
                f"{name}: expected activations (N, C, *spatial), got {tuple(tensor.shape)}; choose another layer"
            )
