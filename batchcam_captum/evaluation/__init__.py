"""Measuring and showing cams.

The names load on first use, so that what one of them needs (torchmetrics, matplotlib) is not needed by the others.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
    "CamEntropy": ".metrics",
    "CamMetric": ".metrics",
    "CamReport": ".cams",
    "ClassCoherence": ".metrics",
    "DeadFraction": ".metrics",
    "DeletionAUC": ".metrics",
    "Diagnosis": ".diagnostics",
    "EnergyPointingGame": ".metrics",
    "Infidelity": ".metrics",
    "InsertionAUC": ".metrics",
    "MaskIoU": ".metrics",
    "MaxSensitivity": ".metrics",
    "MeanMetric": ".metrics",
    "MeanOverSamples": ".metrics",
    "NearestPrototypeAccuracy": ".metrics",
    "PointingGame": ".metrics",
    "PrototypeCosine": ".metrics",
    "PrototypeDistance": ".metrics",
    "RankAccuracy": ".metrics",
    "Road": ".metrics",
    "Samples": ".metrics",
    "ShortcutReliance": ".metrics",
    "Sparsity": ".metrics",
    "StreamingMetric": ".metrics",
    "WrongReasonRate": ".metrics",
    "diagnose": ".diagnostics",
    "evaluate_cams": ".cams",
    "map_grid": ".figures",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module (PEP 562)."""
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = globals()[name] = getattr(import_module(home, __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
