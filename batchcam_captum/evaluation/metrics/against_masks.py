"""Cams against masks, as streaming metrics.

How a cam and a mask are brought to one size, and what a mask without a pixel means, is said in
:mod:`batchcam_captum.functional.metrics.masks`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from ...functional import (
    MaskResolution,
    ValueChecks,
    energy_in_mask,
    mask_iou,
    pointing_game,
    rank_accuracy,
    shortcut_share,
    wrong_reason,
)
from ...functional.losses.comparison import check_resolution
from ...functional.metrics.masks import check_threshold, check_tolerance
from .base import MeanOverSamples, Samples


class _AgainstMasks(MeanOverSamples):
    """Mean of a function of cams and masks."""

    needs: ClassVar[tuple[str, ...]] = ("masks",)
    #: (cams, masks, *, resolution, counted, checks, **options) -> (N,)
    function: ClassVar[Callable[..., Tensor]]

    def __init__(
        self,
        *settings: object,
        resolution: MaskResolution = "mask",
        ignore_index: int = -100,
        **kwargs: Any,
    ) -> None:
        check_resolution(resolution, MaskResolution)
        super().__init__(resolution, *settings, ignore_index=ignore_index, **kwargs)
        self.resolution = resolution

    def _options(self) -> dict[str, Any]:
        """What the function takes beside."""
        return {}

    def values(self, samples: Samples, checks: ValueChecks) -> Tensor:
        """(N,), NaN for an empty mask."""
        return self.function(
            samples.cams,
            getattr(samples, self.needs[0]),
            resolution=self.resolution,
            counted=samples.counted,
            checks=checks,
            **self._options(),
        )


class _WithoutSettings(_AgainstMasks):
    """Mean of a function that takes no more than every metric against masks does."""

    def __init__(
        self, *, resolution: MaskResolution = "mask", ignore_index: int = -100, **kwargs: Any
    ) -> None:
        super().__init__(resolution=resolution, ignore_index=ignore_index, **kwargs)


class EnergyPointingGame(_WithoutSettings):
    """Mean share of the positive evidence inside the mask, in [0, 1]; larger is better. A dead cam gets 0, a flat one the area.

    Samples with an empty mask are left out. See :func:`~batchcam_captum.functional.energy_in_mask`.

    Args:
        resolution: ``"mask"`` compares at the masks' size, ``"map"`` at the cams'.
        ignore_index: samples with this label are left out.
        **kwargs: of ``torchmetrics.Metric``.

    Raises:
        ValueError: an unknown resolution.

    Example:
        >>> import torch
        >>> metric = EnergyPointingGame()
        >>> metric.update(torch.tensor([[[3.0, 1.0, -2.0]]]), masks=torch.tensor([[[1, 0, 0]]]))
        >>> metric.compute()
        tensor(0.7500)
    """

    higher_is_better = True
    function = staticmethod(energy_in_mask)


class WrongReasonRate(_WithoutSettings):
    """Mean share of the positive evidence outside the mask, in [0, 1]; smaller is better. A dead cam gets 1.

    Samples with an empty mask are left out. See :func:`~batchcam_captum.functional.wrong_reason`; of a shortcut,
    :class:`ShortcutReliance`.

    Args:
        resolution: see :class:`EnergyPointingGame`.
        ignore_index: samples with this label are left out.
        **kwargs: of ``torchmetrics.Metric``.

    Raises:
        ValueError: an unknown resolution.
    """

    higher_is_better = False
    function = staticmethod(wrong_reason)


class ShortcutReliance(_AgainstMasks):
    """Mean share of the positive evidence on the shortcut, in [0, 1]; smaller is better. A dead cam counts as a flat one.

    Samples without a shortcut are left out. See :func:`~batchcam_captum.functional.shortcut_share`.

    Args:
        relative: divide by the mean area of the shortcuts: how many times as much as chance, at least 0; 1 is chance.
        resolution: see :class:`EnergyPointingGame`.
        ignore_index: samples with this label are left out.
        **kwargs: of ``torchmetrics.Metric``.

    Raises:
        ValueError: an unknown resolution.
    """

    higher_is_better = False
    plot_upper_bound = None
    needs: ClassVar[tuple[str, ...]] = ("shortcuts",)

    area: Tensor

    def __init__(
        self,
        *,
        relative: bool = False,
        resolution: MaskResolution = "mask",
        ignore_index: int = -100,
        **kwargs: Any,
    ) -> None:
        super().__init__(relative, resolution=resolution, ignore_index=ignore_index, **kwargs)
        self.relative = relative
        self._add_sum("area")

    def values(self, samples: Samples, checks: ValueChecks) -> Tensor:
        """Shares (N,)."""
        assert samples.shortcuts is not None
        share, area = shortcut_share(
            samples.cams,
            samples.shortcuts,
            resolution=self.resolution,
            counted=samples.counted,
            checks=checks,
        )
        self.area = self.area + area.to(self.area.dtype).nansum()
        return share

    def compute(self) -> Tensor:
        """The mean share, or, where ``relative``, that divided by the mean area: a scalar in float32; NaN where there are none.

        Raises:
            ValueError: values that could not be looked at earlier were not what they should be, see :class:`CamMetric`.
        """
        if not self.relative:
            return super().compute()

        return (self.total / self.area).float()


class PointingGame(_AgainstMasks):
    """Share of the cams whose maximum lies in the mask, in [0, 1]; larger is better. A dead cam misses.

    Samples with an empty mask are left out. Ties count in part, see :func:`~batchcam_captum.functional.pointing_game`.

    Args:
        tolerance: up to so many pixels from the mask still count as inside.
        resolution: see :class:`EnergyPointingGame`.
        ignore_index: samples with this label are left out.
        **kwargs: of ``torchmetrics.Metric``.

    Raises:
        ValueError: an unknown resolution.
    """

    higher_is_better = True
    function = staticmethod(pointing_game)

    def __init__(
        self,
        *,
        tolerance: int = 0,
        resolution: MaskResolution = "mask",
        ignore_index: int = -100,
        **kwargs: Any,
    ) -> None:
        check_tolerance(tolerance)
        super().__init__(tolerance, resolution=resolution, ignore_index=ignore_index, **kwargs)
        self.tolerance = tolerance

    def _options(self) -> dict[str, Any]:
        return {"tolerance": self.tolerance}


class MaskIoU(_AgainstMasks):
    """Mean intersection over union of the mask and the cam above a threshold, in [0, 1]; larger is better. A dead cam gets 0.

    Samples with an empty mask are left out. See :func:`~batchcam_captum.functional.mask_iou`.

    Args:
        threshold: in [0, 1), of the cam mapped to [0, 1].
        resolution: see :class:`EnergyPointingGame`.
        ignore_index: samples with this label are left out.
        **kwargs: of ``torchmetrics.Metric``.

    Raises:
        ValueError: an unknown resolution.
    """

    higher_is_better = True
    function = staticmethod(mask_iou)

    def __init__(
        self,
        *,
        threshold: float = 0.5,
        resolution: MaskResolution = "mask",
        ignore_index: int = -100,
        **kwargs: Any,
    ) -> None:
        check_threshold(threshold)
        super().__init__(threshold, resolution=resolution, ignore_index=ignore_index, **kwargs)
        self.threshold = threshold

    def _options(self) -> dict[str, Any]:
        return {"threshold": self.threshold}


class RankAccuracy(_WithoutSettings):
    """Mean share of the |mask| highest pixels that lie in the mask, in [0, 1]; larger is better. A dead cam gets 0.

    Samples with an empty mask are left out. See :func:`~batchcam_captum.functional.rank_accuracy`.

    Args:
        resolution: see :class:`EnergyPointingGame`.
        ignore_index: samples with this label are left out.
        **kwargs: of ``torchmetrics.Metric``.

    Raises:
        ValueError: an unknown resolution.
    """

    higher_is_better = True
    function = staticmethod(rank_accuracy)
