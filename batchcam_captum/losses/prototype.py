"""The prototype loss."""

from __future__ import annotations

from torch import Tensor

from ..functional import (
    CamMethod,
    Distance,
    Normalization,
    Reduction,
    Resolution,
    Score,
    get_distance,
    prototype_loss,
)
from ..functional.maps import check_normalization
from ..prototypes import Prototypes
from .against_prototypes import PrototypeCamLoss
from .base import LOSSES


@LOSSES.register("prototype")
class PrototypeLoss(PrototypeCamLoss):
    r"""Each image's cam against the prototype of its class: :func:`~batchcam_captum.functional.prototype_loss`.

    .. math:: \frac{1}{N} \sum_i D(M_i, P_{y_i}), \qquad M = \mathrm{relu}(C) / \max \mathrm{relu}(C)

    with D the distance and P the prototypes (Ignesti et al. 2025).

    Args:
        prototypes: :class:`~batchcam_captum.ClassPrototypes` or another kind, or ready maps (K, 1, *spatial).
        distance: ``"l1"``, ``"l2"``, ``"ssim"``, ``"cosine"``, or a callable (N, 1, …), (N, 1, …) -> (N,).
        normalization: of the rectified cams: ``"max"``, ``"minmax"`` or ``"none"``.
        resolution: compare at the ``"map"``'s size or at the ``"prototype"``'s.
        revive: give dead cams a way back; ``False`` is the strict definition.
        reduction: over the samples: ``"none"``, ``"mean"`` or ``"sum"``.
        ignore_index: labels of this value are left out.
        method: the weighting that makes the cam; None: that of the regularizer's ``grad_cam``.
        score: what the cam explains, see :func:`~batchcam_captum.functional.select_scores`. Default: ``"label"``.
        validate: check values at once on every device.

    Raises:
        ValueError: an unknown option.
        TypeError: ``prototypes`` of another kind.

    Example:
        >>> import torch
        >>> from batchcam_captum import PrototypeLoss
        >>> loss = PrototypeLoss(torch.rand(10, 1, 28, 28), distance="ssim")
        >>> cams = torch.randn(4, 1, 7, 7, requires_grad=True)
        >>> value, dead_fraction = loss.evaluate(cams, torch.tensor([3, 1, 0, 9]))
        >>> value.backward()
        >>> dead_fraction
        tensor(0.)
    """

    def __init__(
        self,
        prototypes: Prototypes | Tensor,
        *,
        distance: str | Distance = "l1",
        normalization: Normalization = "max",
        resolution: Resolution = "map",
        revive: bool = True,
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
        check_normalization(normalization)
        self.distance = get_distance(distance)
        self.normalization: Normalization = normalization
        self.revive = revive

    def compute(
        self,
        cams: Tensor,
        labels: Tensor,
        *,
        images: Tensor | None = None,
        masks: Tensor | None = None,
        sample_weights: Tensor | None = None,
    ) -> Tensor:
        """See :func:`batchcam_captum.functional.prototype_loss`."""
        labels, maps, seen = self.of_samples(cams, labels, masks)
        return prototype_loss(
            cams,
            labels,
            maps,
            seen=seen,
            distance=self.distance,
            normalization=self.normalization,
            resolution=self.resolution,
            revive=self.revive,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            sample_weights=sample_weights,
            checks=self.checks,
        )
