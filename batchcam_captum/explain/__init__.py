"""Explain whole data sets: maps, scores and samples in a store that can be resumed, read, drawn and reported.

Needs the extra ``batchcam-captum[explain]``, whose packages are imported when they are needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .computing import Thumbnails
    from .figures import class_grid_figure, overlay_figure, side_by_side_figure
    from .layout import Status
    from .report import write_report
    from .run import explain_dataset
    from .sources import ImageFiles, list_csv, list_folder
    from .store import Store, StoredMaps, open_store
    from .writing import OtherSettingsError

__all__ = [
    "ImageFiles",
    "OtherSettingsError",
    "Status",
    "Store",
    "StoredMaps",
    "Thumbnails",
    "class_grid_figure",
    "explain_dataset",
    "list_csv",
    "list_folder",
    "open_store",
    "overlay_figure",
    "side_by_side_figure",
    "write_report",
]

_HOMES = {
    "ImageFiles": ".sources",
    "OtherSettingsError": ".writing",
    "Status": ".layout",
    "Store": ".store",
    "StoredMaps": ".store",
    "Thumbnails": ".computing",
    "class_grid_figure": ".figures",
    "explain_dataset": ".run",
    "list_csv": ".sources",
    "list_folder": ".sources",
    "open_store": ".store",
    "overlay_figure": ".figures",
    "side_by_side_figure": ".figures",
    "write_report": ".report",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
