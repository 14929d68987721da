"""How large the pictures of the page are: as the store has them, or smaller where the page would become too large."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..store import Store
from . import blocks
from .embed import json_text

#: Bytes of a page that opens quickly, and how much of it is counted on, as sizes are estimated.
PAGE, _COUNTED = 60e6, 0.92
#: Pixels of the longer side: the fewest that pictures are brought down to unasked, and the steps.
_LEAST, _STEP = 32, 16
#: Groups of samples that the sizes are estimated by.
_GROUPS = 4


@dataclass(frozen=True)
class Pictures:
    """The pictures as they are going to be."""

    size: tuple[int, int] | None  #: (height, width); None: the page has none
    page: float  #: bytes of the page, estimated
    whole: float  #: bytes that it would have with the pictures as the store has them


def fit(store: Store, rows: np.ndarray[Any, Any], asked: int | None, a_sample: int) -> Pictures:
    """Choose the pictures' size.

    Args:
        store: whose thumbnails they are of.
        rows: the samples that the page shows.
        asked: pixels of the longer side at most; 0: no pictures; None: as many as the store has, or fewer so that the page stays
            below :data:`PAGE`, but 32 at least.
        a_sample: bytes of a sample in the page besides its picture and its names.
    """
    thumbnails = store.thumbnails
    groups = _groups(rows)
    rest = float(len(rows) * (a_sample + _name_bytes(store, groups)))
    if thumbnails is None or asked == 0:
        return Pictures(None, rest, rest)
    stored = (int(thumbnails.shape[1]), int(thumbnails.shape[2]))
    examples = [np.array(thumbnails.oindex[group]) for group in groups]

    def page(size: tuple[int, int]) -> float:
        shown = [len(blocks.sheet(resized(example, size))) / len(example) for example in examples]
        return rest + len(rows) * (sum(shown) / max(1, len(shown)))

    whole = page(stored)
    longer = max(stored)
    if asked is not None:
        size = _of(stored, min(asked, longer))
        return Pictures(size, whole if size == stored else page(size), whole)
    size, estimate = stored, whole
    while estimate > _COUNTED * PAGE and longer > _LEAST:
        longer = max(_LEAST, (longer - 1) // _STEP * _STEP)
        size = _of(stored, longer)
        estimate = page(size)
    return Pictures(size, estimate, whole)


def resized(thumbnails: np.ndarray[Any, Any], size: tuple[int, int]) -> np.ndarray[Any, Any]:
    """Pictures (n, height, width, 3) uint8, brought down to (height, width)."""
    if thumbnails.shape[1:3] == size:
        return thumbnails
    images = torch.from_numpy(thumbnails).permute(0, 3, 1, 2).float()
    small = torch.nn.functional.interpolate(images, size, mode="bilinear", antialias=True)
    return small.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _of(stored: tuple[int, int], longer: int) -> tuple[int, int]:
    """The size with this longer side."""
    share = longer / max(stored)
    return max(1, round(stored[0] * share)), max(1, round(stored[1] * share))


def _groups(rows: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """Neighbours, as they are in the page's blocks, from all over the store."""
    starts = np.unique(np.linspace(0, max(0, len(rows) - blocks.SAMPLES), _GROUPS).astype(int))
    return [rows[start : start + blocks.SAMPLES] for start in starts] if len(rows) else []


def _name_bytes(store: Store, groups: list[np.ndarray[Any, Any]]) -> int:
    """Of the id and the path of a sample, about."""
    texts = [
        str(text) for group in groups for names in (store.ids, store.paths) for text in names.oindex[group]
    ]
    return 2 * len(json_text(texts)) // max(1, len(texts))
