"""Gradients in the middle of a step of a model that FSDP2 has sharded."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


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


def _sharded(model: object) -> list[Any]:
    # Who has not imported it has sharded nothing, and is spared its import.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None or not isinstance(model, nn.Module):
        return []
    return [module for module in model.modules() if isinstance(module, fsdp.FSDPModule)]


def _reshards(module: Any) -> bool:
    """Whether parameters are freed after a backward: the default, unless the user has chosen otherwise."""
    state = module._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None) or [getattr(state, "_fsdp_param_group", None)]
    return all(getattr(group, "reshard_after_backward", True) for group in groups)
