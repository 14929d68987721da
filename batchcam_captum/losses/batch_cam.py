"""The Batch-CAM loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from ..distributed import Ranks, sum_over_ranks
from ..functional import (
    CamMethod,
    Distance,
    Normalization,
    Reduction,
    Resolution,
    Score,
    batch_cam_loss,
)
from ..prototypes import Prototypes
from .base import LOSSES
from .class_memory import ClassSumsMemory
from .prototype import PrototypeLoss

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@LOSSES.register("batch_cam")
class BatchCamLoss(PrototypeLoss):
    r"""The mean cam of each class in the batch against its prototype: :func:`~batchcam_captum.functional.batch_cam_loss`.

    .. math:: \frac{1}{|\text{present}|} \sum_{c\ \text{present}} D\left(\frac{1}{n_c} \sum_{i: y_i = c} M_i,\ P_c\right)

    with M the normalised maps, D the distance and P the prototypes (Ignesti et al. 2025).

    **Several processes.** In training the classes' sums and counts are those of the batches of all ranks together: two ranks
    with 32 images each have the loss, and the gradients, of one with 64. One tensor of (K, pixels + 4) numbers is sent in each
    forward and nothing in the backward, see ``batchcam_captum.distributed.sum_over_ranks``. Every rank has to call the loss
    equally often, also one that has no image of a class, or no image at all; ``Join``, under which ranks run out of data before
    others, does not know of it. Gradients are expected to be averaged over the ranks, as DistributedDataParallel and FSDP do.

    **Gradient accumulation.** A class mean is no mean over samples: by default each micro-batch has class means of its own, and
    M of them accumulate the mean of their M losses, not the loss of the whole batch. With ``memory`` = M − 1 the means are taken
    over this call and the M − 1 before it, whose sums are remembered as they were. Let :math:`S_j` be the sums of micro-batch j
    and :math:`J_j` their derivative. The gradient of the whole batch is :math:`\sum_j J_j^\top L'(S_1 + \ldots + S_M)`. The
    call for micro-batch j knows :math:`J_j` only, so the gradient of its sums is multiplied by the number of calls that the
    means are taken over. When each loss is divided by M, as accumulation does, the M gradients add up to the whole batch's, as
    far as the remembered sums are those of the weights at hand: exactly as long as no optimizer steps, nearly as long as steps
    are small.
    The memory slides: the first micro-batch after a step still sees the M − 1 before it. It is filled in training mode only,
    is part of ``state_dict()``, and is emptied by :meth:`reset`.

    The other options are those of :class:`PrototypeLoss`; ``reduction`` is over the classes in the batch, and ``"none"`` gives
    (K,), zero for a class that is absent.

    Args:
        prototypes: see :class:`PrototypeLoss`. Every rank needs the same.
        distance: see :class:`PrototypeLoss`.
        normalization: see :class:`PrototypeLoss`.
        resolution: see :class:`PrototypeLoss`.
        revive: see :class:`PrototypeLoss`.
        reduction: over the classes.
        ignore_index: see :class:`PrototypeLoss`.
        method: see :class:`PrototypeLoss`.
        score: see :class:`PrototypeLoss`.
        sync: whether means are taken over all ranks of the process group, if there is one; or over which group: that over which
            the gradients are averaged. In eval mode, as under :meth:`CamRegularizer.evaluate`, each rank is by itself.
        memory: how many earlier calls the means are taken over as well, ≥ 0.
        validate: see :class:`PrototypeLoss`.

    Raises:
        ValueError: an unknown option, or a negative ``memory``.
        TypeError: ``prototypes`` or ``sync`` of another kind.

    Example:
        >>> import torch
        >>> from batchcam_captum import BatchCamLoss
        >>> loss = BatchCamLoss(torch.rand(3, 1, 28, 28), reduction="none")
        >>> loss(torch.randn(4, 1, 7, 7), torch.tensor([0, 2, 2, 2])) > 0
        tensor([ True, False,  True])
    """

    def __init__(
        self,
        prototypes: Prototypes | Tensor,
        *,
        distance: str | Distance = "l1",
        normalization: Normalization = "max",
        resolution: Resolution = "map",
        revive: bool = True,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
        method: str | CamMethod | None = None,
        score: Score | None = None,
        sync: bool | ProcessGroup = True,
        memory: int = 0,
        validate: bool = False,
    ) -> None:
        super().__init__(
            prototypes,
            distance=distance,
            normalization=normalization,
            resolution=resolution,
            revive=revive,
            reduction=reduction,
            ignore_index=ignore_index,
            method=method,
            score=score,
            validate=validate,
        )
        if not isinstance(memory, int) or isinstance(memory, bool) or memory < 0:
            raise ValueError(
                f"memory: expected how many earlier calls to remember, 0 or more, got {memory!r}"
            )
        self._ranks = Ranks(sync)
        #: The sums of the last calls; None without a memory.
        self.memory = ClassSumsMemory(memory, self.num_classes) if memory else None

    @property
    def sync(self) -> bool | ProcessGroup:
        """Over which ranks the means are taken."""
        return self._ranks.sync

    @property
    def group(self) -> ProcessGroup | None:
        """The ranks over which the means are taken now; None in eval mode, or where there are no others."""
        return self._ranks.group if self.training else None

    @property
    def keeps_state(self) -> bool:
        """Whether the prototypes learn from the cams, or earlier calls are remembered."""
        return super().keeps_state or self.memory is not None

    def reset(self) -> None:
        """Forget earlier calls, as after a change of the weights or of the maps' size."""
        if self.memory is not None:
            self.memory.reset()

    def compute(
        self,
        cams: Tensor,
        labels: Tensor,
        *,
        images: Tensor | None = None,
        masks: Tensor | None = None,
        sample_weights: Tensor | None = None,
    ) -> Tensor:
        """See :func:`batchcam_captum.functional.batch_cam_loss`."""
        labels, maps, seen = self.references(cams, labels, masks, sample_weights)
        size = tuple(cams.shape[2:] if self.resolution == "map" else maps.shape[2:])
        present: list[Tensor] = []
        loss = batch_cam_loss(
            cams,
            labels,
            maps,
            seen=seen,
            distance=self.distance,
            normalization=self.normalization,
            resolution=self.resolution,
            revive=self.revive,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            sample_weights=sample_weights,
            total=self._total(size, present),
            checks=self.checks,
        )
        if self.memory is not None and present:  # last: what raises is not remembered
            self.memory.remember(present[0], size)
        return loss

    def _total(self, size: tuple[int, ...], present: list[Tensor]) -> Callable[[Tensor], Tensor] | None:
        """What is added to the sums of a batch in training; notes the sums that are to be remembered."""
        group = self.group
        memory = self.memory if self.training else None
        if group is None and memory is None:
            return None
        if memory is not None:
            memory.check_size(size)  # before anything is sent

        def total(sums: Tensor) -> Tensor:
            if group is not None:
                sums = sum_over_ranks(sums, group)
            if memory is not None:
                present.append(sums.detach())
                sums = memory.with_earlier(sums)
            return sums

        return total
