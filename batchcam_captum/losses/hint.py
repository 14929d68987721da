"""A loss as in HINT."""

from __future__ import annotations

from typing import Any

from ..functional import CamMethod, MaskResolution, Normalization, Reduction, Score, hint_loss
from ..functional.maps import check_normalization
from .against_masks import MaskCamLoss
from .base import LOSSES


@LOSSES.register("hint")
class HintLoss(MaskCamLoss):
    """The mean squared difference between cam and mask: :func:`~batchcam_captum.functional.hint_loss`.

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

    def __init__(
        self,
        *,
        normalization: Normalization = "max",
        resolution: MaskResolution = "map",
        revive: bool = True,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
        method: str | CamMethod | None = None,
        score: Score | None = None,
        validate: bool = False,
    ) -> None:
        super().__init__(
            resolution=resolution,
            revive=revive,
            reduction=reduction,
            ignore_index=ignore_index,
            method=method,
            score=score,
            validate=validate,
        )
        check_normalization(normalization)
        self.normalization: Normalization = normalization

    def options(self) -> dict[str, Any]:
        """What the function takes beside cams, masks and who counts."""
        return {"normalization": self.normalization, **super().options()}
