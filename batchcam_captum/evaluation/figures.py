"""Grids of images, prototypes and cams. Matplotlib is loaded when one is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: How maps and differences are drawn.
_MAP: dict[str, Any] = {"cmap": "viridis", "vmin": 0, "vmax": 1}
_DIFFERENCE: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -1, "vmax": 1}
_MARGIN = 0.1  # inches, left and right


def map_grid(
    columns: Mapping[str, tuple[Tensor, bool | Literal["difference"]]],
    row_names: Sequence[str],
    *,
    title: str,
    difference: str = "difference",
    across: bool = False,
) -> Figure:
    """Draw a grid of small pictures: a row per sample, a column per kind of picture.

    Args:
        columns: For each column's heading the pictures (N, H, W), and ``True`` for maps, ``"difference"`` for differences,
            ``False`` for images. Maps are drawn in color on a fixed scale from 0 to 1; differences in blue, white and red from
            -1 to 1; images in gray from their own minimum to their own maximum, or in color if they are (N, H, W, 3) in [0, 1].
        row_names: N names.
        title: The figure's title.
        difference: The label of the differences' color bar.
        across: Turn the grid: a column per sample, a row per kind of picture.

    Returns:
        The figure. It belongs to no window and need not be closed.

    Raises:
        ValueError: If there are no rows or no columns.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rows = len(row_names)
    if not rows or not columns:
        raise ValueError(f"map_grid: expected rows and columns, got {rows} rows and {len(columns)} columns")
    bars = 2.4 if any(kind == "difference" for _, kind in columns.values()) else 1.8
    size = (
        (1.05 * rows + bars, 1.05 * len(columns) + 0.9)
        if across
        else (1.25 * len(columns) + bars, 1.15 * rows + 1.1)
    )
    # The engine puts the outermost labels at the very edge of its rectangle.
    margin = _MARGIN / size[0]
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(rect=(margin, 0, 1 - 2 * margin, 1)))
    figure.suptitle(title, fontsize=9)
    axes = figure.subplots(*((len(columns), rows) if across else (rows, len(columns))), squeeze=False)
    drawn = {}
    for place, (pictures, kind) in enumerate(columns.values()):
        how = _DIFFERENCE if kind == "difference" else _MAP if kind else {"cmap": "gray"}
        for row in range(rows):
            axis = axes[place, row] if across else axes[row, place]
            picture = pictures[row].detach().cpu().float().numpy()
            image = axis.imshow(picture, **how, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        if kind:
            drawn[difference if kind == "difference" else "map, divided by its maximum"] = image
    above, beside = (row_names, list(columns)) if across else (list(columns), row_names)
    for axis, name in zip(axes[0], above, strict=True):
        axis.set_title(name, fontsize=8)
    for axis, name in zip(axes[:, 0], beside, strict=True):
        axis.set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center")
    for label, image in drawn.items():
        bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, aspect=30)
        bar.set_label(label, fontsize=8)
        bar.ax.tick_params(labelsize=7)
    return figure


def message_figure(message: str) -> Figure:
    """Return a figure that says why there is nothing to draw."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 1.2), layout="constrained")
    figure.text(0.5, 0.5, message, ha="center", va="center", fontsize=9)
    return figure
