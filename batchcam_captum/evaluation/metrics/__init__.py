"""The metrics of ``functional`` as ``torchmetrics.Metric`` classes: streaming, and summed over the ranks of a process group.

All of them have one ``update(cams, labels, *, masks=None, shortcuts=None)``, so that they go into one ``MetricCollection``; but
those of faithfulness (:class:`InsertionAUC` and the like) ask the model, and take ``update(images, cams, targets)``. The
names load on first use, and torchmetrics with them: it is the extra ``metrics`` of this package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...lazy import lazy_names

if TYPE_CHECKING:
    from .against_masks import (
        EnergyPointingGame,
        MaskIoU,
        PointingGame,
        RankAccuracy,
        ShortcutReliance,
        WrongReasonRate,
    )
    from .against_prototypes import NearestPrototypeAccuracy, PrototypeCosine, PrototypeDistance
    from .base import CamMetric, MeanOverSamples, Samples
    from .coherence import ClassCoherence
    from .faithfulness import DeletionAUC, Infidelity, InsertionAUC, MaxSensitivity, Road
    from .of_maps import CamEntropy, DeadFraction, Sparsity
    from .streaming import MeanMetric, StreamingMetric

__all__ = [
    "CamEntropy",
    "CamMetric",
    "ClassCoherence",
    "DeadFraction",
    "DeletionAUC",
    "EnergyPointingGame",
    "Infidelity",
    "InsertionAUC",
    "MaskIoU",
    "MaxSensitivity",
    "MeanMetric",
    "MeanOverSamples",
    "NearestPrototypeAccuracy",
    "PointingGame",
    "PrototypeCosine",
    "PrototypeDistance",
    "RankAccuracy",
    "Road",
    "Samples",
    "ShortcutReliance",
    "Sparsity",
    "StreamingMetric",
    "WrongReasonRate",
]

_HOMES = {
    "CamEntropy": ".of_maps",
    "CamMetric": ".base",
    "ClassCoherence": ".coherence",
    "DeadFraction": ".of_maps",
    "DeletionAUC": ".faithfulness",
    "EnergyPointingGame": ".against_masks",
    "Infidelity": ".faithfulness",
    "InsertionAUC": ".faithfulness",
    "MaskIoU": ".against_masks",
    "MaxSensitivity": ".faithfulness",
    "MeanMetric": ".streaming",
    "MeanOverSamples": ".base",
    "NearestPrototypeAccuracy": ".against_prototypes",
    "PointingGame": ".against_masks",
    "PrototypeCosine": ".against_prototypes",
    "PrototypeDistance": ".against_prototypes",
    "RankAccuracy": ".against_masks",
    "Road": ".faithfulness",
    "Samples": ".base",
    "ShortcutReliance": ".against_masks",
    "Sparsity": ".of_maps",
    "StreamingMetric": ".streaming",
    "WrongReasonRate": ".against_masks",
}


__getattr__, __dir__ = lazy_names(__name__, _HOMES)
