"""Gradients in the middle of a step of a model that FSDP2 has sharded."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def kept_unsharded(model: object) -> Iterator[None]:
    """What a gradient gathers in here stays gathered until the step's own backward has passed.

    ``fully_shard`` frees a module's gathered parameters once a gradient has passed through it. The gradient that a cam is made
    of passes through the head, and is then differentiated itself, with the parameters that it was computed with: the step's
    backward would begin with them, before any hook of FSDP's gathers them again. Only what this gradient passes is kept, the
    head; the trunk's parameters stay as they are.

    Args:
        model: any; nothing happens where it is not sharded.
    """
    earlier = {module: _reshards(module) for module in _sharded(model)}
    try:
        for module in earlier:
            module.set_reshard_after_backward(False, recurse=False)
        yield
    finally:
        for module, reshards in earlier.items():
            module.set_reshard_after_backward(reshards, recurse=False)


def gathered_again(total: Tensor, model: object) -> None:
    """Gather what :func:`kept_unsharded` has kept once more, where something has freed it before the step's backward begins.

    Any other forward does: of the next part of an accumulated batch, or of an evaluation. So does the backward of a later
    forward, where one ``backward()`` passes several.

    Args:
        total: the tensor that the backward of the kept gradients begins with.
        model: any; nothing happens where it is not sharded.
    """
    kept = [module for module in _sharded(model) if _is_gathered(module)]
    if not kept or not total.requires_grad:
        return

    def gather(_: Tensor) -> None:
        for module in kept:
            module.unshard()  # nothing, where it is gathered

    total.register_hook(gather)


def _sharded(model: object) -> list[Any]:
    # Who has not imported it has sharded nothing, and is spared its import.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None or not isinstance(model, nn.Module):
        return []
    return [module for module in model.modules() if isinstance(module, fsdp.FSDPModule)]


def _groups(module: Any) -> list[Any]:
    """The groups of parameters that are gathered and freed together; a module may have none of its own."""
    state = module._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None) or [getattr(state, "_fsdp_param_group", None)]
    return [group for group in groups if group is not None]


def _reshards(module: Any) -> bool:
    """Whether parameters are freed after a backward: the default, unless the user has chosen otherwise."""
    return all(getattr(group, "reshard_after_backward", True) for group in _groups(module))


def _is_gathered(module: Any) -> bool:
    return any(getattr(group, "is_unsharded", False) for group in _groups(module))
