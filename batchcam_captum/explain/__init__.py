"""Whole data sets: maps, scores and samples into a store that can be gone on with, read, looked at and reported.

Needs what ``batchcam-captum[explain]`` installs; each is loaded when it is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .layout import Status
    from .run import explain_dataset
    from .store import Store, StoredMaps, open_store
    from .writing import OtherSettingsError

__all__ = ["OtherSettingsError", "Status", "Store", "StoredMaps", "explain_dataset", "open_store"]

_HOMES = {
    "OtherSettingsError": ".writing",
    "Status": ".layout",
    "Store": ".store",
    "StoredMaps": ".store",
    "explain_dataset": ".run",
    "open_store": ".store",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
