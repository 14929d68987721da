"""A loss as in HINT."""

from __future__ import annotations

from ..functional import hint_loss
from .against_masks import NormalizedMaskLoss
from .base import LOSSES


@LOSSES.register("hint")
class HintLoss(NormalizedMaskLoss):
    """The mean squared difference between cam and mask: :func:`~batchcam_captum.functional.hint_loss`.

    The options are those of :class:`~batchcam_captum.losses.against_masks.NormalizedMaskLoss`.

    Example:
        >>> import torch
        >>> from batchcam_captum import HintLoss
        >>> cams, masks = torch.ones(2, 1, 6, 6), torch.zeros(2, 1, 24, 24)
        >>> masks[0, :, :, :12] = 1  # the left half; of the second sample nothing is known
        >>> HintLoss()(cams, torch.tensor([3, 1]), masks=masks)
        tensor(0.5000)
    """

    function = staticmethod(hint_loss)
