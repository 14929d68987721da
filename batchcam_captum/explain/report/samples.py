"""One pass over a store: what the page tells of each sample, and its pictures on disk for the time being."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import isqrt
from typing import IO, Any

import numpy as np
import torch

from ...functional import prepare, resize
from ..layout import Status
from ..store import Store
from . import blocks
from .pictures import resized

#: Pixels a side of a map in the page at most, maps a sample, and about how many bytes of first maps and of further ones.
SIDE, MAPS, _BYTES = 32, 10, 16 * 2**20
_LEAST_SIDE = 8
#: Classes with the highest scores that are told.
TOP = 5


@dataclass(frozen=True)
class Plan:
    """What of the store's maps goes into the page."""

    size: tuple[int, int]  #: (h, w) of a map there
    maps: int  #: m a sample, the first ones by :func:`_order`
    picture: tuple[int, int] | None = None  #: (height, width) of a picture there; None: there are none

    def bytes_a_sample(self, metrics: int) -> int:
        """Of a sample's numbers and maps as base64."""
        numbers = 6 + 2 * self.maps + 2 * TOP + metrics
        return 4 * (4 * numbers + self.maps * self.size[0] * self.size[1]) // 3


def plan(store: Store, count: int) -> Plan:
    """Keep the page small, however many samples and maps there are."""
    _, per_sample, height, width = store.maps.shape
    side = min(SIDE, max(_LEAST_SIDE, isqrt(_BYTES // max(1, count))))
    size = min(height, side), min(width, side)
    further = _BYTES // (max(1, count) * size[0] * size[1])
    return Plan(size, max(1, min(per_sample, MAPS, 1 + further)))


@dataclass
class Samples:
    """The n written samples of a store, in its order; m maps each, of which the first is the one that stands for the sample."""

    positions: np.ndarray[Any, Any]  #: (n,) in the store
    labels: np.ndarray[Any, Any]  #: (n,) int32, −1 where not known
    predictions: np.ndarray[Any, Any]  #: (n,) int32
    confidences: np.ndarray[Any, Any]  #: (n,) float32
    targets: np.ndarray[Any, Any]  #: (n, m) int32
    peaks: np.ndarray[
        Any, Any
    ]  #: (n, m) float32: max relu(C); 0 where dead, NaN where the map has numbers that are not finite
    maps: np.ndarray[Any, Any]  #: (n, h, w) float16: the first ones, relu(C)/max, resized; zero where dead
    top_classes: np.ndarray[Any, Any]  #: (n, t) int32: the classes with the highest scores
    top_scores: np.ndarray[Any, Any]  #: (n, t) float32
    log_sums: np.ndarray[Any, Any]  #: (n,) float32: log Σ exp of all scores
    metrics: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)  #: (n,) float32, of the first maps
    ids: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    @property
    def dead(self) -> np.ndarray[Any, Any]:
        """(n,) booleans."""
        return np.asarray(self.peaks[:, 0] == 0)

    @property
    def alive(self) -> np.ndarray[Any, Any]:
        """(n,) booleans: neither dead nor without finite numbers."""
        return np.asarray(self.peaks[:, 0] > 0)


def gather(
    store: Store,
    planned: Plan,
    spool: IO[str],
    *,
    watched: Callable[[range], Any] = iter,
) -> Samples:
    """Read the store once, a chunk at a time.

    Args:
        store: complete or not.
        planned: see :func:`plan`.
        spool: takes the blocks, two lines each, see :func:`.blocks.block`.
        watched: goes round the chunks, as ``tqdm`` does.

    Returns:
        The samples. Their pictures, and all maps but the first, are in ``spool`` only.
    """
    parts: list[dict[str, Any]] = []
    waiting: list[tuple[Any, Any]] = []  # less than a block
    status = np.asarray(store.status[:])
    step = store.maps.chunks[0]
    for begin in watched(range(0, len(store), step)):
        rows = slice(begin, begin + step)
        keep = np.flatnonzero(status[rows] == Status.WRITTEN)
        if not len(keep):
            continue
        part, maps = _read(store, rows, keep, planned)
        parts.append(part)
        pictures = None
        if planned.picture is not None and store.thumbnails is not None:
            pictures = resized(np.asarray(store.thumbnails[rows])[keep], planned.picture)
        waiting = _spool([*waiting, (pictures, maps)], spool)
    for pictures, maps in waiting:
        spool.write(blocks.block(pictures, maps) + "\n")
    return _joined(parts, planned, list(store.metrics))


def _spool(waiting: list[tuple[Any, Any]], spool: IO[str]) -> list[tuple[Any, Any]]:
    """Write whole blocks; return the rest."""
    pictures = None if waiting[0][0] is None else np.concatenate([each for each, _ in waiting])
    maps = np.concatenate([each for _, each in waiting])
    whole = len(maps) - len(maps) % blocks.SAMPLES
    for begin in range(0, whole, blocks.SAMPLES):
        rows = slice(begin, begin + blocks.SAMPLES)
        spool.write(blocks.block(None if pictures is None else pictures[rows], maps[rows]) + "\n")
    return [(None if pictures is None else pictures[whole:], maps[whole:])] if whole < len(maps) else []


def _read(
    store: Store, rows: slice, keep: np.ndarray[Any, Any], planned: Plan
) -> tuple[dict[str, Any], np.ndarray[Any, Any]]:
    """Columns of a chunk's written samples, and their maps (n, m, h, w) uint8."""
    predictions, scores = np.asarray(store.predictions[rows])[keep], np.asarray(store.scores[rows])[keep]
    targets = np.asarray(store.targets[rows])[keep]
    order = _order(targets, predictions, scores)[:, : planned.maps]
    chosen = np.take_along_axis(np.asarray(store.maps[rows])[keep], order[:, :, None, None], axis=1)
    maps, peaks = _prepared(chosen, planned.size)
    held = torch.from_numpy(scores)
    top = held.topk(min(TOP, scores.shape[1]), dim=1)
    part: dict[str, Any] = {
        "positions": (np.arange(len(store))[rows][keep]).astype(np.int32),
        "labels": np.asarray(store.labels[rows])[keep],
        "predictions": predictions,
        "confidences": np.asarray(store.confidences[rows])[keep],
        "targets": np.take_along_axis(targets, order, axis=1),
        "peaks": peaks,
        "maps": maps[:, 0].astype(np.float16),
        "top_classes": top.indices.numpy().astype(np.int32),
        "top_scores": top.values.numpy(),
        "log_sums": held.logsumexp(1).numpy(),
        "ids": [str(each) for each in np.asarray(store.ids[rows], dtype=object)[keep]],
        "paths": [str(each) for each in np.asarray(store.paths[rows], dtype=object)[keep]],
    }
    for name, array in store.metrics.items():
        part[f"metric {name}"] = np.take_along_axis(np.asarray(array[rows])[keep], order[:, :1], axis=1)[:, 0]
    return part, np.rint(maps * 255).astype(np.uint8)


def _order(
    targets: np.ndarray[Any, Any], predictions: np.ndarray[Any, Any], scores: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """(n, M): a sample's maps from that of the predicted class, or else the first, on by falling scores."""
    own = np.take_along_axis(scores, np.clip(targets, 0, scores.shape[1] - 1), axis=1)
    keys = np.where((targets < 0) | np.isnan(own), -np.inf, own)
    predicted = targets == predictions[:, None]
    first = np.where(predicted.any(1), predicted.argmax(1), 0)
    keys[np.arange(len(keys)), first] = np.inf
    return np.argsort(-keys, axis=1, kind="stable")


def _prepared(
    maps: np.ndarray[Any, Any], size: tuple[int, int]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Signed (n, m, h, w) -> relu(C)/max at the page's size, and max relu(C), (n, m)."""
    count, several, *spatial = maps.shape
    cams = torch.from_numpy(maps.reshape(-1, 1, *spatial).astype(np.float32))
    finite = cams.isfinite().flatten(1).all(1)
    cams = cams.masked_fill(~finite[:, None, None, None], 0)
    ready = prepare(cams)
    peaks = cams.amax((1, 2, 3)).masked_fill(ready.dead, 0).masked_fill(~finite, float("nan"))
    small = resize(ready.maps, size, "area").clamp(0, 1)
    return small.reshape(count, several, *size).numpy(), peaks.reshape(count, several).numpy()


def _joined(parts: list[dict[str, Any]], planned: Plan, metrics: list[str]) -> Samples:
    if not parts:
        parts = [_nothing(planned, metrics)]
    columns: dict[str, Any] = {}
    for name in list(parts[0]):
        pieces: Iterator[Any] = (part.pop(name) for part in parts)
        if name in ("ids", "paths"):
            columns[name] = [each for piece in pieces for each in piece]
        else:
            columns[name] = np.concatenate(list(pieces))
    found = {name: columns.pop(f"metric {name}") for name in metrics}
    return Samples(**columns, metrics=found)


def _nothing(planned: Plan, metrics: list[str]) -> dict[str, Any]:
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "positions": ((), np.int32),
        "labels": ((), np.int32),
        "predictions": ((), np.int32),
        "confidences": ((), np.float32),
        "targets": ((planned.maps,), np.int32),
        "peaks": ((planned.maps,), np.float32),
        "maps": (planned.size, np.float16),
        "top_classes": ((TOP,), np.int32),
        "top_scores": ((TOP,), np.float32),
        "log_sums": ((), np.float32),
        **{f"metric {name}": ((), np.float32) for name in metrics},
    }
    return {name: np.zeros((0, *shape), dtype) for name, (shape, dtype) in shapes.items()} | {
        "ids": [],
        "paths": [],
    }
