"""All that the page knows but for pictures and maps, as one dictionary of plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ...functional.overlay import colours
from ..layout import Status
from ..store import Store
from . import blocks
from .classes import class_maps, confusion, described, metric_table
from .embed import base64_text, number
from .samples import Plan, Samples

#: Of the maxima of the maps: with one scale for all, this one is drawn as 1.
PERCENTILE = 99
#: Damaged samples that are listed.
_LISTED = 1000


def content(store: Store, samples: Samples, planned: Plan) -> dict[str, Any]:
    """What the page's script reads.

    Args:
        store: complete or not.
        samples: of it.
        planned: how its maps are in the page.
    """
    classes = int(store.scores.shape[1])
    found = class_maps(samples, classes)
    known = (samples.labels >= 0) & (samples.predictions >= 0)
    alive = samples.peaks[:, 0][samples.alive]
    return {
        "counts": _counts(store, samples),
        "complete": store.complete,
        "settings": flat(store.settings),
        "environments": [flat(each) for each in store.about["environments"]],
        "classNames": None if store.class_names is None else list(store.class_names),
        "accuracy": number((samples.labels == samples.predictions)[known].mean()) if known.any() else None,
        "maps": {
            "size": list(planned.size),
            "stored": list(store.maps.shape[2:]),
            "shown": planned.maps,
            "of": int(store.maps.shape[1]),
        },
        "thumbnail": _thumbnail(store, planned),
        "block": blocks.SAMPLES,
        "scale": {
            "percentile": PERCENTILE,
            "value": number(np.percentile(alive, PERCENTILE)) if len(alive) else None,
        },
        "colours": _colours(),
        "columns": _columns(samples) | {"nearest": base64_text(found.nearest)},
        "ids": None if samples.ids == [str(each) for each in samples.positions.tolist()] else samples.ids,
        "paths": samples.paths if any(samples.paths) else None,
        "classMaps": described(found, samples),
        "mapConfusion": confusion(found.own, found.nearest) if (found.nearest >= 0).any() else [],
        "confusion": confusion(np.where(known, samples.labels, -1), samples.predictions),
        "metrics": {name: metric_table(values, found.own) for name, values in samples.metrics.items()},
        "damaged": _damaged(store),
    }


def _counts(store: Store, samples: Samples) -> dict[str, int]:
    status = np.asarray(store.status[:])
    return {
        "samples": len(store),
        "written": len(samples.positions),
        "damaged": int((status == Status.DAMAGED).sum()),
        "missing": int((status == Status.MISSING).sum()),
        "labelled": int((samples.labels >= 0).sum()),
        "dead": int(samples.dead.sum()),
        "notFinite": int(np.isnan(samples.peaks[:, 0]).sum()),
        "unscored": int((samples.predictions < 0).sum()),
        "classes": int(store.scores.shape[1]),
    }


def _columns(samples: Samples) -> dict[str, Any]:
    """Name -> base64 of its numbers."""
    return {
        "positions": base64_text(samples.positions),
        "labels": base64_text(samples.labels),
        "predictions": base64_text(samples.predictions),
        "confidences": base64_text(samples.confidences),
        "targets": base64_text(samples.targets),
        "peaks": base64_text(samples.peaks),
        "topClasses": base64_text(samples.top_classes),
        "topScores": base64_text(samples.top_scores),
        "logSums": base64_text(samples.log_sums),
        "metrics": {name: base64_text(values) for name, values in samples.metrics.items()},
    }


def _thumbnail(store: Store, planned: Plan) -> dict[str, Any] | None:
    if planned.picture is None or store.thumbnails is None:
        return None
    return {
        "size": list(planned.picture),
        "stored": list(store.thumbnails.shape[1:3]),
        "tile": list(blocks.tile_size(*planned.picture)),
    }


def _colours() -> str:
    """256 colours from 0 to 1, three bytes each."""
    table = colours(torch.linspace(0, 1, 256).reshape(1, 1, 1, 256))[0, :, 0].T
    return base64_text((table * 255).round().to(torch.uint8).numpy())


def _damaged(store: Store) -> dict[str, Any]:
    positions = np.flatnonzero(np.asarray(store.status[:]) == Status.DAMAGED)
    listed = positions[:_LISTED]
    names = ("ids", "paths", "problems")
    columns = {
        name: np.asarray(getattr(store, name)[:], dtype=object)[listed] for name in names if len(listed)
    }
    return {
        "count": len(positions),
        "rows": [
            {"position": int(position), **{name: str(column[row]) for name, column in columns.items()}}
            for row, position in enumerate(listed)
        ],
    }


def flat(values: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    """[dotted name, value] of settings and those inside of them, as text."""
    found: list[list[str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            found += flat(value, f"{prefix}{key}.")
        else:
            found.append([f"{prefix}{key}", _text(value)])
    return found


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list | tuple):
        return ", ".join(_text(each) for each in value)
    return str(value)
