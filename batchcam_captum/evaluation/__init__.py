"""Measure and show cams. Names load on first use, so torchmetrics and matplotlib are needed only by what uses them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .cams import CamReport, evaluate_cams
    from .diagnosis import ClassDiagnosis, Diagnosis, Mistakes, diagnose
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
        NearestPrototypeAccuracy,
        PointingGame,
        PrototypeCosine,
        PrototypeDistance,
        RankAccuracy,
        Road,
        ShortcutReliance,
        Sparsity,
        WrongReasonRate,
    )

_HOMES = {
    "CamReport": ".cams",
    "ClassDiagnosis": ".diagnosis",
    "Diagnosis": ".diagnosis",
    "Mistakes": ".diagnosis",
    "diagnose": ".diagnosis",
    "evaluate_cams": ".cams",
    "map_grid": ".figures",
}

__all__ = [
    "CamEntropy",
    "CamMetric",
    "CamReport",
    "ClassCoherence",
    "ClassDiagnosis",
    "DeadFraction",
    "DeletionAUC",
    "Diagnosis",
    "EnergyPointingGame",
    "Infidelity",
    "InsertionAUC",
    "MaskIoU",
    "MaxSensitivity",
    "Mistakes",
    "NearestPrototypeAccuracy",
    "PointingGame",
    "PrototypeCosine",
    "PrototypeDistance",
    "RankAccuracy",
    "Road",
    "ShortcutReliance",
    "Sparsity",
    "WrongReasonRate",
    "diagnose",
    "evaluate_cams",
    "map_grid",
]

_HOMES |= {name: ".metrics" for name in __all__ if name not in _HOMES}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
