"""The attention consistency loss."""

from __future__ import annotations

from torch import Tensor

from ..functional import CamMethod, Reduction, Score, consistency_loss
from ..functional.class_means import check_labels
from ..functional.losses.consistency import (
    ConsistencyNormalization,
    Transform,
    TransformName,
    check_consistency_normalization,
    check_transform,
)
from ..functional.reduce import check_reduction
from .base import LOSSES, CamLoss


@LOSSES.register("consistency")
class ConsistencyLoss(CamLoss):
    r"""The cam of a transformed image against the transformed cam of the image (Guo et al. 2019).

    .. math:: \mathrm{mean}\, \left(C(Tx) - T\, C(x)\right)^2

    See :func:`~batchcam_captum.functional.consistency_loss`. The batch holds both views: N images, then the same images
    transformed, in the same order, with the labels twice. It uses signed cams, so it reports no share of dead cams.

    Args:
        transform: what was done to the images: ``"hflip"``, ``"vflip"``, ``"rot90"``, or a callable on maps
            (N, 1, *spatial) -> (N, 1, *spatial).
        normalization: ``"max"`` divides each cam by its largest absolute value; ``"none"`` compares raw ones.
        reduction: over the pairs: ``"none"``, ``"mean"`` or ``"sum"``.
        ignore_index: pairs with a label of this value are left out.
        method: the weighting that makes the cam; None: that of the regularizer's ``grad_cam``.
        score: what the cam explains, see :func:`~batchcam_captum.functional.select_scores`. Default: ``"label"``.
        validate: check values at once on every device.

    Raises:
        ValueError: an unknown option.

    Example:
        >>> import torch
        >>> from batchcam_captum import ConsistencyLoss
        >>> cams = torch.rand(3, 1, 6, 6)
        >>> labels = torch.tensor([0, 2, 1])
        >>> ConsistencyLoss(transform="hflip")(torch.cat([cams, cams.flip(-1)]), torch.cat([labels, labels]))
        tensor(0.)
    """

    rectifies = False

    def __init__(
        self,
        *,
        transform: TransformName | Transform = "hflip",
        normalization: ConsistencyNormalization = "max",
        reduction: Reduction = "mean",
        ignore_index: int = -100,
        method: str | CamMethod | None = None,
        score: Score | None = None,
        validate: bool = False,
    ) -> None:
        super().__init__(ignore_index=ignore_index, method=method, score=score, validate=validate)
        check_transform(transform)
        check_consistency_normalization(normalization)
        check_reduction(reduction)
        self.transform: TransformName | Transform = transform
        self.normalization: ConsistencyNormalization = normalization
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
        """See :func:`batchcam_captum.functional.consistency_loss`."""
        check_labels(labels, cams.shape[0])
        if labels.shape[0] % 2 == 0:  # an odd number gets an error of its own
            first, second = labels.tensor_split(2)
            self.checks.require(
                first == second,
                "labels: expected the same labels for both halves of the batch, the images and then the same images transformed, "
                "got others; concatenate the two views, do not interleave them",
            )
        return consistency_loss(
            cams,
            transform=self.transform,
            normalization=self.normalization,
            reduction=self.reduction,
            counted=self.counted(labels),
            sample_weights=sample_weights,
            checks=self.checks,
        )
