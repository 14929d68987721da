"""What the maps of each class have in common, whose maps they resemble, and how the metrics lie by class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ...functional import nearest_prototype
from .embed import base64_text, number
from .samples import Samples

_AT_ONCE = 1024


@dataclass(frozen=True)
class ClassMaps:
    """The mean map of each class."""

    by: Literal["label", "prediction"]  #: what makes a sample one of a class
    own: np.ndarray[Any, Any]  #: (n,) the class of each sample; −1: none
    means: Tensor  #: (K, 1, h, w) float32: the mean of relu(C)/max over the maps that are not dead; zero where there is none
    counts: Tensor  #: (K,) int64: maps that are not dead
    nearest: np.ndarray[
        Any, Any
    ]  #: (n,) int32: the class whose mean map is nearest; −1: none, as the map is dead or flat


def class_maps(samples: Samples, num_classes: int) -> ClassMaps:
    """Average the maps of each class, by the labels, or by the predictions where no label is known.

    Args:
        samples: n of them.
        num_classes: the number of classes, K.

    Returns:
        The means, and for each map the class whose mean is nearest by :func:`~batchcam_captum.functional.nearest_prototype`.
        With less than two classes that have a mean there is nothing to tell apart, and ``nearest`` is −1 throughout.
    """
    by: Literal["label", "prediction"] = "label" if (samples.labels >= 0).any() else "prediction"
    own = samples.labels if by == "label" else samples.predictions
    num_classes = max(num_classes, int(own.max(initial=-1)) + 1)
    counted = np.flatnonzero(samples.alive & (own >= 0))
    sums = torch.zeros((num_classes, *samples.maps.shape[1:]), dtype=torch.float64)
    for rows in _parts(counted):
        sums.index_add_(
            0, torch.from_numpy(own[rows]).long(), torch.from_numpy(samples.maps[rows].astype(np.float64))
        )
    counts = torch.from_numpy(np.bincount(own[counted], minlength=num_classes))
    means = (sums / counts.clamp(min=1)[:, None, None]).float().unsqueeze(1)
    nearest = np.full(len(own), -1, np.int32)
    if (counts > 0).sum() >= 2:
        for rows in _parts(np.flatnonzero(samples.alive)):
            maps = torch.from_numpy(samples.maps[rows].astype(np.float32)).unsqueeze(1)
            nearest[rows] = nearest_prototype(maps, means, seen=counts > 0).numpy()
    return ClassMaps(by, own, means, counts, nearest)


def described(found: ClassMaps, samples: Samples) -> dict[str, Any]:
    """For the page: the classes that there are, with their mean maps as uint8 (255 is 1)."""
    present = np.unique(found.own[found.own >= 0])
    means = found.means[torch.from_numpy(present).long(), 0]
    dead = np.bincount(found.own[samples.dead & (found.own >= 0)], minlength=len(found.counts))
    return {
        "by": found.by,
        "classes": present.tolist(),
        "alive": found.counts[torch.from_numpy(present).long()].tolist(),
        "dead": dead[present].tolist(),
        "peaks": [number(each.max()) for each in means],
        "maps": base64_text((means * 255).round().to(torch.uint8).numpy()),
    }


def confusion(rows: np.ndarray[Any, Any], columns: np.ndarray[Any, Any]) -> list[list[int]]:
    """[row, column, count] of each pair that there is; rows of −1 do not count."""
    pairs = np.stack([rows, columns], 1)[rows >= 0]
    found, counts = np.unique(pairs, axis=0, return_counts=True)
    return [[*pair, count] for pair, count in zip(found.tolist(), counts.tolist(), strict=True)]


def metric_table(values: np.ndarray[Any, Any], own: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Count, mean and median of a metric, over all samples that have it and by class.

    Args:
        values: (n,), NaN where there is none.
        own: (n,) classes; −1: none.
    """
    has = np.isfinite(values)
    present = np.unique(own[has & (own >= 0)])
    return {
        **_statistics(values[has]),
        "by_class": [{"class": int(each)} | _statistics(values[has & (own == each)]) for each in present],
    }


def _statistics(values: np.ndarray[Any, Any]) -> dict[str, Any]:
    if not len(values):
        return {"count": 0, "mean": None, "median": None}
    return {
        "count": len(values),
        "mean": number(values.mean(dtype=np.float64)),
        "median": number(np.median(values)),
    }


def _parts(rows: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    return [rows[begin : begin + _AT_ONCE] for begin in range(0, len(rows), _AT_ONCE)]
