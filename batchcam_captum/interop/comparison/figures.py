"""Pictures of a comparison: the image, and for each library our map in its manner, its own, and where they differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...functional import prepare
from ...functional.overlay import gray_or_color
from ...optional import load
from ..peers import OURS
from .result import Comparison, Pair, encodable, titled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: So many images are drawn, the first ones.
ROWS = 8
_MAP_COLOURS, _SIGNED_COLOURS, _DIFFERENCE_COLOURS = "viridis", "PuOr_r", "magma"
_CELL, _MARGIN = 1.45, 0.08  # inches
_LONGEST = 22  # letters of a file's name


def figures(comparison: Comparison) -> list[tuple[str, Figure]]:
    """Draw one figure a method, without touching pyplot.

    A row an image, the first eight at most. Columns: the image; for each library our map through that library's preset, its own
    map as it returned it (both in [0, 1], or signed, up to the largest absolute value of the two, which is written above); and
    their absolute difference, on a scale of its own from 0 to the maximum that is written above it. With no library to compare
    with: our raw map, rectified and divided by its maximum.

    Args:
        comparison: what :func:`compare` found.

    Returns:
        For each method a description in words, and the figure. None where the maps or the images are not two-dimensional, or
        there are none.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    load("matplotlib", purpose="drawing a comparison")
    if comparison.images.dim() != 4:
        return []
    drawn = []
    for method in comparison.settings["methods"]:
        pairs = [pair for pair in comparison.pairs if pair.method == method and pair.theirs.dim() == 4]
        raw = comparison.raw.get(method)
        if pairs or (raw is not None and raw.dim() == 4):
            drawn.append((_description(comparison, method, pairs), _figure(comparison, method, raw, pairs)))
    return drawn


def shortened(path: str, longest: int = _LONGEST) -> str:
    """A file's name without its folder, and no longer than that: its beginning and its end."""
    name = PurePath(path).name or path
    if len(name) <= longest:
        return name
    end = longest // 2
    return f"{name[: longest - end - 1]}…{name[-end:]}"


def _description(comparison: Comparison, method: str, pairs: Sequence[Pair]) -> str:
    shown = min(len(comparison.paths), ROWS)
    found = []
    for pair in pairs:
        largest = pair.agreement.max_difference
        relative = " of the largest value" if pair.agreement.scale == "raw" else ""
        found.append(f"{pair.library} {'none' if largest is None else f'{largest:.1e}{relative}'}")
    return (
        f"{method} of {titled(comparison.settings)} at {comparison.settings['layer']}: {shown} of {len(comparison.paths)} "
        f"images, one a row; for each library the map of {OURS.name} through its preset, its own, and their difference. Largest "
        "difference over all images: "
        f"{'; '.join(found) or 'nothing to compare with'}."
    )


def _figure(comparison: Comparison, method: str, raw: Tensor | None, pairs: Sequence[Pair]) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rows, columns = min(len(comparison.paths), ROWS), 1 + 3 * len(pairs) if pairs else 2
    tall = min(max(comparison.images.shape[2] / comparison.images.shape[3], 0.5), 2.0)
    width, height = _CELL * columns + 1.7, (_CELL * tall + 0.22) * rows + 1.3
    # The engine puts the outermost labels right at the edge of what it is given.
    inside = (_MARGIN / width, _MARGIN / height, 1 - 2 * _MARGIN / width, 1 - 2 * _MARGIN / height)
    engine = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.02, rect=inside)
    figure = Figure(figsize=(width, height), layout=engine)
    of_all = f" (the first {rows} of {len(comparison.paths)} images)" if rows < len(comparison.paths) else ""
    lines = [_verbatim(f"{titled(comparison.settings)}, {comparison.settings['layer']}, {method}{of_all}")]
    if pairs:
        lines.append(f"{OURS.name}: each time through the preset of the library beside it")
        lines.append("differences: black is 0, the brightest the maximum above")
    if any(pair.agreement.scale == "raw" for pair in pairs):
        lines.append("signed: purple is negative, orange positive, up to the number above")
    figure.suptitle("\n".join(lines), fontsize=8, wrap=True)
    axes = figure.subplots(rows, columns, squeeze=False)
    pictures = comparison.pictures
    if pictures is None:
        pictures = gray_or_color(comparison.images[:rows]).movedim(1, -1)
    alone = None if pairs or raw is None else prepare(raw[:rows].float()).maps[:, 0]
    for row in range(rows):
        cells = axes[row]
        label = f"{shortened(comparison.paths[row])}\nclass {comparison.targets[row]}"
        cells[0].set_ylabel(_verbatim(label), fontsize=7, rotation=0, ha="right", va="center", labelpad=4)
        _draw(cells[0], pictures[row].clamp(0, 1), "")
        if alone is not None:
            _draw(cells[1], alone[row], "", cmap=_MAP_COLOURS, vmin=0, vmax=1)
        for index, pair in enumerate(pairs):
            _draw_pair(cells[1 + 3 * index : 4 + 3 * index], pair, row)
    heads = ["image"] if pairs else ["image", f"{OURS.name}\npositive, 0 to 1"]
    for pair in pairs:
        scale = "0 to 1" if pair.agreement.scale == "unit" else "signed"
        heads += [f"{OURS.name}\n{scale}", f"{pair.library}\n{scale}", "difference of\nthese two"]
    for axis in axes.flat:  # maps of any size fill cells of the images' shape
        axis.set_box_aspect(tall)
    for axis, head in zip(axes[0], heads, strict=True):
        title = axis.get_title()
        axis.set_title(f"{_verbatim(head)}\n{title}" if title else _verbatim(head), fontsize=7)
    return figure


def _draw_pair(cells: Sequence[Any], pair: Pair, row: int) -> None:
    """Our map in a library's manner, the library's own on the same scale, and where they differ."""
    ours, theirs = pair.ours[row, 0].double(), pair.theirs[row, 0].double()
    peak = float(torch.stack([ours, theirs]).abs().nan_to_num(0, 0, 0).max())
    for cell, drawn in zip(cells, (ours, theirs), strict=False):
        if pair.agreement.scale == "unit":
            _draw(cell, drawn, "", cmap=_MAP_COLOURS, vmin=0, vmax=1)
        else:
            _draw(cell, drawn, f"± {peak:.1e}", cmap=_SIGNED_COLOURS, vmin=-peak or -1, vmax=peak or 1)
    numbers = pair.agreement.maps[row]
    difference = (ours - theirs).abs()
    if numbers.identical:
        title = "identical"
    elif not numbers.finite:
        title = "not finite"
    else:
        of = " of peak" if pair.agreement.scale == "raw" else ""
        title = f"max {numbers.max_difference:.1e}{of}"
    largest = float(difference.nan_to_num(0, 0, 0).max())
    _draw(cells[2], difference, title, cmap=_DIFFERENCE_COLOURS, vmin=0, vmax=largest or 1)


def _draw(axis: Any, picture: Tensor, title: str, **scale: Any) -> None:
    axis.imshow(torch.as_tensor(picture).numpy(), interpolation="nearest", aspect="auto", **scale)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_title(title, fontsize=7, pad=2)


def _verbatim(text: str) -> str:
    """Matplotlib would read what stands between dollar signs as a formula, and takes no name that no encoding has."""
    return encodable(text).replace("$", r"\$")
