"""This library and its peers side by side: the same maps, number by number, and what they cost."""

from .agreement import Agreement, MapAgreement, agreement
from .compare import compare
from .result import Comparison, Cost, Pair, Skipped

__all__ = [
    "Agreement",
    "Comparison",
    "Cost",
    "MapAgreement",
    "Pair",
    "Skipped",
    "agreement",
    "compare",
]
