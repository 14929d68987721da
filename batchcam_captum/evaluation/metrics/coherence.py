"""How alike the cams of one class are, as a streaming metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from torch import Tensor

from ...functional import (
    CoherenceSums,
    ValueChecks,
    coherence_of,
    coherence_sums,
    no_autocast,
    prepare,
    resize,
)
from ...functional.metrics.common import check_whole, finite
from .base import CamMetric, Samples

Average = Literal["macro", "none"]


class ClassCoherence(CamMetric):
    """Mean cosine over all pairs of cams of one class, in [0, 1]; larger: more alike.

    A dead cam has cosine 0 with every other. Classes with fewer than two samples have no value. The sums that it keeps take K
    maps, not N. See :func:`~batchcam_captum.functional.class_coherence`.

    Args:
        num_classes: the number of classes, K.
        size: the spatial size at which cams are compared; rectified cams of another size are resized to it. Given beforehand, so
            that a rank that has seen nothing knows it too, and models with maps of several sizes can be compared.
        average: ``"macro"``: the mean over the classes that have a value; ``"none"``: (K,), NaN where there is none.
        ignore_index: samples with this label are left out.
        **kwargs: of ``torchmetrics.Metric``.

    Raises:
        ValueError: a number of classes, a size or an average that cannot be.
        TypeError: sides or a number of classes that are no integers.
    """

    higher_is_better = True
    needs = ("labels",)

    directions: Tensor
    squares: Tensor
    counts: Tensor

    def __init__(
        self,
        num_classes: int,
        size: Sequence[int],
        *,
        average: Average = "macro",
        ignore_index: int = -100,
        **kwargs: Any,
    ) -> None:
        check_whole("num_classes", num_classes, 1)
        if not isinstance(size, Sequence) or not 1 <= len(size) <= 3:
            raise ValueError(f"size: expected 1 to 3 sides in pixels, such as (7, 7), got {size!r}")
        for side in size:
            check_whole("size", side, 1)
        super().__init__(num_classes, tuple(size), average, ignore_index=ignore_index, **kwargs)
        if average not in get_args(Average):
            raise ValueError(f"average: expected 'macro' or 'none', got {average!r}")
        self.num_classes = num_classes
        self.size = tuple(size)
        self.average = average
        self._add_sum("directions", num_classes, *self.size)
        self._add_sum("squares", num_classes)
        self._add_sum("counts", num_classes)

    def _add(self, samples: Samples, checks: ValueChecks) -> None:
        assert samples.labels is not None
        cams = samples.cams
        if tuple(cams.shape[2:]) != self.size:
            # What is not positive is no evidence, and must not cancel any.
            with no_autocast(cams):
                cams = resize(prepare(finite(cams, samples.counted, checks)).maps, self.size)
        sums = coherence_sums(
            cams, samples.labels, self.num_classes, ignore_index=self.ignore_index, checks=checks
        )
        self.directions = self.directions + sums.directions.to(self.directions.dtype)
        self.squares = self.squares + sums.squares.to(self.squares.dtype)
        self.counts = self.counts + sums.counts.to(self.counts.dtype)

    def compute(self) -> Tensor:
        """A scalar, or (K,), in float32; NaN where no class has two samples.

        Raises:
            ValueError: values that could not be looked at earlier were not what they should be, see :class:`CamMetric`.
        """
        values = coherence_of(CoherenceSums(self.directions, self.squares, self.counts)).float()
        return values if self.average == "none" else values.nanmean()
