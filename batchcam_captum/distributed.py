"""Sums over the ranks of a process group, as data-parallel training needs them.

Without a process group, or in one of a single rank, nothing is sent and nothing changes. Nothing here depends on where the ranks
run, on one machine or on several, nor on the backend: tensors stay on their device, and the host waits for none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Ranks:
    """Which ranks something is summed over. A copy means the same ranks.

    Args:
        sync: True for all ranks, False for none but this one, or the group of those that the gradients are averaged over.

    Raises:
        TypeError: something else.
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
        """The group, if there are others in it than this rank."""
        return group_of(self.sync)

    # A process group itself can be neither copied nor saved: it stands for connections.
    def __deepcopy__(self, memo: dict[int, Any]) -> Ranks:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if not isinstance(self.sync, bool):
            raise TypeError(
                "sync: expected True or False in what is pickled, got a ProcessGroup, which belongs to this process; save the "
                "state_dict()"
            )
        return Ranks, (self.sync,)


def is_distributed() -> bool:
    """Whether this process has joined a process group."""
    return distributed.is_available() and distributed.is_initialized()


def group_of(sync: bool | ProcessGroup) -> ProcessGroup | None:
    """The group to sum over; None where this rank is alone: without a process group, out of this one, or with ``sync=False``."""
    if sync is False or not is_distributed():
        return None
    group: ProcessGroup | None = distributed.group.WORLD if sync is True else sync
    return group if distributed.get_world_size(group) > 1 else None


def sum_over_ranks(tensor: Tensor, group: ProcessGroup) -> Tensor:
    r"""Σ_r x_r over the ranks, with a gradient for an objective that every rank computes alike.

    Let L be a function of the sum S = Σ_r x_r. Every rank holds the same S, so every rank computes the same L. Its gradient is
    :math:`\sum_r J_r^\top L'(S)`, with :math:`J_r` the derivative of :math:`x_r`. DistributedDataParallel and FSDP *average* what
    the W ranks' backwards leave, so that rank r's has to leave :math:`W J_r^\top L'(S)`. :math:`L'(S)` is what arrives at each
    rank anyway: **the backward multiplies by W and sends nothing**. It can therefore not hang, nor get between the sends of a
    gradient's buckets, and a gradient that is taken on one rank alone waits for nobody. Gradients that are summed, and not
    averaged, come out W times too large.

    Args:
        tensor: of the same shape and type on every rank, all of which have to call this.
        group: from :func:`group_of`.

    Returns:
        The sum, the same to the last bit on every rank.
    """
    scaled = tensor * distributed.get_world_size(group)
    # The difference is zero. Unlike an autograd.Function this compiles, and has second derivatives.
    return total_over_ranks(tensor, group) + (scaled - scaled.detach())


def total_over_ranks(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """Σ_r x_r over the ranks, without a gradient, in a tensor of its own."""
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total, group=group)
    return total


def gathered(numbers: list[int], group: ProcessGroup) -> list[list[int]]:
    """Every rank's integers, as many on each. Waits for all of them: not for a training step."""
    own = torch.tensor(numbers, device=sending_device(torch.device("cpu"), group))
    every = [torch.empty_like(own) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(every, own, group=group)
    return [each.tolist() for each in every]


def sending_device(device: torch.device, group: ProcessGroup) -> torch.device:
    """Where a tensor has to lie to be sent: where it is, unless the group's backend only knows accelerators, as NCCL does."""
    backend = distributed.get_backend(group)
    if device.type != "cpu" or backend not in ("nccl", "xccl", "hccl", "rccl"):
        return device
    accelerator = torch.accelerator.current_accelerator()
    assert accelerator is not None
    return torch.device(accelerator.type, torch.accelerator.current_device_index())


def _is_group(sync: object) -> bool:
    return distributed.is_available() and isinstance(sync, distributed.ProcessGroup)
