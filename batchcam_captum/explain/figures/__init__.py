"""Figures of cams beside, over and around their images. Matplotlib is loaded when one is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...lazy import lazy_names

if TYPE_CHECKING:
    from .kinds import class_grid_figure, contour_figure, overlay_figure, side_by_side_figure
    from .of_store import store_figure

__all__ = ["class_grid_figure", "contour_figure", "overlay_figure", "side_by_side_figure", "store_figure"]

_HOMES = {
    "class_grid_figure": ".kinds",
    "contour_figure": ".kinds",
    "overlay_figure": ".kinds",
    "side_by_side_figure": ".kinds",
    "store_figure": ".of_store",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
