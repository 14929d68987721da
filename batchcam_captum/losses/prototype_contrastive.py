"""The contrastive term."""

from __future__ import annotations

from torch import Tensor

from ..functional import CamMethod, Reduction, Resolution, Score, prototype_contrastive_loss
from ..functional.losses.comparison import check_temperature
from ..prototypes import Prototypes
from .against_prototypes import PrototypeCamLoss
from .base import LOSSES


@LOSSES.register("prototype_contrastive")
class PrototypeContrastiveLoss(PrototypeCamLoss):
    r"""Pull a cam to its class's prototype, push it from the others.

    .. math:: -\log \mathrm{softmax}_c \left(\mathrm{unit}(C - \bar C) \cdot \mathrm{unit}(P_c - \bar P) / \tau\right)_y

    See :func:`~batchcam_captum.functional.prototype_contrastive_loss`. Classes without a prototype take no part.

    Args:
        prototypes: :class:`~batchcam_captum.ClassPrototypes` or another kind, or ready maps (K, 1, *spatial).
        temperature: τ > 0; lower is sharper.
        resolution: compare at the ``"prototype"``'s size or at the ``"map"``'s, which is far cheaper where large prototypes of
            many classes (a thousand of 224 pixels) are compared with each cam.
        reduction: over the samples: ``"none"``, ``"mean"`` or ``"sum"``.
        ignore_index: labels of this value are left out.
        method: the weighting that makes the cam; None: that of the regularizer's ``grad_cam``.
        score: what the cam explains, see :func:`~batchcam_captum.functional.select_scores`. Default: ``"label"``.
        validate: check values at once on every device.

    Raises:
        ValueError: an unknown option, or a temperature that is not positive.
        TypeError: ``prototypes`` of another kind.

    Example:
        >>> import torch
        >>> from batchcam_captum import PrototypeContrastiveLoss
        >>> prototypes = torch.rand(10, 1, 28, 28)
        >>> loss = PrototypeContrastiveLoss(prototypes, temperature=0.01)
        >>> bool(loss(prototypes, torch.arange(10)) < 1e-3)
        True
    """

    def __init__(
        self,
        prototypes: Prototypes | Tensor,
        *,
        temperature: float = 0.1,
        resolution: Resolution = "prototype",
        reduction: Reduction = "mean",
        ignore_index: int = -100,
        method: str | CamMethod | None = None,
        score: Score | None = None,
        validate: bool = False,
    ) -> None:
        super().__init__(
            prototypes,
            resolution=resolution,
            reduction=reduction,
            ignore_index=ignore_index,
            method=method,
            score=score,
            validate=validate,
        )
        check_temperature(temperature)
        self.temperature = temperature

    def compute(
        self,
        cams: Tensor,
        labels: Tensor,
        *,
        images: Tensor | None = None,
        masks: Tensor | None = None,
        sample_weights: Tensor | None = None,
    ) -> Tensor:
        """See :func:`batchcam_captum.functional.prototype_contrastive_loss`."""
        labels, maps, seen = self.references(cams, labels, masks, sample_weights)
        return prototype_contrastive_loss(
            cams,
            labels,
            maps,
            seen=seen,
            temperature=self.temperature,
            resolution=self.resolution,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            sample_weights=sample_weights,
            checks=self.checks,
        )
