"""Sums over the ranks of a process group, for data-parallel training.

Without a process group, or in a group of one rank, nothing is sent. Tensors stay on their device, and sums do not synchronize
with the host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Ranks:
    """The ranks that something is summed over. Copies share the group.

    Args:
        sync: True for all ranks, False for this rank alone, or the group over which gradients are averaged.

    Raises:
        TypeError: ``sync`` is of another kind.
    """

    def __init__(self, sync: bool | ProcessGroup) -> None:
        if not isinstance(sync, bool) and not _is_group(sync):
            remedy = "pass mesh.get_group()" if hasattr(sync, "get_group") else "pass True for all ranks"
            raise TypeError(
                f"sync: expected True, False or a ProcessGroup, got {type(sync).__name__}; {remedy}"
            )
        self.sync = sync

    @property
    def group(self) -> ProcessGroup | None:
        """The group; None if this rank is alone in it."""
        return group_of(self.sync)

    # A process group holds connections, so it can be neither copied nor pickled.
    def __deepcopy__(self, memo: dict[int, Any]) -> Ranks:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if not isinstance(self.sync, bool):
            raise TypeError(
                "sync: expected True or False for pickling, got a ProcessGroup of this process; save the state_dict()"
            )
        return Ranks, (self.sync,)


def is_distributed() -> bool:
    """Return True if this process has joined a process group."""
    return distributed.is_available() and distributed.is_initialized()


def group_of(sync: bool | ProcessGroup) -> ProcessGroup | None:
    """Return the group to sum over; None without a process group, outside of the given one, or with ``sync=False``."""
    if sync is False or not is_distributed():
        return None
    group: ProcessGroup | None = distributed.group.WORLD if sync is True else sync
    return group if distributed.get_world_size(group) > 1 else None


def sum_over_ranks(tensor: Tensor, group: ProcessGroup) -> Tensor:
    r"""Return Σ_r x_r over the ranks, with a gradient for an objective that all ranks compute alike.

    Let L be a function of the sum S = Σ_r x_r. All ranks hold the same S and compute the same L. Its gradient is
    :math:`\sum_r J_r^\top L'(S)`, with :math:`J_r` the derivative of :math:`x_r`. DistributedDataParallel and FSDP *average* the
    gradients of the W ranks, so rank r has to contribute :math:`W J_r^\top L'(S)`. Every rank computes :math:`L'(S)` by itself,
    so **the backward multiplies by W and sends nothing**: it cannot hang or interfere with the communication of gradient
    buckets, and one rank may take a gradient alone. If gradients are summed instead of averaged, they are W times too large.

    Args:
        tensor: a tensor of the same shape and type on all ranks, all of which have to call this.
        group: the group, from :func:`group_of`.

    Returns:
        The sum, bitwise equal on all ranks.
    """
    scaled = tensor * distributed.get_world_size(group)
    # The difference is zero. Unlike an autograd.Function it compiles, and has second derivatives.
    return total_over_ranks(tensor, group) + (scaled - scaled.detach())


def total_over_ranks(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """Return Σ_r x_r over the ranks as a new tensor without a gradient."""
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total, group=group)
    return total


def gathered(numbers: list[int], group: ProcessGroup) -> list[list[int]]:
    """Return the integers of all ranks, the same number on each. Synchronizes the ranks, so not for a training step."""
    own = torch.tensor(numbers, device=sending_device(torch.device("cpu"), group))
    every = [torch.empty_like(own) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(every, own, group=group)
    return [each.tolist() for each in every]


def sending_device(device: torch.device, group: ProcessGroup) -> torch.device:
    """Return the device that a tensor has to be on for sending: its own, unless the backend requires an accelerator (NCCL)."""
    backend = distributed.get_backend(group)
    if device.type != "cpu" or backend not in ("nccl", "xccl", "hccl", "rccl"):
        return device
    accelerator = torch.accelerator.current_accelerator()
    assert accelerator is not None
    return torch.device(accelerator.type, torch.accelerator.current_device_index())


def _is_group(sync: object) -> bool:
    return distributed.is_available() and isinstance(sync, distributed.ProcessGroup)
