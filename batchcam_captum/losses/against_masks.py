"""What the losses that compare cams with masks have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from ..functional import CamMethod, MaskResolution, Normalization, Reduction, Score
from ..functional.class_means import check_labels
from ..functional.losses.comparison import check_resolution
from ..functional.maps import check_normalization
from ..functional.reduce import check_reduction
from .base import CamLoss


class MaskCamLoss(CamLoss):
    """A cam loss that compares with masks: where the evidence should be, (N, 1, *spatial) in [0, 1].

    A mask of zeros says that the sample has no annotation; it is left out. Labels tell only which samples are ignored; their
    range is not looked at.

    Args:
        resolution: compare at the ``"map"``'s size or at the ``"mask"``'s.
        revive: give dead cams a way back; ``False`` is the strict definition.
        reduction: over the samples: ``"none"``, ``"mean"`` or ``"sum"``.
        ignore_index: labels of this value are left out.
        method: the weighting that makes the cam; None: that of the regularizer's ``grad_cam``.
        score: what the cam explains, see :func:`~batchcam_captum.functional.select_scores`. Default: ``"label"``.
        validate: check values at once on every device.

    Raises:
        ValueError: an unknown option.
    """

    #: (cams, masks, **options) -> loss, of :mod:`batchcam_captum.functional`.
    function: ClassVar[Callable[..., Tensor]]

    def __init__(
        self,
        *,
        resolution: MaskResolution = "map",
        revive: bool = True,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
        method: str | CamMethod | None = None,
        score: Score | None = None,
        validate: bool = False,
    ) -> None:
        super().__init__(ignore_index=ignore_index, method=method, score=score, validate=validate)
        check_resolution(resolution, MaskResolution)
        check_reduction(reduction)
        self.resolution: MaskResolution = resolution
        self.revive = revive
        self.reduction: Reduction = reduction

    def options(self) -> dict[str, Any]:
        """What the function takes beside cams, masks and who counts."""
        return {"resolution": self.resolution, "revive": self.revive, "reduction": self.reduction}

    def compute(
        self,
        cams: Tensor,
        labels: Tensor,
        *,
        images: Tensor | None = None,
        masks: Tensor | None = None,
        sample_weights: Tensor | None = None,
    ) -> Tensor:
        """See the function of the loss."""
        if masks is None:
            raise ValueError(
                "masks: expected masks (N, 1, *spatial) of where the evidence should be, got none; pass masks= to the loss, or "
                "to the regularizer"
            )
        check_labels(labels, cams.shape[0])
        return type(self).function(
            cams,
            masks,
            counted=self.counted(labels),
            sample_weights=sample_weights,
            checks=self.checks,
            **self.options(),
        )


class NormalizedMaskLoss(MaskCamLoss):
    """A loss of the rectified and normalised cam against the mask.

    Args:
        normalization: of the rectified cams: ``"max"``, ``"minmax"`` or ``"none"``.
        resolution: see :class:`MaskCamLoss`.
        revive: see :class:`MaskCamLoss`.
        reduction: see :class:`MaskCamLoss`.
        ignore_index: see :class:`MaskCamLoss`.
        method: see :class:`MaskCamLoss`.
        score: see :class:`MaskCamLoss`.
        validate: see :class:`MaskCamLoss`.

    Raises:
        ValueError: an unknown option.
    """

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
