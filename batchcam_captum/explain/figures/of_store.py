"""Figures of samples of a store."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..layout import Status
from ..store import Store, open_store
from .kinds import class_grid_figure, contour_figure, overlay_figure, side_by_side_figure
from .pictures import Images

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FigureKind = Literal["overlay", "contour", "side_by_side", "class_grid"]

_KINDS: dict[str, Callable[..., Figure]] = {
    "overlay": overlay_figure,
    "contour": contour_figure,
    "side_by_side": side_by_side_figure,
    "class_grid": class_grid_figure,
}


def store_figure(
    store: Store | str | os.PathLike[str],
    positions: Sequence[int],
    kind: FigureKind = "overlay",
    *,
    images: Dataset[Any] | None = None,
    which: int = 0,
    **options: Any,
) -> Figure:
    """Draw samples of a store, with their labels, predictions and confidences, and what was explained and how.

    Samples that are damaged or not written yet are said to be so, and why.

    Args:
        store: what :func:`~batchcam_captum.explain.open_store` gives, or the path of one.
        positions: of the samples in the store, as in ``store.frame()``; from 0 to N − 1, each as often as wanted.
        kind: ``"overlay"``, ``"contour"``, ``"side_by_side"`` or ``"class_grid"``, which shows all maps of a sample.
        images: the data set that was explained, in the same order; the ``mean`` and ``std`` that the store was made with are
            undone. Default: the store's thumbnails.
        which: of the M maps of each sample; not for ``"class_grid"``.
        **options: of :func:`overlay_figure`, :func:`contour_figure`, :func:`side_by_side_figure` or :func:`class_grid_figure`.

    Returns:
        The figure.

    Raises:
        ValueError: positions that are not in the store, an unknown kind, a map that is not there; or no images and no thumbnails.
    """
    store = store if isinstance(store, Store) else open_store(store)
    if kind not in get_args(FigureKind):
        raise ValueError(f"kind: expected {', '.join(map(repr, get_args(FigureKind)))}, got {kind!r}")
    rows = _checked(positions, len(store))
    maps, targets = _rows(store.maps, rows), _rows(store.targets, rows)
    if not 0 <= which < targets.shape[1]:
        raise ValueError(f"which: expected 0 to {targets.shape[1] - 1}, a map of the store, got {which}")
    cams = torch.from_numpy(maps.astype(np.float32))
    problems = _problems(store, rows)
    if images is None:
        pixels: Images = _thumbnails(store, rows, problems)
    else:
        pixels = _images(images, store, rows, problems)
        options = {"mean": store.settings.get("mean"), "std": store.settings.get("std")} | options
    shared: dict[str, Any] = {"problems": problems, "title": _title(store)}
    if kind == "class_grid":
        shared |= {"titles": _titles(store, rows, None), "class_names": store.class_names, "targets": targets}
    else:
        cams = cams[:, which : which + 1]
        shared["titles"] = _titles(store, rows, targets[:, which])
    return _KINDS[kind](pixels, cams, **(shared | options))


def _checked(positions: Sequence[int], count: int) -> list[int]:
    rows = [int(position) for position in positions]
    if not rows:
        raise ValueError("positions: expected at least one, got none")
    outside = [row for row in rows if not 0 <= row < count]
    if outside:
        raise ValueError(f"positions: expected 0 to {count - 1}, samples of the store, got {outside[0]}")
    return rows


def _rows(array: Any, rows: Sequence[int]) -> np.ndarray[Any, Any]:
    """In the order asked for; a chunk is read once."""
    unique, places = np.unique(rows, return_inverse=True)
    return np.asarray(array.oindex[unique])[places]


def _problems(store: Store, rows: Sequence[int]) -> list[str]:
    said = {int(Status.MISSING): "not written yet"}
    reasons = _rows(store.problems, rows)
    return [
        f"damaged: {reason}" if state == Status.DAMAGED else said.get(int(state), "")
        for state, reason in zip(_rows(store.status, rows), reasons, strict=True)
    ]


def _thumbnails(store: Store, rows: Sequence[int], problems: Sequence[str]) -> Tensor:
    # Never the files that the paths name: what was explained is mostly a part of them, and a map would lie in the wrong place.
    thumbnails = store.thumbnails
    if thumbnails is None:
        raise ValueError(
            "images: expected the data set that was explained, as the store has no thumbnails, got None; pass it"
        )
    found = torch.from_numpy(_rows(thumbnails, rows)).permute(0, 3, 1, 2)
    return torch.stack(
        [torch.full_like(one, 255) if problem else one for one, problem in zip(found, problems, strict=True)]
    )


def _images(images: Dataset[Any], store: Store, rows: Sequence[int], problems: Sequence[str]) -> list[Tensor]:
    """Those without a problem are asked for; others are blank, of the size of one that is not."""
    length = len(images)  # type: ignore[arg-type]
    if length != len(store):
        raise ValueError(
            f"images: expected the {len(store)} samples of the store, got {length}; pass the data set that was explained"
        )
    found = {row: images[row] for row, problem in zip(rows, problems, strict=True) if not problem}
    found = {row: sample[0] if isinstance(sample, tuple | list) else sample for row, sample in found.items()}
    size = next((tuple(image.shape) for image in found.values()), (3, *store.maps.shape[2:]))
    blank = torch.full(size, torch.nan)
    return [found.get(row, blank) for row in rows]


def _title(store: Store) -> str:
    settings = store.settings
    model = settings.get("model")
    named = model.get("class") if isinstance(model, dict) else model
    parts = [
        settings.get("method"),
        settings.get("layer") and f"at {settings['layer']}",
        named and f"of {named}",
    ]
    return " ".join(str(part) for part in parts if part)


def _titles(store: Store, rows: Sequence[int], targets: np.ndarray[Any, Any] | None) -> list[str]:
    """Which sample, its label and prediction, and the class explained where that is not the prediction."""
    names = store.class_names

    def name(k: int) -> str:
        return _short(names[k] if names is not None and 0 <= k < len(names) else str(k))

    columns = [store.ids, store.paths, store.labels, store.predictions, store.confidences, store.status]
    texts = []
    for place, (own, path, label, prediction, confidence, state) in enumerate(
        zip(*(_rows(column, rows) for column in columns), strict=True)
    ):
        lines = [_short(os.path.basename(path) or f"sample {own}")]
        if label >= 0:
            lines.append(f"label {name(label)}")
        if prediction >= 0:
            lines.append(f"predicted {name(prediction)} ({confidence:.2f})")
        elif state == Status.WRITTEN:
            lines.append("scores not finite")
        if targets is not None and targets[place] not in (-1, prediction):
            lines.append(f"map of {name(targets[place])}")
        texts.append("\n".join(lines))
    return texts


def _short(text: str) -> str:
    return text if len(text) <= 28 else f"{text[:14]}…{text[-13:]}"
