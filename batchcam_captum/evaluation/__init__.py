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
        EnergyPointingGame,
        MaskIoU,
        MeanOverSamples,
        NearestPrototypeAccuracy,
        PointingGame,
        PrototypeCosine,
        PrototypeDistance,
        RankAccuracy,
        ShortcutReliance,
        Sparsity,
        WrongReasonRate,
    )

__all__ = [
    "CamEntropy",
    "CamMetric",
    "CamReport",
    "ClassCoherence",
    "DeadFraction",
    "Diagnosis",
    "EnergyPointingGame",
    "MaskIoU",
    "MeanOverSamples",
    "NearestPrototypeAccuracy",
    "PointingGame",
    "PrototypeCosine",
    "PrototypeDistance",
    "RankAccuracy",
    "ShortcutReliance",
    "Sparsity",
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
    "Diagnosis": ".diagnostics",
    "EnergyPointingGame": ".metrics",
    "MaskIoU": ".metrics",
    "MeanOverSamples": ".metrics",
    "NearestPrototypeAccuracy": ".metrics",
    "PointingGame": ".metrics",
    "PrototypeCosine": ".metrics",
    "PrototypeDistance": ".metrics",
    "RankAccuracy": ".metrics",
    "ShortcutReliance": ".metrics",
    "Sparsity": ".metrics",
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
