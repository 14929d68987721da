"""The foreground loss."""

from __future__ import annotations

from torch import Tensor

from ..functional import CamMethod, Reduction, Score, foreground_loss
from ..functional.losses.foreground import ForegroundNormalization, check_foreground_normalization
from ..prototypes import ForegroundPrototypes, Prototypes
from .against_prototypes import PrototypeCamLoss
from .base import LOSSES


@LOSSES.register("foreground")
class ForegroundLoss(PrototypeCamLoss):
    r"""What lies outside the foreground of the class: :func:`~batchcam_captum.functional.foreground_loss`.

    .. math:: \sum \left((1 - F_y)\, C\right)^2 \quad\text{or, as a share,}\quad \frac{\sum (1 - F_y)\, |C|}{\sum |C|}

    with F_y the foreground of the label's class. After Ross et al. 2017, eq. 1; this loss is the project's own.

    Its map is the element-wise cam (``method`` is ``"hires_cam"``) of Σ log p (``score`` is ``"log_prob_sum"``), unless
    these attributes are set to something else. It uses signed cams, so it reports no share of dead cams.

    Args:
        prototypes: whose maps say how much each place is foreground: of any kind, or ready maps in [0, 1], (K, 1, *spatial) or
            several a class, (K, P, *spatial), which are taken as they are.
        normalization: ``"none"`` squares the raw cam outside; ``"share"`` gives the share of its absolute value that is outside.
        reduction: over the samples: ``"none"``, ``"mean"`` or ``"sum"``.
        ignore_index: labels of this value are left out.
        method: the weighting that makes the cam. Default: ``"hires_cam"``.
        score: what the cam explains. Default: ``"log_prob_sum"``.
        validate: check values at once on every device.

    Raises:
        ValueError: an unknown option, or ready maps out of [0, 1].
        TypeError: ``prototypes`` of another kind.

    Example:
        >>> import torch
        >>> from batchcam_captum import ForegroundLoss
        >>> foregrounds = torch.zeros(3, 1, 12, 12)
        >>> foregrounds[..., :6] = 1  # the left half
        >>> loss = ForegroundLoss(foregrounds, normalization="share")
        >>> loss(torch.ones(2, 1, 6, 6), torch.tensor([0, 2]))
        tensor(0.5000)
    """

    default_method = "hires_cam"
    default_score = "log_prob_sum"
    rectifies = False

    def __init__(
        self,
        prototypes: Prototypes | Tensor,
        *,
        normalization: ForegroundNormalization = "none",
        reduction: Reduction = "mean",
        ignore_index: int = -100,
        method: str | CamMethod | None = None,
        score: Score | None = None,
        validate: bool = False,
    ) -> None:
        if isinstance(prototypes, Tensor):
            # Not as the means of images, which are stretched from 0 to 1: a foreground that is everywhere would become none.
            prototypes = ForegroundPrototypes.from_maps(prototypes)
        super().__init__(
            prototypes,
            resolution="map",
            reduction=reduction,
            ignore_index=ignore_index,
            method=method,
            score=score,
            validate=validate,
        )
        check_foreground_normalization(normalization)
        self.normalization: ForegroundNormalization = normalization

    def compute(
        self,
        cams: Tensor,
        labels: Tensor,
        *,
        images: Tensor | None = None,
        masks: Tensor | None = None,
        sample_weights: Tensor | None = None,
    ) -> Tensor:
        """See :func:`batchcam_captum.functional.foreground_loss`."""
        labels, maps, seen = self.of_samples(cams, labels, masks)
        return foreground_loss(
            cams,
            labels,
            maps,
            seen=seen,
            normalization=self.normalization,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            sample_weights=sample_weights,
            checks=self.checks,
        )
