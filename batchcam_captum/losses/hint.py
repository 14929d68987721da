"""A loss as in HINT."""

from __future__ import annotations

from ..functional import hint_loss
from .against_masks import NormalizedMaskLoss
from .base import LOSSES


@LOSSES.register("hint")
class HintLoss(NormalizedMaskLoss):
    r"""The mean squared difference between cam and mask: :func:`~batchcam_captum.functional.hint_loss`.

    .. math:: \mathrm{mean}\, (M - m)^2

    with M = relu(C) / max relu(C) the map, and m the mask of where the evidence should be, (N, 1, *spatial) in [0, 1]. A mask of
    zeros says that the sample has no annotation; it is left out. (After Selvaraju et al. 2019.)

    Args:
        normalization: of the rectified cams: ``"max"``, ``"minmax"`` or ``"none"``.
        resolution: compare at the ``"map"``'s size or at the ``"mask"``'s.
        revive: give dead cams a way back; ``False`` is the strict definition.
        reduction: over the samples: ``"none"``, ``"mean"`` or ``"sum"``.
        ignore_index: labels of this value are left out.
        method: the weighting that makes the cam; None: that of the regularizer's ``grad_cam``.
        score: what the cam explains, see :func:`~batchcam_captum.functional.select_scores`. Default: ``"label"``.
        validate: check values at once on every device.

    Raises:
        ValueError: an unknown option.

    Example:
        >>> import torch
        >>> from batchcam_captum import HintLoss
        >>> cams, masks = torch.ones(2, 1, 6, 6), torch.zeros(2, 1, 24, 24)
        >>> masks[0, :, :, :12] = 1  # the left half; of the second sample nothing is known
        >>> HintLoss()(cams, torch.tensor([3, 1]), masks=masks)
        tensor(0.5000)
    """

    function = staticmethod(hint_loss)
