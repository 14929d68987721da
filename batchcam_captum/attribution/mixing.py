"""BatchNorm in train mode after the explained layer: then the map of one image depends on the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ..functional.losses.comparison import MIN_MAP_SIZE
from ..warn import warn_user
from .recorder import LayerRecorder, attributing
from .survey import mixes


def way_out(layer: str | None) -> str:
    """What to do where a BatchNorm mixes the samples.

    Args:
        layer: the first one behind which there is none; None where there is no such layer with places.
    """
    if layer is None:
        return "switch it to running statistics with eval()"
    return (
        f"switch it to running statistics with eval(), or explain a layer from {layer} on, where its maps have at least "
        f"{MIN_MAP_SIZE} x {MIN_MAP_SIZE} places: with small images this takes a stem of stride 1"
    )


@contextmanager
def mixing_watched(forward_func: Callable[..., Any], recorders: Sequence[LayerRecorder]) -> Iterator[None]:
    """Warn if a BatchNorm in train mode runs after one of the layers.

    Args:
        forward_func: the model. Where it is a module, a BatchNorm of another model, as a teacher's, does not count.
        recorders: of the explained layers; a layer counts from its first run on. Forwards that they ignore do not count.

    Warns:
        UserWarning: names the BatchNorm, and the layer to explain instead.
    """
    owner = get_ident()
    found: list[nn.Module] = []
    latest: list[nn.Module] = []
    within_attribution = attributing()  # then this is the attribution's own forward
    own = frozenset(forward_func.modules()) if isinstance(forward_func, nn.Module) else None

    def look(module: nn.Module, _: Any) -> None:
        if get_ident() != owner or attributing() != within_attribution or (own and module not in own):
            return
        latest[:] = [module]
        if mixes(module) and any(recorder.tensors for recorder in recorders):
            found.append(module)

    handle = register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()
    if found:
        names = {module: name for name, module in _named_modules(forward_func)}
        first = names.get(found[0]) or type(found[0]).__name__
        last = _block_of(found[-1], latest[0], names) or type(found[-1]).__name__
        warn_user(
            f"{first}: a BatchNorm with batch statistics after the explained layer mixes the samples of a batch, so each map "
            f"depends on the other images, too; {way_out(last)}"
        )


def _block_of(module: nn.Module, latest: nn.Module, names: dict[nn.Module, str]) -> str | None:
    """The outermost block that ends after this module and before the head: inside of a block a path may lead around."""
    if module not in names:
        return None
    parts, head = names[module].split("."), names.get(latest, "") + "."
    for depth in range(1, len(parts)):
        block = ".".join(parts[:depth])
        if not head.startswith(block + "."):
            return block
    return names[module]


def _named_modules(forward_func: Callable[..., Any]) -> Iterator[tuple[str, nn.Module]]:
    return forward_func.named_modules() if isinstance(forward_func, nn.Module) else iter(())
