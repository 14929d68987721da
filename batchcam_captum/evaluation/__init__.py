"""Measuring and showing cams.

The names load on first use, so that what one of them needs (torchmetrics, matplotlib) is not needed by the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .cams import CamReport, evaluate_cams
    from .diagnostics import Diagnosis, diagnose
    from .figures import map_grid
    from .metrics import (
        CamEntropy,
        CamMetric,
        ClassCoherence,
        DeadFraction,
        DeletionAUC,
        EnergyPointingGame,
        Infidelity,
        InsertionAUC,
        MaskIoU,
        MaxSensitivity,
        MeanMetric,
        MeanOverSamples,
        NearestPrototypeAccuracy,
        PointingGame,
        PrototypeCosine,
        PrototypeDistance,
        RankAccuracy,
        Road,
        Samples,
        ShortcutReliance,
        Sparsity,
        StreamingMetric,
        WrongReasonRate,
    )

__all__ = [
    "CamEntropy",
    "CamMetric",
    "CamReport",
    "ClassCoherence",
    "DeadFraction",
    "DeletionAUC",
    "Diagnosis",
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
    "diagnose",
    "evaluate_cams",
    "map_grid",
]

_HOMES = {
    "CamReport": ".cams",
    "Diagnosis": ".diagnostics",
    "diagnose": ".diagnostics",
    "evaluate_cams": ".cams",
    "map_grid": ".figures",
}
_HOMES |= {name: ".metrics" for name in __all__ if name not in _HOMES}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
