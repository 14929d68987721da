"""The image loss."""

from __future__ import annotations

from torch import Tensor

from ..functional import (
    CamMethod,
    Distance,
    Normalization,
    Reduction,
    Score,
    get_distance,
    image_loss,
    image_maps,
)
from ..functional.class_means import check_labels
from ..functional.images import PerChannel, ToChannel, per_channel
from ..functional.losses.comparison import ImageResolution, check_resolution
from ..functional.maps import check_normalization
from ..functional.reduce import check_reduction
from .base import LOSSES, CamLoss


@LOSSES.register("image")
class ImageLoss(CamLoss):
    r"""Each image's cam against the image itself: :func:`~batchcam_captum.functional.image_loss`.

    .. math:: \frac{1}{N} \sum_i D(M_i, x_i), \qquad M = \mathrm{relu}(C) / \max \mathrm{relu}(C)

    with D the distance and x the images in one channel, from 0 to 1.

    Labels tell only which samples are ignored; their range is not looked at.

    Args:
        distance: ``"l1"``, ``"l2"``, ``"ssim"``, ``"cosine"``, or a callable (N, 1, …), (N, 1, …) -> (N,).
        mean: the ``mean`` that the images were standardised with, undone before the comparison; None if they were not.
        std: likewise.
        to_channel: (N, C, *spatial) -> (N, 1, *spatial), in the place of the channels' average.
        normalization: of the rectified cams: ``"max"``, ``"minmax"`` or ``"none"``.
        resolution: compare at the ``"map"``'s size or at the ``"image"``'s.
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
        >>> from batchcam_captum import ImageLoss
        >>> images = torch.rand(4, 3, 28, 28)
        >>> loss = ImageLoss(distance="l2")
        >>> loss(torch.randn(4, 1, 7, 7), torch.tensor([3, 1, 0, 9]), images=images).shape
        torch.Size([])
    """

    def __init__(
        self,
        *,
        distance: str | Distance = "l2",
        mean: PerChannel = None,
        std: PerChannel = None,
        to_channel: ToChannel | None = None,
        normalization: Normalization = "max",
        resolution: ImageResolution = "map",
        revive: bool = True,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
        method: str | CamMethod | None = None,
        score: Score | None = None,
        validate: bool = False,
    ) -> None:
        super().__init__(ignore_index=ignore_index, method=method, score=score, validate=validate)
        check_reduction(reduction)
        check_resolution(resolution, ImageResolution)
        check_normalization(normalization)
        self.distance = get_distance(distance)
        self.mean = per_channel("mean", mean)
        self.std = per_channel("std", std)
        self.to_channel = to_channel
        self.normalization: Normalization = normalization
        self.resolution: ImageResolution = resolution
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
        """See :func:`batchcam_captum.functional.image_loss`."""
        if images is None:
            raise ValueError("images: expected the images of the batch, got none; pass images= to the loss")
        if not isinstance(images, Tensor):
            raise TypeError(
                f"images: expected a tensor (N, C, *spatial), got {type(images).__name__}; pass torch.stack(images)"
            )
        check_labels(labels, cams.shape[0])
        return image_loss(
            cams,
            image_maps(images, mean=self.mean, std=self.std, to_channel=self.to_channel),
            distance=self.distance,
            normalization=self.normalization,
            resolution=self.resolution,
            revive=self.revive,
            reduction=self.reduction,
            counted=self.counted(labels),
            sample_weights=sample_weights,
            checks=self.checks,
        )
