"""Pictures of cams beside images and prototypes. Matplotlib is loaded when one is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAP_COLOURS = "viridis"
_DIFFERENCE_COLOURS = "RdBu_r"
_MARGIN = 0.1  # inches, left and right


def map_grid(
    columns: Mapping[str, tuple[Tensor, bool | Literal["difference"]]],
    row_names: Sequence[str],
    *,
    title: str,
    difference: str = "difference",
    across: bool = False,
) -> Figure:
    """Draw a grid of small pictures: a row a sample, a column a kind of picture.

    Args:
        columns: for each column's heading the pictures (N, H, W) and whether they are maps, or ``"difference"``. Maps are drawn
            in colour on the fixed scale from 0 to 1, differences in blue, white and red from −1 to 1, images in grey from their
            own smallest to their own largest value, or in their colours where they are (N, H, W, 3) in [0, 1].
        row_names: N names.
        title: of the figure.
        difference: what the scale of the differences is called.
        across: turn the grid: a column a sample, a row a kind of picture.

    Returns:
        The figure; it belongs to no window and needs no closing.

    Raises:
        ValueError: no rows or no columns.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rows = len(row_names)
    if not rows or not columns:
        raise ValueError(f"map_grid: expected rows and columns, got {rows} rows and {len(columns)} columns")
    differences = any(kind == "difference" for _, kind in columns.values())
    scales = 2.4 if differences else 1.8
    if across:
        width, height = 1.05 * rows + scales, 1.05 * len(columns) + 0.9
    else:
        width, height = 1.25 * len(columns) + scales, 1.15 * rows + 1.1
    # The engine puts the outermost labels right at the edge of what it is given.
    engine = ConstrainedLayoutEngine(rect=(_MARGIN / width, 0, 1 - 2 * _MARGIN / width, 1))
    figure = Figure(figsize=(width, height), layout=engine)
    figure.suptitle(title, fontsize=9)
    shape = (len(columns), rows) if across else (rows, len(columns))
    axes = figure.subplots(*shape, squeeze=False)
    by_sample = axes.T if across else axes
    bars = {}
    for column, (pictures, kind) in enumerate(columns.values()):
        for row in range(rows):
            axis = by_sample[row, column]
            picture = pictures[row].detach().cpu().float().numpy()
            if kind == "difference":
                bars[difference] = axis.imshow(
                    picture, cmap=_DIFFERENCE_COLOURS, vmin=-1, vmax=1, interpolation="nearest"
                )
            elif kind:
                bars["map, divided by its maximum"] = axis.imshow(
                    picture, cmap=_MAP_COLOURS, vmin=0, vmax=1, interpolation="nearest"
                )
            else:
                axis.imshow(picture, cmap="gray", interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(False)
    above, beside = (row_names, list(columns)) if across else (list(columns), row_names)
    for axis, name in zip(axes[0], above, strict=True):
        axis.set_title(name, fontsize=8)
    for axis, name in zip(axes[:, 0], beside, strict=True):
        axis.set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center")
    for label, drawn in bars.items():
        bar = figure.colorbar(drawn, ax=axes, fraction=0.04, pad=0.02, aspect=30)
        bar.set_label(label, fontsize=8)
        bar.ax.tick_params(labelsize=7)
    return figure


def message_figure(message: str) -> Figure:
    """A figure that says why there is nothing to draw."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 1.2), layout="constrained")
    figure.text(0.5, 0.5, message, ha="center", va="center", fontsize=9)
    return figure
