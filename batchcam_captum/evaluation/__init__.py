"""Measuring and showing cams."""

from .cams import CamReport, evaluate_cams
from .figures import map_grid

__all__ = ["CamReport", "evaluate_cams", "map_grid"]
