"""Run a forward of an attribution's own, at the least cost that gives the right gradients, and leave everything as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import get_ident
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.jit import ScriptModule
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.utils import parametrize

from ..warn import warn_user
from . import _captum
from .compiled import eager_stance
from .observer import ForwardObserver, Tensors, TrunkNeedsGraphError, mixes_samples, own_forward
from .state import BufferCopies, recordable, rng_kept, training_lock

# Without recording, torch's transformer modules take another path, which zeroes padded positions; DataParallel's workers have
# a grad mode each.
_NEED_GRAD_MODE = (nn.DataParallel, nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)
_COMPILED = (ScriptModule, fx.GraphModule)


class ModelFacts(NamedTuple):
    """What one walk over a model's modules tells about a forward of it."""

    modules: frozenset[nn.Module]  #: empty if the model is a function, whose modules are hidden
    training: tuple[nn.Module, ...]  #: those in training mode
    norms: tuple[nn.Module, ...]  #: the BatchNorms that mix samples
    needs_graph: bool  #: a trunk without a graph would compute something else
    may_be_compiled: bool

    @classmethod
    def of(cls, model: Callable[..., Any]) -> ModelFacts:
        """Look at every module once."""
        # Cached parametrizations would keep tensors without a graph.
        cached = bool(parametrize._cache_enabled)
        if not isinstance(model, nn.Module):
            return cls(frozenset(), (), (), cached, True)
        modules = frozenset(_all_modules(model))
        # There are far fewer types than modules, and each call of a small model counts.
        types = {type(module) for module in modules}
        has_norms = any(issubclass(each, _BatchNorm) for each in types)
        return cls(
            modules,
            tuple(module for module in modules if module.training),
            tuple(filter(mixes_samples, modules)) if has_norms else (),
            cached or any(issubclass(each, _NEED_GRAD_MODE) for each in types),
            any(issubclass(each, _COMPILED) or each.__name__ == "OptimizedModule" for each in types)
            or any(m._compiled_call_impl is not None or "forward" in m.__dict__ for m in modules),
        )

    def hides(self, layers: Sequence[nn.Module]) -> bool:
        """Return True if modules may run that the walk did not see."""
        return not self.modules or not self.modules.issuperset(layers)


def _all_modules(root: nn.Module) -> set[nn.Module]:
    """Return ``set(root.modules())`` without the names, which take most of its time."""
    found, waiting = {root}, [root]
    while waiting:
        for module in waiting.pop()._modules.values():
            if module is not None and module not in found:
                found.add(module)
                waiting.append(module)
    return found


class Forward(NamedTuple):
    """A forward that has run, with a graph from the layers on."""

    output: Any  #: what the model returned
    #: For each layer and, where DataParallel spread it, for each device in turn: its tensors, (N, C, *spatial).
    rows: list[Tensors]
    devices: int  #: how many rows belong to one layer
    hooked: bool  #: a user's hook on an activation may change its gradient

    @property
    def tensors(self) -> list[Tensor]:
        """Return all tensors of all rows: what gradients are taken with respect to."""
        return [tensor for row in self.rows for tensor in row]

    def gathered(self, flat: Sequence[Tensor]) -> list[Tensors]:
        """Turn one tensor for each of :attr:`tensors` into one tuple for each layer, joined over the devices."""
        remaining = iter(flat)
        rows = [tuple(next(remaining) for _ in row) for row in self.rows]
        starts = range(0, len(rows), self.devices)
        return [_captum.reduce_list(rows[start : start + self.devices]) for start in starts]


@contextmanager
def run_forward(
    model: Callable[..., Any],
    layers: Sequence[nn.Module],
    inputs: tuple[Any, ...],
    additional_forward_args: tuple[Any, ...] = (),
    *,
    trunk_free: bool = False,
    from_inputs: bool = False,
    at_input: bool = False,
    second_order: bool = False,
    keep_rng: bool = True,
    device_ids: list[int] | None = None,
    facts: ModelFacts | None = None,
) -> Iterator[Forward]:
    """Run the model once, and hold its graph for the block.

    After the block, also when it raises, hooks, marks, buffers and random state are as they were.

    Args:
        model: the model, or any callable that runs it.
        layers: the layers whose activations are wanted.
        inputs: passed to the model.
        additional_forward_args: passed to the model after the inputs.
        trunk_free: record from the first layer on only.
        from_inputs: record from copies of the inputs on. Otherwise a frozen trunk has no graph.
        at_input: take what the layers receive instead of what they return.
        second_order: gradients are to be differentiated again: attention uses its math backend from the layers on.
        keep_rng: put the random state back where the forward may have drawn.
        device_ids: see ``captum.attr.LayerGradCam``.
        facts: of the model, if they are known already.

    Raises:
        RuntimeError: a layer does not run.
        TrunkNeedsGraphError: without ``from_inputs`` a path from a layer to the output would be missed.
    """
    facts = facts or ModelFacts.of(model)
    inputs = tuple(recordable(value, copy=from_inputs) for value in inputs)
    additional_forward_args = tuple(map(recordable, additional_forward_args))
    observer = ForwardObserver(
        layers,
        model,
        own=True,
        trunk_free=not from_inputs,
        # Of several layers one may be inside of another, or before it.
        drop_inner=trunk_free and len(layers) == 1 and not facts.may_be_compiled,
        at_input=at_input,
        second_order=second_order,
        norms=facts.norms,
    )
    tensors = [value for value in (*inputs, *additional_forward_args) if isinstance(value, Tensor)]
    with ExitStack() as stack:
        stack.enter_context(own_forward())
        stack.enter_context(left_as_it_was(facts, tensors, layers, observer, keep_rng=keep_rng))
        if facts.may_be_compiled:
            stack.enter_context(eager_stance())
        stack.callback(observer.release)
        with observer, torch.set_grad_enabled(not trunk_free):
            output = _captum.run_forward(model, inputs, None, additional_forward_args)
            if not torch.is_grad_enabled():
                raise TrunkNeedsGraphError("a grad mode of the model's own ended after the layer")
        if trunk_free and observer.rewritten:
            raise TrunkNeedsGraphError("a base of the layer's output was changed in place")
        for layer, runs in zip(layers, observer.runs, strict=True):
            _check_runs(type(layer).__name__, runs)
        saved = dict(zip(layers, observer.activations, strict=True))
        devices: list[Any] = []
        if layers:
            ids = _captum.extract_device_ids(model, saved, device_ids)
            devices = _captum.sort_key_list(list(observer.activations[0]), ids)
        rows = [by_device[device] for by_device in observer.activations for device in devices]
        _check_shapes(layers, observer.activations)
        yield Forward(output, rows, len(devices), observer.hooked)


class Attempt:
    """One try at a forward and at what is done with its graph; see :func:`attempts`."""

    def __init__(self, model: Callable[..., Any], layers: Sequence[nn.Module], **options: Any) -> None:
        self._model, self._layers, self._options = model, layers, options
        self._stack = ExitStack()
        self._inputs: tuple[Any, ...] = ()
        self._versions: list[int] = []
        self.failed = False

    @property
    def from_inputs(self) -> bool:
        """True if everything is recorded."""
        return bool(self._options["from_inputs"])

    def run(self, inputs: tuple[Any, ...], additional_forward_args: tuple[Any, ...] = ()) -> Forward:
        """Run the model; call it inside the block. See ``run_forward``."""
        self._inputs, self._versions = inputs, _versions(inputs)
        forward = run_forward(self._model, self._layers, inputs, additional_forward_args, **self._options)
        return self._stack.enter_context(forward)

    def __enter__(self) -> Attempt:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._stack.__exit__(kind, error, trace)
        if error is None or self.from_inputs:
            return False
        if isinstance(error, TypeError | ValueError | torch.OutOfMemoryError) or not isinstance(
            error, Exception
        ):
            return False
        # Where the forward changes its inputs in place another one would not see the same.
        self.failed = self._versions == _versions(self._inputs)
        return self.failed


def attempts(
    model: Callable[..., Any],
    layers: Sequence[nn.Module],
    *,
    from_inputs: bool = False,
    at_input: bool = False,
    second_order: bool = False,
    keep_rng: bool = True,
    device_ids: list[int] | None = None,
) -> Iterator[Attempt]:
    """Yield a forward that records as little as possible and, if that fails, one that records everything.

    Gradients are needed from the layer on, so what comes before it, the trunk, runs without a graph; for ``second_order`` the
    model is recorded as its parameters ask for. That fails, for example, if the layer returns what it was given, which may have
    been used before, or if the model ends a grad mode of its own after the layer. What DataParallel, torch's own transformer
    modules, and a layer's input need is recorded from the start. ::

        for attempt in attempts(model, layers):
            with attempt:
                forward = attempt.run(inputs)
                result = use(forward)

    The second attempt draws the same random numbers. A ``TypeError`` or ``ValueError`` is raised at once.

    Args:
        model: see ``run_forward``, as the others.
        layers: the layers whose activations are wanted.
        from_inputs: begin with the second attempt.
        at_input: take what the layers receive; begins with the second attempt.
        second_order: gradients are to be differentiated again.
        keep_rng: put the random state back.
        device_ids: see ``captum.attr.LayerGradCam``; begins with the second attempt.
    """
    facts = ModelFacts.of(model)
    from_inputs = from_inputs or at_input or bool(device_ids) or facts.needs_graph
    for everything in [False, True][from_inputs:]:
        attempt = Attempt(
            model,
            layers,
            trunk_free=not everything and not second_order,
            from_inputs=everything,
            at_input=at_input,
            second_order=second_order,
            keep_rng=keep_rng,
            device_ids=device_ids,
            facts=facts,
        )
        yield attempt
        if not attempt.failed:
            return


@contextmanager
def left_as_it_was(
    facts: ModelFacts,
    tensors: Sequence[Tensor],
    layers: Sequence[nn.Module] = (),
    observer: ForwardObserver | None = None,
    *,
    keep_rng: bool = True,
) -> Iterator[None]:
    """Put back buffers and random state after the block. Where modules may be hidden, look at each when it runs.

    A forward that draws nothing leaves the random state alone, since other threads may be drawing. Forwards of models in
    training mode wait for each other, or one would save the buffers that another has changed.

    Args:
        facts: of the model that runs in the block.
        tensors: the inputs; the random state of their devices is kept beside the CPU's.
        layers: the layers that are explained; one that the model does not hold shows that modules are hidden.
        observer: of the forward, told about BatchNorms in hidden modules.
        keep_rng: put the random state back where the forward may have drawn.
    """
    buffers = BufferCopies()
    hidden = facts.hides(layers)
    owner = get_ident()

    def look(module: nn.Module, _: Any) -> None:
        if get_ident() != owner:
            return
        buffers.save(module)
        if observer is None:
            return
        if isinstance(module, _NEED_GRAD_MODE) and not torch.is_grad_enabled():
            raise TrunkNeedsGraphError(f"{type(module).__name__} computes something else without a graph")
        if mixes_samples(module) and module not in facts.modules:
            observer.note_norm(module)

    with ExitStack() as stack:
        if facts.training:
            stack.enter_context(training_lock)
        may_train = hidden or bool(facts.training)
        stack.enter_context(rng_kept(tensors, always=keep_rng and may_train))
        stack.callback(buffers.restore)
        for module in facts.training:
            buffers.save(module)
        if may_train:
            stack.callback(register_module_forward_pre_hook(look).remove)
        yield


def _versions(inputs: Sequence[Any]) -> list[int]:
    return [value._version for value in inputs if isinstance(value, Tensor) and not value.is_inference()]


def _check_runs(name: str, runs: int) -> None:
    if not runs:
        raise RuntimeError(
            f"{name}: expected a layer that the forward runs through, got no run of it; check that the layer belongs to "
            f"forward_func and is used for these inputs (a compiled model runs no hooks: pass the original one)"
        )
    if runs > 1:
        warn_user(
            f"{name}: the layer runs {runs} times in one forward; its last run is explained, as in Captum. To explain another "
            f"run give each its own module",
        )


def _check_shapes(layers: Sequence[nn.Module], activations: Sequence[dict[torch.device, Tensors]]) -> None:
    for layer, by_device in zip(layers, activations, strict=True):
        for tensor in (tensor for tensors in by_device.values() for tensor in tensors):
            if tensor.dim() < 2:
                raise ValueError(
                    f"{type(layer).__name__}: expected activations (N, C, *spatial), got {tuple(tensor.shape)}; choose another "
                    f"layer"
                )
