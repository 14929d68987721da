"""What a layer receives or returns, remembered by a hook: in a forward of our own, or in one that somebody else runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock, get_ident
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

# Threads that are inside a forward of `attribute()`, which captures ignore.
_attributing: set[int] = set()


@contextmanager
def own_forward() -> Iterator[None]:
    """Mark the forwards of this thread as an attribution's own, so that captures around them do not see them."""
    thread = get_ident()
    outermost = thread not in _attributing
    _attributing.add(thread)
    try:
        yield
    finally:
        if outermost:
            _attributing.discard(thread)


def attributing() -> bool:
    """Whether this thread is inside a forward of an attribution's own."""
    return get_ident() in _attributing


def is_meant(module: nn.Module, owner: int) -> bool:
    """Whether a run of the module is of the forward that somebody watches.

    Args:
        module: which runs now, in this thread.
        owner: the thread of whoever watches. DataParallel runs replicas in threads of its own; every other thread is somebody
            else.

    Returns:
        False in other threads, and in forwards of an attribution's own.
    """
    if get_ident() != owner and not getattr(module, "_is_replica", False):
        return False
    return owner not in _attributing


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


class TrunkNeedsGraphError(RuntimeError):
    """What was computed before the layer's hook ran may depend on what the hook would mark, so it has to be recorded as well."""


def _drop(_: Tensor) -> None:
    return None


def _refuse(_: None) -> NoReturn:
    raise TrunkNeedsGraphError("something made of the layer's output inside the layer is used later on")


class LayerRecorder:
    """Remembers what a layer received or returned, for as long as its hook is attached.

    The hook hands a clone on and keeps the very tensor, so that an in-place operation after the layer does not rewrite what is
    remembered. A tensor without a graph (a frozen trunk) is marked with ``requires_grad_()``, the very tensor again: a detached
    copy would miss the paths around the layer where it is an Identity or its input feeds a residual connection.
    :meth:`release` undoes the marks.

    Args:
        layer: whose forward is watched.
        at_input: remember what the layer received instead of what it returned.
        inside_attribution: see the forwards of ``attribute()`` too.
        once: raise when the layer runs a second time; otherwise the last run counts.
        records: switch recording on for what follows the layer, in this thread, until the caller's own context ends.
        needs_graph: raise :class:`TrunkNeedsGraphError` where a tensor that the layer was given has no graph: it may have been
            used already, and what was made of it then would be missed.
        aliases: shared by the recorders of one forward: which tensor each clone was made of. A layer that receives, or returns,
            another one's clone then remembers the tensor itself, as it does when it is watched alone.
        on_seen: called when the layer has run, before anything after it does.
        inside_dropped: with ``records``, keep nothing of what the layer's own graph would save for its backward, which is not run
            unless something made of the output inside the layer is used later on. Then :class:`TrunkNeedsGraphError` is raised.
    """

    def __init__(
        self,
        layer: nn.Module,
        *,
        at_input: bool = False,
        inside_attribution: bool = False,
        once: bool = False,
        records: bool = False,
        needs_graph: bool = False,
        aliases: dict[int, tuple[Tensor, Tensor]] | None = None,
        on_seen: Callable[[], None] | None = None,
        inside_dropped: bool = False,
    ) -> None:
        self.layer = layer
        self.at_input = at_input
        self.inside_attribution = inside_attribution
        self.once = once
        self.records = records
        self.needs_graph = needs_graph
        self._aliases = aliases
        self._on_seen = on_seen
        self.inside_dropped = inside_dropped
        self._dropping: saved_tensors_hooks | None = None
        self._empty()

    def _empty(self) -> None:
        self.tensors: dict[torch.device, tuple[Tensor, ...]] = {}
        self.is_single = True
        self.versions: list[int] = []
        self.hooked = False
        self.runs: dict[torch.device, int] = {}
        self._marked: list[Tensor] = []
        self._was_recorded = True
        self._handles: list[RemovableHandle] = []
        self._owner = 0
        self._lock = Lock()

    def attach(self) -> None:
        """Forget what was remembered, and watch from now on."""
        self.release()
        self._owner = get_ident()
        if self.at_input:
            self._handles = [self.layer.register_forward_pre_hook(self._see_input)]
        else:
            self._handles = [self.layer.register_forward_hook(self._see_output, with_kwargs=True)]
            if self.records:
                # From the layer's own forward on: it, and hooks of the user's on it, may keep something made of the output.
                self._handles.append(self.layer.register_forward_pre_hook(self._record, prepend=True))

    @property
    def attached(self) -> bool:
        """Whether the hook is in place."""
        return bool(self._handles)

    @property
    def rewritten(self) -> bool:
        """Whether what is remembered has been changed in place since, as a view whose base was."""
        kept = [tensor for tensors in self.tensors.values() for tensor in tensors]
        return len(self.tensors) == 1 and self.versions != [tensor._version for tensor in kept]

    def detach(self) -> None:
        """Take the hook away; what was remembered stays."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def release(self) -> None:
        """Take the hook away, forget every tensor, and undo the marks."""
        self.detach()
        self._keep_again()
        marked, self._marked = self._marked, []
        self.tensors, self.runs = {}, {}
        for tensor in marked:
            tensor.requires_grad_(False)

    def _see_input(self, module: nn.Module, received: tuple[Any, ...]) -> Any:
        return self._see(module, received, is_fresh=False)

    def _see_output(self, module: nn.Module, received: tuple[Any, ...], *named_and_returned: Any) -> Any:
        # Another thread's forward, which torch may call the hook from while it is being removed, and then without `named`.
        if not self._listens(module):
            return None
        named, returned = named_and_returned
        given = {id(leaf) for leaf in tree_leaves((received, named))}
        is_fresh = not any(id(leaf) in given for leaf in tree_leaves(returned))
        return self._see(module, returned, is_fresh=is_fresh)

    def _listens(self, module: nn.Module) -> bool:
        if not self._handles:  # the hook of a copied model, which goes with the copy's first run
            _take_away(self, module)
            return False
        if self.inside_attribution:  # the forward is an attribution's own itself
            return get_ident() == self._owner or getattr(module, "_is_replica", False)
        return is_meant(module, self._owner)

    def _record(self, module: nn.Module, _: Any) -> None:
        if self._listens(module):
            self._was_recorded = torch.is_grad_enabled()
            torch.set_grad_enabled(True)
            if self.inside_dropped and self._dropping is None:
                self._dropping = saved_tensors_hooks(_drop, _refuse)
                self._dropping.__enter__()

    def _keep_again(self) -> None:
        dropping, self._dropping = self._dropping, None
        if dropping is not None:
            dropping.__exit__()

    def _see(self, module: nn.Module, value: Any, *, is_fresh: bool) -> Any:
        if not self._listens(module):
            return None
        self._keep_again()
        entries = list(value) if isinstance(value, tuple | list) else [value]
        kept = tuple(self._original(entry) for entry in entries if _is_floating(entry))
        if not kept:
            self._complain_of(value)
        if any(tensor.is_inference() for tensor in kept):
            raise RuntimeError(
                f"{type(module).__name__}: expected a forward that records a graph, got one under torch.inference_mode(); run "
                f"the forward outside of it (torch.no_grad() does not help either)"
            )
        recorded = self._was_recorded and all(tensor.requires_grad for tensor in kept)
        if self.needs_graph and not is_fresh and not recorded:
            raise TrunkNeedsGraphError(type(module).__name__)
        device = kept[0].device
        with self._lock:
            self.runs[device] = self.runs.get(device, 0) + 1
            if self.once and self.runs[device] > 1:
                raise RuntimeError(
                    f"{type(module).__name__}: expected one run of the layer inside the with block, got a second one; open a "
                    f"block for each forward, and choose a layer that the model runs once"
                )
            for tensor in kept:
                if not tensor.requires_grad:
                    tensor.requires_grad_()
                    self._marked.append(tensor)
            self.tensors[device] = kept
            self.versions = [tensor._version for tensor in kept]
            self.is_single = len(kept) == 1
        # Recorded even where the layer is not, so that a head can be differentiated after a trunk that runs under no_grad.
        with torch.enable_grad():
            clones = [tensor.clone() for tensor in kept]
        if self._aliases is not None:
            self._aliases.update(
                (id(clone), (clone, tensor)) for clone, tensor in zip(clones, kept, strict=True)
            )
        remaining = iter(clones)
        handed_on = [next(remaining) if _is_floating(entry) else entry for entry in entries]
        if self.records:
            torch.set_grad_enabled(True)
        if self._on_seen is not None:
            self._on_seen()
        if not isinstance(value, tuple | list):
            return handed_on[0]
        if hasattr(value, "_fields"):
            return type(value)(*handed_on)
        return type(value)(handed_on)

    def _original(self, tensor: Tensor) -> Tensor:
        """The tensor that another recorder's clone was made of, as long as nothing has changed the clone in place."""
        if self._aliases is None or id(tensor) not in self._aliases:
            return tensor
        clone, original = self._aliases[id(tensor)]
        return original if clone._version == 0 else tensor

    def _complain_of(self, value: Any) -> NoReturn:
        if self.at_input:
            raise TypeError(
                f"{type(self.layer).__name__}: expected a floating tensor among the layer's positional arguments, got none; "
                f"attribute to the layer's output instead"
            )
        raise TypeError(
            f"{type(self.layer).__name__}: expected a layer that returns a floating tensor, or a tuple or list of them, got "
            f"{type(value).__name__}; choose a layer inside it"
        )

    # A model may be copied (EMA, SWA) or saved while a recorder watches one of its layers. The copy's recorder is empty and
    # watches nothing: activations belong to one forward of one model.
    def __getstate__(self) -> dict[str, Any]:
        return {
            "at_input": self.at_input,
            "inside_attribution": self.inside_attribution,
            "once": self.once,
            "records": False,
            "inside_dropped": False,
            "needs_graph": False,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.layer = nn.Identity()
        self._aliases = None
        self._on_seen = None
        self._dropping = None
        self._empty()


def _take_away(owner: object, module: nn.Module) -> None:
    """Remove the owner's hooks where it has no handles to do so."""
    for hooks, with_kwargs in (
        (module._forward_hooks, module._forward_hooks_with_kwargs),
        (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
    ):
        for key, hook in list(hooks.items()):
            if getattr(hook, "__self__", None) is owner:
                hooks.pop(key, None)
                with_kwargs.pop(key, None)


def shape_of_input(received: Sequence[Any]) -> tuple[int, ...] | None:
    """The shape of the first input that has places, (N, C, *spatial); of the first tensor where none has."""
    shapes = [tuple(value.shape) for value in received if isinstance(value, Tensor)]
    return next((shape for shape in shapes if len(shape) > 2), shapes[0] if shapes else None)


class InputShape:
    """Notes the shape of what a model receives, while its hook is attached; see :func:`shape_of_input` and :func:`is_meant`."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] | None = None
        self._owner = 0
        self._handle: RemovableHandle | None = None

    def attach(self, model: nn.Module) -> None:
        """Forget what was noted, and watch from now on."""
        self.shape = None
        self._owner = get_ident()
        self._handle = model.register_forward_pre_hook(self._see)

    def detach(self) -> None:
        """Take the hook away; the shape stays."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _see(self, module: nn.Module, received: tuple[Any, ...]) -> None:
        if self._handle is None:
            _take_away(self, module)
        elif is_meant(module, self._owner):
            self.shape = shape_of_input(received)

    # The copy of a model that is watched watches nothing.
    def __deepcopy__(self, memo: dict[int, Any]) -> InputShape:
        return InputShape()
