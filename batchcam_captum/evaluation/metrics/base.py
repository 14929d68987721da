"""What the metrics of cams have in common: one ``update`` for all of them, and means over samples."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ...functional import ValueChecks
from ...functional.class_means import check_labels
from ...functional.metrics.common import check_metric_cams
from .streaming import MeanMetric, StreamingMetric


class Samples(NamedTuple):
    """What a metric is given of one batch."""

    cams: Tensor  #: (N, 1, *spatial), signed
    labels: Tensor | None  #: (N,), or (N, K) soft labels
    masks: Tensor | None  #: (N, 1, *spatial), where the evidence should be
    shortcuts: Tensor | None  #: (N, 1, *spatial), where it should not be
    counted: Tensor  #: (N,) booleans, false where the label is ignored


#: What a metric asks for when it misses something.
_MISSING = {
    "labels": "class indices (N,)",
    "masks": "masks (N, 1, *spatial) of where the evidence should be",
    "shortcuts": "masks (N, 1, *spatial) of the shortcuts",
}


class CamMetric(StreamingMetric):
    """A metric of cams that streams over batches, see :class:`~batchcam_captum.evaluation.metrics.StreamingMetric`.

    Every subclass is updated in the same way, and takes of it what it needs.

    Args:
        *settings: see :class:`~batchcam_captum.evaluation.metrics.StreamingMetric`.
        ignore_index: samples whose integer label is this are left out, whatever the metric looks at.
        **kwargs: of ``torchmetrics.Metric``.
    """

    #: What ``update`` has to be given beside the cams.
    needs: ClassVar[tuple[str, ...]] = ()

    def update(
        self,
        cams: Tensor,
        labels: Tensor | None = None,
        *,
        masks: Tensor | None = None,
        shortcuts: Tensor | None = None,
    ) -> None:
        """Add a batch.

        Args:
            cams: (N, 1, *spatial), raw and signed.
            labels: (N,) class indices, or, for what compares with prototypes by a distance, (N, K) soft labels.
            masks: (N, 1, *spatial) in [0, 1] or booleans, where the evidence should be; all zero: no annotation.
            shortcuts: (N, 1, *spatial) in [0, 1] or booleans, where the evidence should not be; all zero: no shortcut.

        Raises:
            ValueError: something does not fit, or this metric needs what was not given.
            TypeError: cams, labels or masks of a wrong kind.
        """
        check_metric_cams(cams)
        if cams.device != self.device:
            raise ValueError(
                f"cams: expected them on the metric's device {self.device}, got {cams.device}; call metric.to(cams.device)"
            )
        counted = torch.ones(cams.shape[0], dtype=torch.bool, device=cams.device)
        if labels is not None:
            check_labels(labels, cams.shape[0])
            counted = (labels != 0).any(1) if labels.dim() == 2 else labels.long() != self.ignore_index
        samples = Samples(cams, labels, masks, shortcuts, counted)
        for name in self.needs:
            if getattr(samples, name) is None:
                raise ValueError(
                    f"{name}: expected {_MISSING[name]}, got none; {type(self).__name__} is not defined without, pass "
                    f"update(…, {name}={name})"
                )
        checks = ValueChecks()
        self._add(samples, checks)
        self._note_failures(checks)

    def _add(self, samples: Samples, checks: ValueChecks) -> None:
        raise NotImplementedError(f"{type(self).__name__} has to implement _add")


class MeanOverSamples(CamMetric, MeanMetric):
    """The mean of a number a sample, over the samples that have one.

    A subclass implements :meth:`values`.

    Args:
        *settings: see :class:`CamMetric`.
        ignore_index: see :class:`CamMetric`.
        **kwargs: of ``torchmetrics.Metric``.
    """

    def values(self, samples: Samples, checks: ValueChecks) -> Tensor:
        """(N,), NaN where a sample has no value.

        Args:
            samples: the batch.
            checks: where checks of values go.
        """
        raise NotImplementedError(f"{type(self).__name__} has to implement values")

    def _add(self, samples: Samples, checks: ValueChecks) -> None:
        self._add_values(self.values(samples, checks).detach())
