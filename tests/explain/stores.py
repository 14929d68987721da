"""Small stores with known content."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from batchcam_captum.explain import Store, open_store
from batchcam_captum.explain.layout import Layout, Status
from batchcam_captum.explain.store import PROGRESS
from batchcam_captum.explain.writing import StoreWriter, writing

SETTINGS = {
    "model": "resnet18",
    "layer": "layer4",
    "method": "grad_cam",
    "targets": "predicted",
    "data": {"folder": "pictures", "size": 224},
}
ENVIRONMENT = {"device": "cpu", "torch": "2.15.0", "batchcam_captum": "0.1.0"}


def columns_of(
    samples: int,
    *,
    maps: tuple[int, int, int] = (1, 4, 4),
    classes: int = 3,
    thumbnail: tuple[int, int] | None = (16, 16),
    metrics: tuple[str, ...] = (),
    dtype: str = "float32",
    seed: int = 0,
) -> dict[str, Any]:
    """Return all columns of a store: random maps of the highest classes, brightest at a place that tells the label."""
    made = np.random.default_rng(seed)
    several, height, width = maps
    labels = np.arange(samples, dtype=np.int32) % classes
    scores = made.normal(size=(samples, classes)).astype(np.float32)
    scores[np.arange(samples), labels] += 2
    shares = np.exp(scores - scores.max(1, keepdims=True))
    values = made.normal(size=(samples, several, height, width)).astype(dtype)
    values.reshape(samples, several, -1)[np.arange(samples), :, labels % (height * width)] += 4
    found: dict[str, Any] = {
        "maps": values,
        "targets": np.argsort(-scores, axis=1, kind="stable")[:, :several].astype(np.int32),
        "scores": scores,
        "predictions": scores.argmax(1).astype(np.int32),
        "confidences": (shares.max(1) / shares.sum(1)).astype(np.float32),
        "labels": labels,
        "ids": np.array([str(index) for index in range(samples)], dtype=object),
        "paths": np.array([f"folder/{index:05d}.png" for index in range(samples)], dtype=object),
        "status": np.full(samples, Status.WRITTEN, np.uint8),
    }
    if thumbnail is not None:
        found["thumbnails"] = made.integers(0, 256, (samples, *thumbnail, 3), dtype=np.uint8)
    for name in metrics:
        found[name] = made.random((samples, several), dtype=np.float32)
    return found


def write_store(
    path: Path,
    columns: dict[str, Any],
    *,
    chunk: int = 16,
    class_names: tuple[str, ...] | None = ("cat", "dog", "ship"),
    settings: dict[str, Any] | None = None,
    metrics: tuple[str, ...] = (),
) -> Store:
    """Write columns of :func:`columns_of` as a store; it is not complete if a sample's status says that it is missing."""
    samples, *maps = columns["maps"].shape
    thumbnails = columns.get("thumbnails")
    layout = Layout(
        samples=samples,
        chunk=chunk,
        maps=(maps[0], maps[1], maps[2]),
        classes=columns["scores"].shape[1],
        dtype=str(columns["maps"].dtype),
        thumbnail=None if thumbnails is None else thumbnails.shape[1:3],
        metrics=metrics,
    )
    with opened(path, layout=layout, settings=settings or SETTINGS, class_names=class_names) as writer:
        write(writer, *range(layout.chunks), columns=columns)
    progress = json.loads((path / PROGRESS).read_text())
    for number in range(layout.chunks):
        if (columns["status"][layout.rows(number)] == Status.MISSING).any():
            del progress["chunks"][str(number)]
    (path / PROGRESS).write_text(json.dumps(progress))
    return open_store(path)


#: A store of three chunks.
SAMPLES, CHUNK = 22, 8
COLUMNS = columns_of(SAMPLES)
LAYOUT = Layout(samples=SAMPLES, chunk=CHUNK, maps=(1, 4, 4), classes=3, dtype="float32", thumbnail=(16, 16))


def opened(path: Path, **options: Any) -> AbstractContextManager[StoreWriter]:
    """Open a store for writing."""
    usual = {"settings": SETTINGS, "environment": ENVIRONMENT, "class_names": ("cat", "dog", "ship")}
    return writing(path, options.pop("layout", LAYOUT), **(usual | options))


def write(writer: StoreWriter, *chunks: int, columns: dict[str, Any] = COLUMNS) -> None:
    """Write chunks of columns."""
    for chunk in chunks:
        rows = writer.layout.rows(chunk)
        writer.write(chunk, {name: column[rows] for name, column in columns.items()})


def files(folder: Path) -> dict[str, bytes]:
    """Return name -> content of all files but locks."""
    found = (path for path in folder.rglob("*") if path.is_file() and "lock" not in path.name)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}
