"""This library and its peers side by side: the same maps, number by number, and what they cost."""

from .agreement import Agreement, MapAgreement, agreement

__all__ = ["Agreement", "MapAgreement", "agreement"]
