"""This library and its peers side by side: the same maps, number by number, and what they cost."""

from .agreement import Agreement, MapAgreement, agreement
from .compare import OURS, Comparison, compare

__all__ = ["OURS", "Agreement", "Comparison", "MapAgreement", "agreement", "compare"]
