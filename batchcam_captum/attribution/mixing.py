"""BatchNorm in train mode after the explained layer: then the map of one image depends on the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from .recorder import LayerRecorder
from .survey import mixes
from .warn import warn_user


@contextmanager
def mixing_watched(forward_func: Callable[..., Any], recorders: Sequence[LayerRecorder]) -> Iterator[None]:
    """Warn if a BatchNorm in train mode runs after one of the layers.

    Args:
        forward_func: the model, for the names of its modules.
        recorders: of the explained layers; a layer counts from its first run on.

    Warns:
        UserWarning: names the BatchNorm, and the layer to explain instead.
    """
    owner = get_ident()
    found: list[nn.Module] = []

    def look(module: nn.Module, _: Any) -> None:
        if mixes(module) and get_ident() == owner and any(recorder.tensors for recorder in recorders):
            found.append(module)

    handle = register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()
    if found:
        names = {module: name for name, module in _named_modules(forward_func)}
        first, last = (names.get(module) or type(module).__name__ for module in (found[0], found[-1]))
        warn_user(
            f"{first}: a BatchNorm with batch statistics after the explained layer mixes the samples of a batch, so each map "
            f"depends on the other images, too; explain a layer from {last} on, or switch it to running statistics with eval()"
        )


def _named_modules(forward_func: Callable[..., Any]) -> Iterator[tuple[str, nn.Module]]:
    return forward_func.named_modules() if isinstance(forward_func, nn.Module) else iter(())
