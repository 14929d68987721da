"""Losses that compare a cam with its image, with another cam, or with itself."""

from __future__ import annotations

from torch import Tensor

from ..functional import (
    Distance,
    Samples,
    Score,
    get_distance,
    image_maps,
)
from ..functional.images import PerChannel, ToChannel, per_channel
from ..functional.losses.base import check_cams
from ..functional.losses.pairs import (
    Transform,
    against_images,
    check_soft_mask,
    check_transform,
    inconsistency,
    overlap,
    variation,
    view_samples,
)
from .base import LOSSES, Batch, CamLoss, NormalizedLoss, RectifiedLoss


@LOSSES.register("image")
class ImageLoss(NormalizedLoss):
    """The module of :func:`~batchcam_captum.functional.image_loss`; the images come with the batch.

    Labels say only which samples are ignored.

    Args:
        distance: ``"l1"``, ``"l2"``, ``"ssim"``, ``"cosine"``, or a callable (N, 1, …), (N, 1, …) -> (N,).
        mean: the ``mean`` that the images were standardized with, one number or one per channel; it is undone.
        std: the ``std`` that the images were standardized with.
        to_channel: (N, C, *spatial) -> (N, 1, *spatial). Default: the mean over the channels.

    Example:
        >>> import torch
        >>> from batchcam_captum import ImageLoss
        >>> images = torch.rand(4, 3, 28, 28)
        >>> loss = ImageLoss(distance="l2")
        >>> loss(torch.randn(4, 1, 7, 7), torch.tensor([3, 1, 0, 9]), images=images).shape
        torch.Size([])
    """

    distance: str | Distance = "l2"
    mean: PerChannel = None
    std: PerChannel = None
    to_channel: ToChannel | None = None

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        self.distance = get_distance(self.distance)
        self.mean = per_channel("mean", self.mean)
        self.std = per_channel("std", self.std)

    def samples(self, batch: Batch) -> Samples:
        """Check cams and images, and prepare both."""
        if batch.images is None:
            raise ValueError("images: expected the images of the batch, got none; pass images= to the loss")
        if not isinstance(batch.images, Tensor):
            raise TypeError(
                f"images: expected a tensor (N, C, *spatial), got {type(batch.images).__name__}; pass torch.stack(images)"
            )
        samples = super().samples(batch)
        maps = image_maps(batch.images, mean=self.mean, std=self.std, to_channel=self.to_channel)
        return against_images(samples, maps)

    def per_sample(self, samples: Samples) -> Tensor:
        """Return the distance of each map to its image."""
        return samples.distances(self.distance)


@LOSSES.register("consistency")
class ConsistencyLoss(CamLoss):
    """The module of :func:`~batchcam_captum.functional.consistency_loss`.

    The batch holds both views: N images, then the same images transformed, in the same order, with the labels twice.

    Args:
        transform: ``"hflip"`` (the last dimension reversed), or a callable on maps, (N, 1, *spatial) -> (N, 1, *spatial).

    Example:
        >>> import torch
        >>> from batchcam_captum import ConsistencyLoss
        >>> cams = torch.rand(3, 1, 6, 6)
        >>> labels = torch.tensor([0, 2, 1])
        >>> ConsistencyLoss(transform="hflip")(torch.cat([cams, cams.flip(-1)]), torch.cat([labels, labels]))
        tensor(0.)
    """

    transform: Transform = "hflip"

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        check_transform(self.transform)

    def samples(self, batch: Batch) -> Samples:
        """Check that the batch holds two views, and put them side by side."""
        check_cams(batch.cams)
        weights = batch.sample_weights
        samples = view_samples(batch.cams, self.counted(batch), weights, self.reduction)
        first, second = batch.labels.chunk(2) if len(batch.labels) else (batch.labels, batch.labels)
        self.checks.require(
            first == second,
            "labels: expected the same labels for both halves of the batch, the images and then the same images transformed, "
            "got others; concatenate the two views, do not interleave them",
        )
        return samples

    def per_sample(self, samples: Samples) -> Tensor:
        """Return the mean squared difference of each pair of views."""
        return inconsistency(samples, self.transform)


@LOSSES.register("separability")
class SeparabilityLoss(RectifiedLoss):
    """The module of :func:`~batchcam_captum.functional.separability_loss`.

    It compares the cams of two scores, so it costs a second gradient. Labels themselves say only which samples are ignored.

    Args:
        score: what is compared with ``"confused"``. Default: ``"label"``.
        threshold: of the soft mask, as a share of the largest value of the label's map, from 0 to 1.
        sharpness: of the soft mask, positive; large values make it a step.

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

    threshold: float = 0.5
    sharpness: float = 10.0

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        check_soft_mask(self.threshold, self.sharpness)

    @property
    def scores(self) -> tuple[Score, ...]:
        """The score of the label, and that of the class most confused with it."""
        assert self.score is not None
        return (self.score, "confused")

    def per_sample(self, samples: Samples) -> Tensor:
        """Return the overlap of the two maps."""
        return overlap(samples, self.threshold, self.sharpness)


@LOSSES.register("total_variation")
class TotalVariationLoss(RectifiedLoss):
    """The module of :func:`~batchcam_captum.functional.total_variation_loss`.

    Labels say only which samples are ignored.

    Example:
        >>> import torch
        >>> from batchcam_captum import TotalVariationLoss
        >>> cams = torch.zeros(1, 1, 6, 6)
        >>> cams[..., :3] = 1  # one of five steps to the right is a step
        >>> TotalVariationLoss()(cams, torch.tensor([4]))
        tensor(0.2000)
    """

    def per_sample(self, samples: Samples) -> Tensor:
        """Return the total variation of each map."""
        return variation(samples)
