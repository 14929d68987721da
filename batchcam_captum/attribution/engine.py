"""One forward and one ``torch.autograd.grad``: activations and gradients of a whole batch, at one layer or at several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..functional import activation_gradients
from . import _captum
from .capture import LayerRecorder, TrunkNeedsGraphError, own_forward
from .mixing import batch_norm_may_mix, mixing_watched
from .state import recordable, state_kept
from .warn import warn_user

Tensors = tuple[Tensor, ...]


class LayerGradients(NamedTuple):
    """What a cam is made of."""

    activations: list[Tensors]  #: for each layer its tensors, (N, C, *spatial)
    gradients: list[Tensors]  #: of the same shapes
    output: Tensor  #: what the model returned


@contextmanager
def own_run(
    forward_func: Callable[..., Any],
    layers: Sequence[nn.Module],
    inputs: tuple[Any, ...],
    additional_forward_args: tuple[Any, ...] = (),
    *,
    recorded: bool,
    at_input: bool = False,
    once: bool = False,
) -> Iterator[tuple[list[LayerRecorder], Any]]:
    """Run the model in a forward of our own, and give what the layers did and what it returned.

    Afterwards, also when the body raises, hooks, marks, buffers and random state are as they were.

    Args:
        forward_func: see :func:`layer_gradients`.
        layers: see :func:`layer_gradients`.
        inputs: see :func:`layer_gradients`.
        additional_forward_args: see :func:`layer_gradients`.
        recorded: record from the start, or from the first of the layers on.
        at_input: see :func:`layer_gradients`.
        once: raise when a layer runs a second time.
    """
    tensors = [value for value in (*inputs, *additional_forward_args) if isinstance(value, Tensor)]
    aliases: dict[int, tuple[Tensor, Tensor]] = {}
    recorders = [
        LayerRecorder(
            layer,
            at_input=at_input,
            inside_attribution=True,
            once=once,
            records=True,
            trunk_unrecorded=not recorded,
            aliases=aliases,
        )
        for layer in layers
    ]
    with ExitStack() as stack:
        stack.enter_context(state_kept(forward_func, layers, tensors))
        stack.enter_context(own_forward())
        for recorder in recorders:
            stack.callback(recorder.release)
            recorder.attach()
        with torch.set_grad_enabled(recorded), ExitStack() as watch:
            if batch_norm_may_mix(forward_func):
                watch.enter_context(mixing_watched(forward_func, recorders))
            output = _captum.run_forward(forward_func, inputs, None, additional_forward_args)
            if not torch.is_grad_enabled():
                raise TrunkNeedsGraphError("a grad mode of the model's own ended after the layer")
        for recorder in recorders:
            recorder.detach()
        aliases.clear()
        yield recorders, output


def layer_gradients(
    forward_func: Callable[..., Any],
    layers: Sequence[nn.Module],
    inputs: tuple[Any, ...],
    additional_forward_args: tuple[Any, ...],
    select: Callable[[Any], Tensor],
    *,
    at_input: bool = False,
    device_ids: list[int] | None = None,
    record_trunk: bool = False,
    **grad_kwargs: Any,
) -> tuple[LayerGradients, bool]:
    """Run the model once and differentiate the selected scores with respect to the layers' activations.

    Gradients are needed from the layer on. What comes before it, the trunk, runs without recording: a layer's hook marks its
    very output with ``requires_grad_()`` and switches recording on. Where that does not work (see below), the model is run
    again with everything recorded, from the same state and random numbers.

    Args:
        forward_func: the model, or any callable that runs it.
        layers: whose activations are asked for.
        inputs: its inputs.
        additional_forward_args: further arguments.
        select: the output -> one score a sample, (N,) or (N, 1, …).
        at_input: look at what the layers receive instead of what they return.
        device_ids: see ``captum.attr.LayerGradCam``.
        record_trunk: record from the start; needed if the activations' own graph is.
        grad_kwargs: see :func:`~batchcam_captum.functional.activation_gradients`.

    Returns:
        Activations, gradients and output; and whether the trunk had to be recorded.

    Raises:
        RuntimeError: a layer is not reached, or the scores do not depend on it, also in a recorded forward.

    A second, recorded run happens if the first one raises, if it does not reach a layer, if a layer hands on what it was given
    (which may have been used already), if a grad mode of the model's own ends after the layer, or if the scores do not depend on
    the layer; a third one, with a graph from the inputs on, if a frozen model works in place on the marked tensor. Recorded from
    the start are what a layer receives, a ``forward_func`` that is no module, DataParallel, and models with torch's own
    transformer modules, see :func:`_asks_for_grad_mode`.
    """
    inputs = tuple(map(recordable, inputs))
    additional_forward_args = tuple(map(recordable, additional_forward_args))

    def run(recorded: bool, inputs: tuple[Any, ...] = inputs) -> LayerGradients:
        with own_run(
            forward_func, layers, inputs, additional_forward_args, recorded=recorded, at_input=at_input
        ) as (recorders, output):
            selected = select(output)
            activations, gradients = _differentiate(
                forward_func, recorders, selected, device_ids, grad_kwargs
            )
        return LayerGradients(activations, gradients, output)

    versions = [value._version for value in inputs if isinstance(value, Tensor)]
    if not (record_trunk or at_input or device_ids or _asks_for_grad_mode(forward_func)):
        try:
            return run(recorded=False), False
        except torch.OutOfMemoryError:
            raise
        except Exception:
            if versions != [value._version for value in inputs if isinstance(value, Tensor)]:
                raise  # the forward changes its inputs in place: another one would not see the same
    # Outside of the except block, so that the error of the second run stands alone.
    try:
        return run(recorded=True), True
    except RuntimeError as error:
        if "a leaf Variable that requires grad" not in str(error):
            raise
    # A frozen model changes the marked tensor in place; with a graph from the inputs on it is no leaf.
    return run(recorded=True, inputs=tuple(map(_recorded, inputs))), True


def _asks_for_grad_mode(forward_func: Callable[..., Any]) -> bool:
    """Whether a trunk without recording may compute something else, or leave something behind.

    Transformer modules of torch take another path then, which zeroes padded positions; cached parametrizations would keep
    tensors without a graph; DataParallel's workers have a grad mode each; and what is no module cannot be seen.
    """
    if not isinstance(forward_func, nn.Module) or parametrize._cache_enabled:
        return True
    kinds = (nn.DataParallel, nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)
    return any(isinstance(module, kinds) for module in forward_func.modules())


def _recorded(value: Any) -> Any:
    """A copy of a tensor with a graph; the tensor itself is left alone."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().requires_grad_().clone()
    return value


def _differentiate(
    forward_func: Callable[..., Any],
    recorders: Sequence[LayerRecorder],
    selected: Tensor,
    device_ids: list[int] | None,
    grad_kwargs: dict[str, Any],
) -> tuple[list[Tensors], list[Tensors]]:
    """Activations and gradients of the whole batch; with DataParallel put together from all devices."""
    for recorder in recorders:
        _check_run(recorder)
    saved = {recorder.layer: recorder.tensors for recorder in recorders}
    ids = _captum.extract_device_ids(forward_func, saved, device_ids)
    devices = _captum.sort_key_list(list(recorders[0].tensors), ids)
    rows = [recorder.tensors[device] for recorder in recorders for device in devices]
    flat = iter(activation_gradients(selected, [tensor for row in rows for tensor in row], **grad_kwargs))
    gradient_rows = [tuple(next(flat) for _ in row) for row in rows]
    width = len(devices)
    starts = range(0, len(rows), width)
    return (
        [_captum.reduce_list(rows[start : start + width]) for start in starts],
        [_captum.reduce_list(gradient_rows[start : start + width]) for start in starts],
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
