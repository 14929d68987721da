"""The Batch-CAM loss."""

from __future__ import annotations

from torch import Tensor

from ..functional import batch_cam_loss
from .base import LOSSES
from .prototype import PrototypeLoss


@LOSSES.register("batch_cam")
class BatchCamLoss(PrototypeLoss):
    """The mean cam of each class in the batch against its prototype: :func:`~batchcam_captum.functional.batch_cam_loss`.

    The options are those of :class:`PrototypeLoss`; ``reduction`` is over the classes in the batch, and ``"none"`` gives (K,),
    zero for a class that is absent.

    Example:
        >>> import torch
        >>> from batchcam_captum import BatchCamLoss
        >>> loss = BatchCamLoss(torch.rand(3, 1, 28, 28), reduction="none")
        >>> loss(torch.randn(4, 1, 7, 7), torch.tensor([0, 2, 2, 2])) > 0
        tensor([ True, False,  True])
    """

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
        return batch_cam_loss(
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
            checks=self.checks,
        )
