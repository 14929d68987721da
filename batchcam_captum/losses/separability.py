"""The separability loss."""

from __future__ import annotations

from torch import Tensor

from ..functional import CamMethod, Normalization, Reduction, Score, separability_loss
from ..functional.class_means import check_labels
from ..functional.losses.separability import check_soft_mask
from ..functional.maps import check_normalization
from ..functional.reduce import check_reduction
from .base import LOSSES, CamLoss


@LOSSES.register("separability")
class SeparabilityLoss(CamLoss):
    r"""How far the maps of the label and of the most confused class overlap (Wang et al. 2019, ICASC).

    .. math:: \frac{2 \sum \min(M_y, M_c)\, T}{\sum (M_y + M_c)}, \qquad T = \mathrm{sigmoid}\left(\omega (M_y - \sigma)\right)

    See :func:`~batchcam_captum.functional.separability_loss`. It compares the cams of two scores, so it takes cams (N, 2,
    *spatial) and costs a second gradient. Labels themselves tell only which samples are ignored.

    Args:
        threshold: σ as a share of the largest value of the label's map, from 0 to 1.
        sharpness: ω > 0; large values make the soft mask a step.
        normalization: of the rectified cams: ``"max"``, ``"minmax"`` or ``"none"``.
        revive: give dead cams of the label a way back; ``False`` is the strict definition.
        reduction: over the samples: ``"none"``, ``"mean"`` or ``"sum"``.
        ignore_index: labels of this value are left out.
        method: the weighting that makes the cams; None: that of the regularizer's ``grad_cam``.
        score: what is set against ``"confused"``. Default: ``"label"``.
        validate: check values at once on every device.

    Raises:
        ValueError: an unknown option.

    Example:
        >>> import torch
        >>> from batchcam_captum import SeparabilityLoss
        >>> loss = SeparabilityLoss()
        >>> loss.scores
        ('label', 'confused')
        >>> apart = torch.zeros(1, 2, 6, 6)
        >>> apart[:, 0, :, :3], apart[:, 1, :, 3:] = 1, 1
        >>> loss(apart, torch.tensor([4]))
        tensor(0.)
    """

    def __init__(
        self,
        *,
        threshold: float = 0.5,
        sharpness: float = 10.0,
        normalization: Normalization = "max",
        revive: bool = True,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
        method: str | CamMethod | None = None,
        score: Score | None = None,
        validate: bool = False,
    ) -> None:
        super().__init__(ignore_index=ignore_index, method=method, score=score, validate=validate)
        check_soft_mask(threshold, sharpness)
        check_normalization(normalization)
        check_reduction(reduction)
        self.threshold = threshold
        self.sharpness = sharpness
        self.normalization: Normalization = normalization
        self.revive = revive
        self.reduction: Reduction = reduction

    @property
    def scores(self) -> tuple[Score, ...]:
        """The label's score, and that of the class most confused with it."""
        return (self.score, "confused")

    def compute(
        self,
        cams: Tensor,
        labels: Tensor,
        *,
        images: Tensor | None = None,
        masks: Tensor | None = None,
        sample_weights: Tensor | None = None,
    ) -> Tensor:
        """See :func:`batchcam_captum.functional.separability_loss`."""
        check_labels(labels, cams.shape[0])
        return separability_loss(
            cams,
            threshold=self.threshold,
            sharpness=self.sharpness,
            normalization=self.normalization,
            revive=self.revive,
            reduction=self.reduction,
            counted=self.counted(labels),
            sample_weights=sample_weights,
            checks=self.checks,
        )
