"""Losses that compare cams with masks of where the evidence should be."""

from __future__ import annotations

from torch import Tensor

from ..functional import Samples, l1_distance, l2_distance
from ..functional.losses.masks import energy, mask_samples, squares_outside
from .base import LOSSES, Batch, CamLoss, RectifiedLoss


def against_masks(loss: CamLoss, batch: Batch) -> Samples:
    """Check cams and masks, and prepare both for a loss."""
    if batch.masks is None:
        raise ValueError(
            "masks: expected masks (N, 1, *spatial) of where the evidence should be, got none; pass masks= to the loss, or to "
            "the regularizer"
        )
    return mask_samples(
        batch.cams,
        batch.masks,
        counted=loss.counted(batch._replace(sample_weights=None)),
        sample_weights=batch.sample_weights,
        checks=loss.checks,
        **loss.preparation(),
    )


class AgainstMasks(RectifiedLoss):
    """A loss that compares rectified cams with the masks of the batch."""

    def samples(self, batch: Batch) -> Samples:
        """Check cams and masks, and prepare both."""
        return against_masks(self, batch)


@LOSSES.register("energy")
class EnergyLoss(AgainstMasks):
    """The module of :func:`~batchcam_captum.functional.energy_loss`; the masks come with the batch.

    Example:
        >>> import torch
        >>> from batchcam_captum import EnergyLoss
        >>> cams, masks = torch.ones(2, 1, 6, 6), torch.zeros(2, 1, 24, 24)
        >>> masks[0, :, :, :12] = 1  # the left half; the second sample is not annotated
        >>> EnergyLoss()(cams, torch.tensor([3, 1]), masks=masks)
        tensor(0.5000)
    """

    def per_sample(self, samples: Samples) -> Tensor:
        """Return the share outside the mask."""
        return energy(samples)


@LOSSES.register("rrr_cam")
class RrrCamLoss(AgainstMasks):
    """The module of :func:`~batchcam_captum.functional.rrr_cam_loss`; the masks come with the batch.

    Example:
        >>> import torch
        >>> from batchcam_captum import RrrCamLoss
        >>> cams, masks = torch.ones(2, 1, 6, 6), torch.zeros(2, 1, 24, 24)
        >>> masks[0, :, :, :12] = 1  # the left half; the second sample is not annotated
        >>> RrrCamLoss()(cams, torch.tensor([3, 1]), masks=masks)
        tensor(18.)
    """

    def per_sample(self, samples: Samples) -> Tensor:
        """Return the sum of squares outside the mask."""
        return squares_outside(samples)


@LOSSES.register("gradia")
class GradiaLoss(AgainstMasks):
    """The module of :func:`~batchcam_captum.functional.gradia_loss`; the masks come with the batch."""

    def per_sample(self, samples: Samples) -> Tensor:
        """Return the mean absolute difference."""
        return samples.distances(l1_distance)


@LOSSES.register("hint")
class HintLoss(AgainstMasks):
    """The module of :func:`~batchcam_captum.functional.hint_loss`; the masks come with the batch."""

    def per_sample(self, samples: Samples) -> Tensor:
        """Return the mean squared difference."""
        return samples.distances(l2_distance)
