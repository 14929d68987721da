"""The total variation of the maps."""

from __future__ import annotations

from torch import Tensor

from ..functional import CamMethod, Normalization, Reduction, Score, total_variation_loss
from ..functional.class_means import check_labels
from ..functional.maps import check_normalization
from ..functional.reduce import check_reduction
from .base import LOSSES, CamLoss


@LOSSES.register("total_variation")
class TotalVariationLoss(CamLoss):
    r"""How much neighbouring pixels of the maps differ: :func:`~batchcam_captum.functional.total_variation_loss`.

    .. math:: \sum_d \mathrm{mean}_p\, |M_{p + e_d} - M_p|, \qquad M = \mathrm{relu}(C) / \max \mathrm{relu}(C)

    with d over the spatial dimensions and p over the pixels that have a next one (Rudin, Osher and Fatemi 1992).

    Labels tell only which samples are ignored; their range is not looked at.

    Args:
        normalization: of the rectified cams: ``"max"``, ``"minmax"`` or ``"none"``.
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
        >>> from batchcam_captum import TotalVariationLoss
        >>> cams = torch.zeros(1, 1, 6, 6)
        >>> cams[..., :3] = 1  # one of five steps to the right is a step
        >>> TotalVariationLoss()(cams, torch.tensor([4]))
        tensor(0.2000)
    """

    def __init__(
        self,
        *,
        normalization: Normalization = "max",
        revive: bool = True,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
        method: str | CamMethod | None = None,
        score: Score | None = None,
        validate: bool = False,
    ) -> None:
        super().__init__(ignore_index=ignore_index, method=method, score=score, validate=validate)
        check_normalization(normalization)
        check_reduction(reduction)
        self.normalization: Normalization = normalization
        self.revive = revive
        self.reduction: Reduction = reduction

    def compute(
        self,
        cams: Tensor,
        labels: Tensor,
        *,
        images: Tensor | None = None,
        masks: Tensor | None = None,
        sample_weights: Tensor | None = None,
    ) -> Tensor:
        """See :func:`batchcam_captum.functional.total_variation_loss`."""
        check_labels(labels, cams.shape[0])
        return total_variation_loss(
            cams,
            normalization=self.normalization,
            revive=self.revive,
            reduction=self.reduction,
            counted=self.counted(labels),
            sample_weights=sample_weights,
            checks=self.checks,
        )
