"""What can be said of cams alone, as streaming metrics."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...functional import ValueChecks, dead_cams, entropy, sparsity
from ...functional.metrics.common import finite, undefined
from .base import MeanOverSamples, Samples


class DeadFraction(MeanOverSamples):
    """Share of the cams that are dead, in [0, 1]; smaller is better. An all-zero cam is dead.

    Belongs beside every other metric: a dead cam is stable, far from every shortcut, and near to a dark prototype. See
    :func:`~batchcam_captum.functional.dead_cams`.

    Args:
        ignore_index: samples with this label are left out.
        **kwargs: of ``torchmetrics.Metric``.
    """

    higher_is_better = False

    def __init__(self, *, ignore_index: int = -100, **kwargs: Any) -> None:
        super().__init__(ignore_index=ignore_index, **kwargs)

    def values(self, samples: Samples, checks: ValueChecks) -> Tensor:
        """1 where dead, else 0: (N,)."""
        cams = finite(samples.cams, samples.counted, checks)
        return undefined(dead_cams(cams).float(), samples.counted)


class Sparsity(MeanOverSamples):
    """Mean Gini index of the cams, in [0, 1): 0 is flat, near 1 is a few pixels; neither end is good by itself.

    A dead cam counts as flat: 0. See :func:`~batchcam_captum.functional.sparsity`.

    Args:
        ignore_index: samples with this label are left out.
        **kwargs: of ``torchmetrics.Metric``.
    """

    def __init__(self, *, ignore_index: int = -100, **kwargs: Any) -> None:
        super().__init__(ignore_index=ignore_index, **kwargs)

    def values(self, samples: Samples, checks: ValueChecks) -> Tensor:
        """Gini indices (N,)."""
        return sparsity(samples.cams, counted=samples.counted, checks=checks)


class CamEntropy(MeanOverSamples):
    """Mean entropy of the cams as distributions over their pixels: 0 is one pixel; neither end is good by itself.

    A dead cam counts as flat, the largest value. See :func:`~batchcam_captum.functional.entropy`.

    Args:
        relative: in [0, 1], divided by what a flat map has, rather than in nats.
        ignore_index: samples with this label are left out.
        **kwargs: of ``torchmetrics.Metric``.
    """

    plot_upper_bound = None

    def __init__(self, *, relative: bool = True, ignore_index: int = -100, **kwargs: Any) -> None:
        super().__init__(relative, ignore_index=ignore_index, **kwargs)
        self.relative = relative

    def values(self, samples: Samples, checks: ValueChecks) -> Tensor:
        """Entropies (N,)."""
        return entropy(samples.cams, relative=self.relative, counted=samples.counted, checks=checks)
