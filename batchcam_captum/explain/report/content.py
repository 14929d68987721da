"""What the page shows, read from a store: a record of each sample, a row of each class, and the summary."""

from __future__ import annotations

import base64
import io
import math
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ...functional import nearest_prototype, prepare, resize
from ...functional.overlay import colors
from ...optional import load
from ..store import Store

if TYPE_CHECKING:
    from pandas import DataFrame

Array = np.ndarray[Any, Any]
#: (label, prediction) -> number of samples, the most frequent first.
Pairs = dict[tuple[int, int], int]

#: Largest side of a map in the page, most maps per sample, and the bytes that all maps may have.
MAP_SIDE, MAPS, MAP_BYTES = 32, 10, 12e6
#: Pixels that all pictures may have, and the side length that they keep in any case.
PICTURE_PIXELS, PICTURE_SIDE = 50e6, 32
#: Samples whose maps and pictures are one part of the page; the first page of the gallery needs no more.
BLOCK = 64
#: With one scale for all maps, this percentile of their maxima is drawn as 1.
PERCENTILE = 99
#: Classes that a matrix of mistakes can show, mistakes listed instead, classes with the highest scores, damaged samples listed.
MATRIX_CLASSES, MISTAKES, TOP_SCORES, PROBLEMS = 20, 50, 5, 1000

#: Characters that are invisible, reverse the direction of text, or cannot be encoded.
_INVISIBLE = re.compile("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


def visible(text: Any) -> str:
    """Return text with its invisible characters spelled out as escapes."""
    return _INVISIBLE.sub(lambda found: f"\\u{ord(found[0]):04x}", str(text))


def read_content(store: Store, *, pictures: int | None, progress: bool) -> dict[str, Any]:
    """Read a store once, chunk by chunk.

    Args:
        store: Complete or not.
        pictures: See :func:`.write_report`.
        progress: Show a progress bar.

    Returns:
        The variables of ``template.html``.
    """
    table = store.frame()
    table["path"] = _without_common_folder(table["path"].tolist())
    table["name"] = [
        re.split(r"[\\/]", path)[-1] or own for path, own in zip(table["path"], table["id"], strict=True)
    ]
    for column in ("id", "path", "name", "problem"):
        table[column] = table[column].map(visible)
    written = table[table["status"] == "written"].copy()
    map_size, shown = _map_plan(store, len(written))
    picture_size = _picture_size(store, len(written), pictures)
    images, parts = [], []
    for rows, keep in _chunks(store, written.index.to_numpy(), progress):
        parts.append(_read_chunk(store, rows, keep, map_size, shown))
        if picture_size is not None and store.thumbnails is not None:
            images += _encoded(np.asarray(store.thumbnails[rows])[keep], picture_size)
    read = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
    for name in ["dead", "finite", *store.metrics]:
        written[name] = read.get(name, np.zeros(0))
    peaks = read.get("peaks", np.zeros((0, 1)))[:, 0]
    names = None if store.class_names is None else [visible(name) for name in store.class_names]
    by = "label" if written["label"].notna().any() else "prediction"
    first_maps = torch.from_numpy(read.get("first_maps", np.zeros((0, *map_size), np.float32)))
    known = written.loc[written["correct"].notna(), ["label", "prediction"]].value_counts()
    pairs = {(int(label), int(prediction)): int(count) for (label, prediction), count in known.items()}
    classes = _class_rows(written, by, first_maps, pairs, names, list(store.metrics))
    return {
        "summary": _summary(store, table, written),
        "metrics": {
            name: (int(written[name].count()), _mean(written[name]), _number(written[name].median()))
            for name in store.metrics
        },
        "classes": classes,
        "by": by,
        "options": {
            column: [
                (int(index), class_name(index, names), int(count))
                for index, count in written[column].fillna(-1).value_counts().sort_index().items()
            ]
            for column in ("label", "prediction", "nearest")
        },
        "mistakes": _mistakes(pairs, names) if by == "label" else None,
        "problems": table[table["status"] == "damaged"].head(PROBLEMS),
        "settings": _flat(store.settings),
        "environments": [_flat(each) for each in store.about["environments"]],
        "blocks": _blocks(read.get("maps", np.zeros(0)), images),
        "data": {
            "samples": _records(written, read, list(store.metrics)),
            "blockSize": BLOCK,
            "pictures": bool(images),
            "classNames": names,
            "metrics": list(store.metrics),
            "labeled": by == "label",
            "mapSize": map_size,
            "pictureSize": picture_size or store.maps.shape[2:],
            "top": _number(np.percentile(peaks[peaks > 0], PERCENTILE)) if (peaks > 0).any() else None,
            "colors": _base64(
                _byte_values(colors(torch.linspace(0, 1, 256).reshape(1, 1, 1, 256))[0, :, 0].T)
            ),
        },
    }


def _map_plan(store: Store, samples: int) -> tuple[tuple[int, int], int]:
    """Return the size of a map in the page and the number of maps per sample."""
    _, per_sample, height, width = store.maps.shape
    side = min(MAP_SIDE, max(8, math.isqrt(int(MAP_BYTES) // max(samples, 1))))
    size = min(height, side), min(width, side)
    affordable = int(MAP_BYTES) // (max(samples, 1) * size[0] * size[1])
    return size, max(1, min(per_sample, MAPS, affordable))


def _picture_size(store: Store, samples: int, asked: int | None) -> tuple[int, int] | None:
    """Return the (height, width) of the pictures; None if there are none."""
    if store.thumbnails is None or asked == 0:
        return None
    height, width = store.thumbnails.shape[1:3]
    side = max(PICTURE_SIDE, math.isqrt(int(PICTURE_PIXELS) // max(samples, 1))) if asked is None else asked
    share = min(1.0, side / max(height, width))
    return max(1, round(share * height)), max(1, round(share * width))


def _chunks(store: Store, positions: Array, progress: bool) -> Any:
    """Yield the rows of each chunk and which of them are written."""
    from tqdm.auto import tqdm

    step = store.maps.chunks[0]
    for begin in tqdm(
        range(0, len(store), step), desc="report", unit="chunk", leave=False, disable=not progress
    ):
        keep = positions[(positions >= begin) & (positions < begin + step)] - begin
        if len(keep):
            yield slice(begin, begin + step), keep


def _read_chunk(
    store: Store, rows: slice, keep: Array, size: tuple[int, int], shown: int
) -> dict[str, Array]:
    """Return the columns of a chunk's written samples, of which the first map stands for the sample."""
    scores = torch.from_numpy(np.asarray(store.scores[rows])[keep])
    predictions, targets = np.asarray(store.predictions[rows])[keep], np.asarray(store.targets[rows])[keep]
    order = _map_order(targets, predictions, scores.numpy())[:, :shown]
    maps = np.take_along_axis(np.asarray(store.maps[rows])[keep], order[:, :, None, None], axis=1)
    cams = torch.from_numpy(maps.reshape(-1, 1, *maps.shape[2:]).astype(np.float32))
    finite = cams.isfinite().flatten(1).all(1)
    cams = cams.masked_fill(~finite[:, None, None, None], 0)
    prepared = prepare(cams)
    peaks = cams.amax((1, 2, 3)).masked_fill(prepared.dead, 0).masked_fill(~finite, math.nan)
    small = resize(prepared.maps, size, "area").clamp(0, 1).reshape(len(keep), -1, *size)
    top = scores.topk(min(TOP_SCORES, scores.shape[1]), dim=1)
    columns = {
        "targets": np.take_along_axis(targets, order, axis=1),
        "peaks": peaks.reshape(len(keep), -1).numpy(),
        "dead": (peaks == 0).reshape(len(keep), -1)[:, 0].numpy(),
        "finite": finite.reshape(len(keep), -1)[:, 0].numpy(),
        "maps": _byte_values(small),
        "first_maps": small[:, 0].numpy(),
        "top_classes": top.indices.numpy(),
        "top_scores": top.values.numpy(),
        "top_shares": scores.softmax(1).gather(1, top.indices).numpy(),
    }
    for name, values in store.metrics.items():
        columns[name] = np.take_along_axis(np.asarray(values[rows])[keep], order[:, :1], axis=1)[:, 0]
    return columns


def _map_order(targets: Array, predictions: Array, scores: Array) -> Array:
    """Return (N, M): the map of the predicted class first (else the first map), then by decreasing score."""
    keys = np.take_along_axis(scores, np.clip(targets, 0, scores.shape[1] - 1), axis=1)
    keys = np.where((targets < 0) | np.isnan(keys), -np.inf, keys)
    predicted = targets == predictions[:, None]
    keys[np.arange(len(keys)), np.where(predicted.any(1), predicted.argmax(1), 0)] = np.inf
    return np.argsort(-keys, axis=1, kind="stable")


def _encoded(pictures: Array, size: tuple[int, int]) -> list[str]:
    """Return pictures (n, height, width, 3) uint8 as WebP in base64."""
    image_module = load("PIL.Image", purpose="write_report", extra="explain")
    texts = []
    for pixels in pictures:
        file = io.BytesIO()
        picture = image_module.fromarray(pixels)
        if pixels.shape[:2] != size:
            picture = picture.resize(size[::-1], image_module.Resampling.BOX)
        picture.save(file, "WEBP", quality=85, method=2)
        texts.append(base64.b64encode(file.getvalue()).decode())
    return texts


def _nearest(own: Array, classes: Array, maps: Tensor, means: Tensor, counts: Tensor) -> Array:
    """Return for each sample the class whose mean map is nearest to its map; -1 for none, as if there is only one class."""
    seen = (counts > 0) & torch.from_numpy(classes >= 0)
    nearest = np.full(len(own), -1)
    if seen.sum() > 1:
        for begin in range(0, len(own), 1024):
            rows = slice(begin, begin + 1024)
            found = nearest_prototype(maps[rows].unsqueeze(1), means, seen=seen).numpy()
            nearest[rows] = np.where(found < 0, -1, classes[found])
    return nearest


def _class_rows(
    written: DataFrame, by: str, maps: Tensor, pairs: Pairs, names: list[str] | None, metrics: list[str]
) -> list[dict[str, Any]]:
    """Return a row for each class of the labels, or of the predictions; add the column ``nearest`` to the table."""
    own = written[by].fillna(-1).to_numpy(np.int64)
    classes, places = np.unique(own, return_inverse=True)
    means, alive = _mean_maps(maps, torch.from_numpy(places), len(classes))
    written["nearest"] = _nearest(own, classes, maps, means, alive) if by == "label" else -1
    own_map = (written["nearest"] == own).astype(float).where(written["nearest"] >= 0)
    groups = written.assign(own_map=own_map).groupby(own)
    shares = groups[["correct", "confidence", "own_map", *metrics]].mean().astype(float).to_numpy()
    samples, dead = groups.size().tolist(), groups["dead"].sum().tolist()
    instead: dict[int, tuple[int, str, int]] = {}
    for (label, prediction), count in pairs.items():  # the most frequent come first
        if label != prediction:
            instead.setdefault(label, (prediction, class_name(prediction, names), count))
    return [
        {
            "index": index,
            "name": class_name(index, names),
            "samples": samples[place],
            "accuracy": _number(shares[place, 0]),
            "confidence": _number(shares[place, 1]),
            "own_map": _number(shares[place, 2]),
            "metrics": list(map(_number, shares[place, 3:])),
            "dead": int(dead[place]),
            "instead": instead.get(index),
            "alive": int(alive[place]),
            "peak": _number(means[place].max()),
            "map": _base64(_byte_values(means[place])),
        }
        for place, index in enumerate(classes.tolist())
        if index >= 0
    ]


def _mean_maps(maps: Tensor, places: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return the mean (K, 1, h, w) of the maps (n, h, w) that are not zero, and their number (K,)."""
    alive = maps.flatten(1).any(1)
    sums = torch.zeros(classes, *maps.shape[1:], dtype=torch.float64)
    sums.index_add_(0, places[alive], maps[alive].double())
    counts = torch.bincount(places[alive], minlength=classes)
    return (sums / counts.clamp(min=1)[:, None, None]).float().unsqueeze(1), counts


def _mistakes(pairs: Pairs, names: list[str] | None) -> dict[str, Any]:
    """Return the confusion matrix of the predictions, or the most frequent mistakes if there are many classes."""
    classes = sorted({index for pair in pairs for index in pair})
    mistakes = [
        (*pair, *(class_name(index, names) for index in pair), count) for pair, count in pairs.items()
    ]
    matrix = [[pairs.get((row, column), 0) for column in classes] for row in classes[:MATRIX_CLASSES]]
    return {
        "classes": [(index, class_name(index, names)) for index in classes],
        "matrix": matrix if len(classes) <= MATRIX_CLASSES else None,
        "list": [mistake for mistake in mistakes if mistake[0] != mistake[1]][:MISTAKES],
    }


def _summary(store: Store, table: DataFrame, written: DataFrame) -> dict[str, Any]:
    settings = dict(_flat(store.settings))
    given = {
        name: next((settings[key] for key in keys if settings.get(key, "none") != "none"), None)
        for name, keys in {
            "model": ("about.model", "model", "model.class"),
            "layer": ("layer",),
            "method": ("method",),
            "targets": ("targets",),
            "data": ("about.data",),
        }.items()
    }
    given["data"] = given["data"] and re.split(r"[\\/]", given["data"].rstrip("\\/"))[-1]
    return given | {
        "samples": len(table),
        "written": len(written),
        "damaged": int((table["status"] == "damaged").sum()),
        "missing": int((table["status"] == "missing").sum()),
        "classes": store.scores.shape[1],
        "accuracy": _mean(written["correct"]),
        "dead": int(written["dead"].sum()),
        "not_finite": int(len(written) - written["finite"].sum()),
        "unscored": int(written["prediction"].isna().sum()),
        "maps": store.maps.shape[1],
        "map_size": store.maps.shape[2:],
    }


def _records(written: DataFrame, read: dict[str, Array], metrics: list[str]) -> list[dict[str, Any]]:
    """Return what the script knows of each sample."""
    labels, predictions = (written[name].fillna(-1).tolist() for name in ("label", "prediction"))
    records = []
    for row, (position, sample) in enumerate(zip(written.index, written.itertuples(), strict=True)):
        record = {
            "row": row,
            "position": position,
            "id": sample.id,
            "path": sample.path,
            "name": sample.name,
            "label": labels[row],
            "prediction": predictions[row],
            "confidence": _number(sample.confidence),
            "nearest": sample.nearest,
            "targets": read["targets"][row].tolist(),
            "peaks": [_number(peak) for peak in read["peaks"][row]],
            "scores": [
                [int(index), _number(score), _number(share)]
                for index, score, share in zip(
                    *(read[name][row] for name in ("top_classes", "top_scores", "top_shares")), strict=True
                )
            ],
        }
        records.append(record | {name: _number(read[name][row]) for name in metrics})
    return records


def _blocks(maps: Array, images: list[str]) -> list[list[dict[str, str]]]:
    """Return the maps and pictures of all samples in blocks; there is at least one block."""
    media = [{"maps": _base64(each)} for each in maps]
    for record, image in zip(media, images, strict=False):
        record["image"] = image
    return [media[begin : begin + BLOCK] for begin in range(0, max(1, len(media)), BLOCK)]


def class_name(index: int, names: list[str] | None) -> str:
    """Return the name of a class, or its number if it has none."""
    if index < 0:
        return "none"
    return (names[index] if names is not None and index < len(names) else "") or str(index)


def _without_common_folder(paths: list[str]) -> list[str]:
    """Return absolute paths relative to the folder that they share."""
    known = [path for path in paths if path]
    if not known or not all(map(os.path.isabs, known)):
        return paths
    try:
        folder = os.path.commonpath([os.path.dirname(path) for path in known])
    except ValueError:  # several drives
        return paths
    return [path and os.path.relpath(path, folder) for path in paths]


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return dotted names and values of nested settings, as text."""
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            found.append((visible(f"{prefix}{key}"), visible(", ".join(map(str, value)))))
        else:
            found.append((visible(f"{prefix}{key}"), "none" if value is None else visible(value)))
    return found


def _number(value: Any) -> float | None:
    """Return a float for JSON, to six digits; None if it is not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _mean(values: Any) -> float | None:
    """Return the mean of a column's values that are there."""
    return _number(values.mean()) if values.notna().any() else None


def _byte_values(values: Tensor) -> Array:
    """Return values in [0, 1] as uint8, 255 for 1."""
    return (values * 255).round().to(torch.uint8).numpy()


def _base64(values: Array) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
