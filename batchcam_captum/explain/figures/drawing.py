"""Panels, the frame around them, and the colour bar."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from .scaling import ScaledMap, ScaledMaps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: How a map is laid over its image.
Style = Literal["shaded", "blended_heat_map", "alpha_scaling", "masked_image"]
#: A panel draws itself into its axes.
Panel = Callable[["Axes"], None]

_SIDE = 1.7  # inches, of a square panel; others have the same area
_WIDTH = 9.0  # inches, about, of all panels where their number is free
_LARGEST = 400  # panels; Matplotlib takes a minute for more
#: Points of the smaller text, and inches of a line and, about, of a letter of it.
_SMALL, _LINE, _LETTER = 7, 0.14, 0.055
_BAR, _LONGEST_BAR = 0.9, 4.0  # inches: what it takes of the width, and its height
#: Images have few pixels or many, maps mostly few.
_IMAGE: dict[str, Any] = {"interpolation": "nearest"}


@dataclass(frozen=True)
class Grid:
    """Panels by row and column; None leaves a place free."""

    panels: list[list[Panel | None]]
    titles: list[list[str]]  #: above each
    row_names: Sequence[str] = ()  #: left of the rows


def framed(
    grid: Grid, maps: ScaledMaps, aspect: float, *, said: str, title: str | None, levels: Sequence[float] = ()
) -> Figure:
    """Draw panels with a colour bar at the right, and below them what was done.

    Args:
        grid: the panels.
        maps: whose scale the colour bar shows.
        aspect: width by height of the panels.
        said: what was done.
        title: of the figure.
        levels: where the colour bar has lines, as shares of the scale.

    Raises:
        ValueError: too many panels.
    """
    from matplotlib.figure import Figure

    rows, columns = len(grid.panels), max(map(len, grid.panels))
    if rows * columns > _LARGEST:
        raise ValueError(
            f"figure: expected at most {_LARGEST} panels, got {rows} rows of {columns}; choose fewer samples, or fewer classes"
        )
    aspect = min(max(aspect, 0.25), 4.0)
    names = _LETTER * max((len(line) for name in grid.row_names for line in name.split("\n")), default=0)
    width = max(_SIDE * sqrt(aspect) * columns + _BAR + names, 3.6)
    lines = textwrap.wrap(said, int(width * 17))
    heads = [_lines_of(row) for row in grid.titles]
    height = (
        _SIDE / sqrt(aspect) * rows + _LINE * (sum(heads) + len(lines) + 2) + 0.3 * bool(title) + 0.06 * rows
    )
    figure = Figure(figsize=(width, height), layout="constrained")
    if title:
        figure.suptitle("\n".join(textwrap.wrap(title, int(width * 12))), fontsize=9, parse_math=False)
    figure.supxlabel("\n".join(lines), fontsize=_SMALL, x=0.02, ha="left", parse_math=False)
    axes = figure.subplots(rows, columns, squeeze=False)
    for row, panels in enumerate(grid.panels):
        for column in range(columns):
            axis, panel = axes[row, column], panels[column] if column < len(panels) else None
            _bare(axis)
            if panel is None:
                axis.set_visible(False)
                continue
            panel(axis)
            axis.set_title(grid.titles[row][column], fontsize=_SMALL, pad=3, parse_math=False)
        if grid.row_names:
            axes[row, 0].set_ylabel(
                grid.row_names[row], fontsize=_SMALL, rotation=0, ha="right", va="center", parse_math=False
            )
    _colour_bar(figure, axes, maps, height, levels)
    return figure


def wrapped_in_rows(
    groups: Sequence[Sequence[Panel]], titles: Sequence[Sequence[str]], columns: int | None, aspect: float
) -> Grid:
    """Samples, each of one or more panels, side by side in as many columns as have room, or in ``columns`` samples a row.

    Raises:
        ValueError: no positive number of columns.
    """
    if columns is not None and columns < 1:
        raise ValueError(f"columns: expected at least 1, got {columns}")
    room = max(1, round(_WIDTH / (_SIDE * sqrt(min(max(aspect, 0.25), 4.0)) * len(groups[0]))))
    # As many in each row as the rows allow: 2 × 5 rather than 8 and 2.
    columns = columns or ceil(len(groups) / ceil(len(groups) / room))
    starts = range(0, len(groups), columns)
    return Grid(
        [[panel for group in groups[start : start + columns] for panel in group] for start in starts],
        [[text for group in titles[start : start + columns] for text in group] for start in starts],
    )


def image_panel(pixels: Tensor, note: str = "") -> Panel:
    """An image alone."""

    def draw(axis: Axes) -> None:
        axis.imshow(pixels.numpy(), **_IMAGE)
        _noted(axis, note)

    return draw


def map_panel(map_: ScaledMap, maps: ScaledMaps, size: Sequence[int]) -> Panel:
    """A map alone, in the places that the layer has, as wide and high as the image (H, W)."""

    def draw(axis: Axes) -> None:
        height, width = size
        # The edges of the first and last pixel, as imshow has them.
        extent = (-0.5, width - 0.5, height - 0.5, -0.5)
        if map_.drawn:
            # Not Captum's "heat_map": it divides each map by its own largest value, and knows no scale that several share.
            axis.imshow(map_.values.numpy(), **_colours(maps), extent=extent, **_IMAGE)
        else:
            axis.set(xlim=extent[:2], ylim=extent[2:], aspect="equal")
        _noted(axis, map_.note)

    return draw


def overlay_panel(
    pixels: Tensor, map_: ScaledMap, maps: ScaledMaps, *, style: Style, opacity: float, note: str = ""
) -> Panel:
    """An image with its map over it, resized to it."""

    def draw(axis: Axes) -> None:
        size = pixels.shape[:2]
        if not map_.drawn or note:
            axis.imshow(pixels.numpy(), **_IMAGE)
        elif style == "shaded":
            # Not Captum's "blended_heat_map": that shows images in grey and covers them as much where the map is 0.
            values = map_.resized(size)
            axis.imshow(pixels.numpy(), **_IMAGE)
            axis.imshow(values.numpy(), **_colours(maps), alpha=(opacity * values.abs()).numpy(), **_IMAGE)
        else:
            _captum_panel(axis, pixels, map_.resized(size), maps, style, opacity)
        _noted(axis, note or map_.note)

    return draw


def contour_panel(
    pixels: Tensor, map_: ScaledMap, maps: ScaledMaps, *, levels: Sequence[float], note: str = ""
) -> Panel:
    """An image with lines where its map, resized to it, reaches the levels, which are shares of the scale."""

    def draw(axis: Axes) -> None:
        from matplotlib.patheffects import Normal, Stroke

        axis.imshow(pixels.numpy(), **_IMAGE)
        said = note or map_.note
        if map_.drawn and not note:
            values = map_.resized(pixels.shape[:2])
            lowest, highest = float(values.min()), float(values.max())
            # Matplotlib warns of levels that no pixel reaches.
            reached = [level for level in levels if lowest < level < highest]
            if reached:
                colours = _colours(maps)
                drawn = axis.contour(
                    values.numpy(), reached, cmap=colours["cmap"], norm=colours["norm"], linewidths=1.4
                )
                # Lines of any colour are seen on any image.
                drawn.set_path_effects([Stroke(linewidth=2.6, foreground="black"), Normal()])
            elif not said:
                said = "no line: below all levels" if highest <= min(levels) else "no line: above all levels"
        _noted(axis, said)

    return draw


def _captum_panel(
    axis: Axes, pixels: Tensor, values: Tensor, maps: ScaledMaps, style: Style, opacity: float
) -> None:
    from ...attribution._captum import visualize_image_attr

    # Clipping of outliers is switched off, as each map would be clipped elsewhere, and the figure's scale would be wrong.
    visualize_image_attr(
        values.numpy(),
        pixels.numpy(),
        style,
        "all" if maps.limits[0] < 0 else "positive",
        plt_fig_axis=(axis.figure, axis),
        outlier_perc=0,
        cmap=maps.colours,
        alpha_overlay=opacity,
        use_pyplot=False,
    )


def _colours(maps: ScaledMaps) -> dict[str, Any]:
    from matplotlib.colors import Normalize

    return {"cmap": maps.colours, "norm": Normalize(-1 if maps.limits[0] < 0 else 0, 1)}


def _colour_bar(figure: Figure, axes: Any, maps: ScaledMaps, height: float, levels: Sequence[float]) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    low, high = maps.limits
    mappable = ScalarMappable(Normalize(low, high), maps.colours)
    extend = ("both" if low < 0 else "max") if maps.clipped else "neither"
    length = min(1.0, _LONGEST_BAR / height)
    # Without panchor=False the panels are pushed to the right of their places.
    bar = figure.colorbar(
        mappable, ax=axes, shrink=length, aspect=7 * length * height, pad=0.02, extend=extend, panchor=False
    )
    bar.set_label("\n".join(textwrap.wrap(maps.bar, max(16, int(length * height * 11)))), fontsize=_SMALL)
    bar.ax.tick_params(labelsize=6)
    bar.ax.yaxis.get_offset_text().set_fontsize(6)
    for level in levels:
        bar.ax.axhline(level * high, color="black", linewidth=2)
        bar.ax.axhline(level * high, color="white", linewidth=0.8)


def _bare(axis: Axes) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)


def _noted(axis: Axes, note: str) -> None:
    """Say it at the panel's bottom, and draw a frame, as there may be nothing else in the panel."""
    if note:
        axis.spines[:].set(visible=True, color="0.7", linestyle=(0, (3, 3)))
        axis.text(
            *(0.5, 0.04, "\n".join(textwrap.wrap(note, 26))),
            transform=axis.transAxes,
            ha="center",
            va="bottom",
            fontsize=6,
            color="black",
            bbox={"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 1.5},
            parse_math=False,
        )


def _lines_of(titles: Sequence[str]) -> int:
    return max((text.count("\n") + 1 for text in titles if text), default=0)
