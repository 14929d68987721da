"""The Batch-CAM loss."""

from __future__ import annotations

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

    _function = staticmethod(batch_cam_loss)
