"""Observe one forward, whoever runs it: what the layers return, and what the model takes and returns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from threading import Lock, get_ident
from types import TracebackType
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from ..functional.math_attention import MathAttention
from ..warn import warn_user
from .layers import module_names

Tensors = tuple[Tensor, ...]

# Threads that run a forward for an attribution. Observers of somebody else's forward ignore those.
_attributing: set[int] = set()


class TrunkNeedsGraphError(RuntimeError):
    """A forward whose trunk has no graph would miss a path from the layer to the scores, or cannot run at all."""


@contextmanager
def own_forward() -> Iterator[None]:
    """Mark the forwards of this thread as an attribution's own."""
    thread = get_ident()
    outermost = thread not in _attributing
    _attributing.add(thread)
    try:
        yield
    finally:
        if outermost:
            _attributing.discard(thread)


def mixes_samples(module: nn.Module) -> bool:
    """Return True for a BatchNorm that uses the statistics of the batch."""
    return isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)


def input_shape(arguments: Sequence[Any]) -> tuple[int, ...] | None:
    """Return the shape of the first tensor with spatial dimensions, or of the first tensor if there is none."""
    shapes = [tuple(value.shape) for value in arguments if isinstance(value, Tensor)]
    return next((shape for shape in shapes if len(shape) > 2), shapes[0] if shapes else None)


class ForwardObserver:
    """Remember what layers return in the forward inside a ``with`` block.

    The hook of a layer keeps the very tensor that the layer returns and hands on a clone, so an in-place operation after the
    layer does not change what is kept. A tensor without a graph (of a frozen trunk, or of a trunk that is not recorded) is
    marked with ``requires_grad_()``: the very tensor, since a detached copy would miss the paths around a layer that returns its
    input, or whose input feeds a residual connection. :meth:`release` undoes the marks.

    The hooks are gone after the block. They ignore other threads, except the workers of DataParallel, and the forwards that
    attributions run, unless ``own=True``. A copy of the observer, as ``deepcopy(model)`` inside the block makes one, is closed
    and empty.

    Args:
        layers: the layers to observe.
        model: the model, if it is a module: its input shape and its output are noted, unless ``own=True``.
        own: an attribution runs the forward: its last run of a layer counts, and recording is on after the layer. Otherwise a
            second run of a layer raises.
        trunk_free: nothing before the layers has a graph. Raise ``TrunkNeedsGraphError`` where that would lose a path.
        drop_inner: save nothing for the backward of the layer's own operators, which is not run.
        at_input: remember what the layers receive instead of what they return.
        second_order: use an attention backend with a second derivative from the first layer on.
        norms: BatchNorms that mix samples. If one of them runs after a layer, warn when the block ends.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module] = (),
        model: object = None,
        *,
        own: bool = False,
        trunk_free: bool = False,
        drop_inner: bool = False,
        at_input: bool = False,
        second_order: bool = False,
        norms: Sequence[nn.Module] = (),
    ) -> None:
        self.layers = list(layers)
        self.own, self.trunk_free, self.at_input = own, trunk_free, at_input
        self.drop_inner = drop_inner
        #: For each layer what it returned, on each device.
        self.activations: list[dict[torch.device, Tensors]] = [{} for _ in layers]
        #: For each layer how often it ran on a device.
        self.runs = [0 for _ in layers]
        self.input_shape: tuple[int, ...] | None = None
        self.output: Any = None
        #: True if a hook on an activation, or on the clone that was handed on, may change its gradient.
        self.hooked = False
        self._model = model if isinstance(model, nn.Module) else None
        self._norms = list(norms)
        self._mixing: list[nn.Module] = []
        self._attention = MathAttention() if second_order else None
        self._handles: list[RemovableHandle] = []
        self._owner = 0
        self._lock = Lock()
        self._marked: list[Tensor] = []
        self._clones: dict[int, tuple[Tensor, Tensor]] = {}  # id of the clone -> clone, tensor
        self._versions: list[tuple[Tensor, int]] = []
        self._dropping: saved_tensors_hooks | None = None
        self._was_recording = True

    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        return type(self), ()

    @property
    def is_open(self) -> bool:
        """True inside the block."""
        return bool(self._handles)

    @property
    def layer_has_run(self) -> bool:
        """True as soon as one of the layers has returned."""
        return any(self.activations)

    @property
    def rewritten(self) -> bool:
        """True if an activation was changed in place after the layer, as a view is through its base."""
        return any(tensor._version != version for tensor, version in self._versions)

    def __enter__(self) -> Self:
        self._owner = get_ident()
        try:
            self._add_hooks()
        except RuntimeError as error:
            self.close()
            raise RuntimeError(
                "layer: expected a model that takes hooks, got one of TorchScript; use the model that it was made of"
            ) from error
        return self

    def _add_hooks(self) -> None:
        if self._model is not None and not self.own:
            self._handles.append(self._model.register_forward_pre_hook(self._before_model, with_kwargs=True))
            self._handles.append(self._model.register_forward_hook(self._after_model))
        for position, layer in enumerate(self.layers):
            if self.at_input:
                hook = partial(self._layer_received, position)
                self._handles.append(layer.register_forward_pre_hook(hook))
                continue
            hook = partial(self._layer_returned, position)
            self._handles.append(layer.register_forward_hook(hook, with_kwargs=True))
            if self.own:
                # From the layer's own forward on: the layer, or a user's hook on it, may keep something made of its output.
                self._handles.append(layer.register_forward_pre_hook(self._before_layer, prepend=True))
        for norm in self._norms:
            self._handles.append(norm.register_forward_pre_hook(self.note_norm))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if kind is not None:
            self.release()
        elif self._mixing:
            warn_user(self._mixing_message())

    def close(self) -> None:
        """Remove the hooks; what was observed stays."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._stop_dropping()
        if self._attention is not None:
            self._attention.stop()
        self.hooked |= any(tensor._backward_hooks for pair in self._clones.values() for tensor in pair)
        self._clones.clear()

    def release(self) -> None:
        """Remove the hooks, forget every tensor, and undo the marks."""
        self.close()
        for tensor in self._marked:
            tensor.requires_grad_(False)
        self._marked.clear()
        self._versions.clear()
        self.activations = [{} for _ in self.layers]
        self.output = None

    def note_norm(self, norm: nn.Module, _: Any = None) -> None:
        """Note that a BatchNorm that mixes samples runs now."""
        if self._is_observed(norm) and self.layer_has_run:
            self._mixing.append(norm)

    def _is_observed(self, module: nn.Module) -> bool:
        """Return True if this run of the module belongs to the observed forward."""
        if not self._handles:
            self._shed_by(module)
            return False
        if get_ident() != self._owner and not getattr(module, "_is_replica", False):
            return False
        return self.own or self._owner not in _attributing

    def _shed_by(self, module: nn.Module) -> None:
        """Remove the hooks that a copied model has of this closed observer."""
        for hooks, with_kwargs in (
            (module._forward_hooks, module._forward_hooks_with_kwargs),
            (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
        ):
            for key, hook in list(hooks.items()):
                if getattr(getattr(hook, "func", hook), "__self__", None) is self:
                    hooks.pop(key, None)
                    with_kwargs.pop(key, None)

    def _before_model(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._is_observed(model):
            self.input_shape = input_shape(args)

    def _after_model(self, model: nn.Module, _: Any, output: Any) -> None:
        if self.layer_has_run and self._is_observed(model):
            self.output = output

    def _before_layer(self, layer: nn.Module, _: Any) -> None:
        if not self._is_observed(layer):
            return
        self._was_recording = torch.is_grad_enabled()
        torch.set_grad_enabled(True)
        if self.drop_inner and self._dropping is None:
            self._dropping = saved_tensors_hooks(_drop, _refuse)
            self._dropping.__enter__()

    def _stop_dropping(self) -> None:
        dropping, self._dropping = self._dropping, None
        if dropping is not None:
            dropping.__exit__()

    def _layer_received(self, position: int, layer: nn.Module, args: tuple[Any, ...]) -> Any:
        return self._keep(position, layer, args, is_fresh=False) if self._is_observed(layer) else None

    # A hook that another thread is removing may be called without the keyword arguments.
    def _layer_returned(
        self, position: int, layer: nn.Module, args: tuple[Any, ...], *kwargs_and_output: Any
    ) -> Any:
        if not self._is_observed(layer):
            return None
        self._stop_dropping()
        kwargs, output = kwargs_and_output
        received = {id(leaf) for leaf in tree_leaves((args, kwargs))}
        is_fresh = not any(id(leaf) in received for leaf in tree_leaves(output))
        return self._keep(position, layer, output, is_fresh=is_fresh)

    def _keep(self, position: int, layer: nn.Module, value: Any, *, is_fresh: bool) -> Any:
        """Keep the floating tensors of a value, and return the value with clones instead of them."""
        entries = list(value) if isinstance(value, tuple | list) else [value]
        kept = tuple(self._original(entry) for entry in entries if _is_floating(entry))
        self._check_kept(layer, value, kept)
        recorded = self._was_recording and all(tensor.requires_grad for tensor in kept)
        if self.trunk_free and not is_fresh and not recorded:
            raise TrunkNeedsGraphError(f"{type(layer).__name__} returns what it was given")
        with self._lock:
            self._count_run(position, layer, kept)
            for tensor in kept:
                if not tensor.requires_grad:
                    tensor.requires_grad_()
                    self._marked.append(tensor)
            self._versions += [(tensor, tensor._version) for tensor in kept]
        # Recorded also where the layer is not, so that a head after a trunk under no_grad can be differentiated.
        with torch.enable_grad():
            clones = [tensor.clone() for tensor in kept]
        self._clones.update((id(clone), (clone, tensor)) for clone, tensor in zip(clones, kept, strict=True))
        if self.own:
            torch.set_grad_enabled(True)
        if self._attention is not None:
            self._attention.start()
        remaining = iter(clones)
        handed_on = [next(remaining) if _is_floating(entry) else entry for entry in entries]
        if not isinstance(value, tuple | list):
            return handed_on[0]
        return type(value)(*handed_on) if hasattr(value, "_fields") else type(value)(handed_on)

    def _count_run(self, position: int, layer: nn.Module, kept: Tensors) -> None:
        device = kept[0].device
        again = device in self.activations[position]
        if again and not self.own:
            raise RuntimeError(
                f"{type(layer).__name__}: expected one run of the layer inside the with block, got a second one; use one block "
                f"for each forward, and a layer that the model runs once"
            )
        self.runs[position] = self.runs[position] + 1 if again else 1
        if again:  # the last run counts
            earlier = self.activations[position][device]
            self._versions = [pair for pair in self._versions if all(pair[0] is not t for t in earlier)]
        self.activations[position][device] = kept

    def _original(self, tensor: Tensor) -> Tensor:
        """Return the tensor that the hook of another layer handed on as this clone, unless the clone was changed in place."""
        if id(tensor) not in self._clones:
            return tensor
        clone, original = self._clones[id(tensor)]
        return original if clone._version == 0 else tensor

    def _check_kept(self, layer: nn.Module, value: Any, kept: Tensors) -> None:
        name = type(layer).__name__
        if not kept and self.at_input:
            raise TypeError(
                f"{name}: expected a floating tensor among the layer's positional arguments, got none; attribute to the layer's "
                f"output instead"
            )
        if not kept:
            raise TypeError(
                f"{name}: expected a layer that returns a floating tensor, or a tuple or list of them, got "
                f"{type(value).__name__}; choose a layer inside it"
            )
        if any(tensor.is_inference() for tensor in kept):
            raise RuntimeError(
                f"{name}: expected a forward that records a graph, got one under torch.inference_mode(); run the forward outside "
                f"of it (torch.no_grad() does not help either)"
            )

    def _mixing_message(self) -> str:
        names = {} if self._model is None else module_names(self._model)
        first, last = (names.get(norm) or type(norm).__name__ for norm in (self._mixing[0], self._mixing[-1]))
        head = list(names.values())[-1] if names else ""
        parts = last.split(".")
        # Inside of a block a path may lead around a layer, so name the outermost block that does not hold the head as well.
        blocks = [".".join(parts[:depth]) for depth in range(1, len(parts))]
        block = next((block for block in blocks if not f"{head}.".startswith(f"{block}.")), last)
        return (
            f"{first}: a BatchNorm with batch statistics after the explained layer mixes the samples of a batch, so each map "
            f"depends on the other images, too; {mixing_remedy(block)}"
        )


def mixing_remedy(layer: str | None) -> str:
    """Say what to do about a BatchNorm that mixes samples; ``layer`` is the first one without such a norm after it, if any."""
    if layer is None:
        return "switch it to running statistics with eval()"
    return (
        f"switch it to running statistics with eval(), or explain a layer from {layer} on, where its maps have at least 4 x 4 "
        f"places: with small images this takes a stem of stride 1"
    )


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _drop(_: Tensor) -> None:
    return None


def _refuse(_: None) -> NoReturn:
    raise TrunkNeedsGraphError("something made of the layer's output inside the layer is used later on")
