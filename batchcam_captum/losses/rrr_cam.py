"""Right for the right reasons, on cams."""

from __future__ import annotations

from ..functional import rrr_cam_loss
from .against_masks import NormalizedMaskLoss
from .base import LOSSES


@LOSSES.register("rrr_cam")
class RrrCamLoss(NormalizedMaskLoss):
    """The squared evidence outside the mask: :func:`~batchcam_captum.functional.rrr_cam_loss` (Ross et al. 2017).

    The options are those of :class:`~batchcam_captum.losses.against_masks.NormalizedMaskLoss`.

    Example:
        >>> import torch
        >>> from batchcam_captum import RrrCamLoss
        >>> cams, masks = torch.ones(2, 1, 6, 6), torch.zeros(2, 1, 24, 24)
        >>> masks[0, :, :, :12] = 1  # the left half; of the second sample nothing is known
        >>> RrrCamLoss()(cams, torch.tensor([3, 1]), masks=masks)
        tensor(18.)
    """

    function = staticmethod(rrr_cam_loss)
