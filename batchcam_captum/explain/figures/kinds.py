"""The kinds of figures, from tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Unpack

import torch
from torch import Tensor

from .drawing import (
    Grid,
    Panel,
    Style,
    contour_panel,
    image_panel,
    map_panel,
    overlay_panel,
    wrapped_in_rows,
)
from .pictures import Images
from .prepared import FigureOptions, Prepared, prepared
from .scaling import Cams, Scale

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: What is said of each, and the colours of the bar where the map's own are not seen.
_STYLES = {
    "shaded": ("Map over image: the further from 0, the more opaque, up to {opacity:.0%}.", None),
    "blended_heat_map": ("Map over the image in grey, {opacity:.0%} opaque everywhere", None),
    "alpha_scaling": ("Map as the image's opacity, from none to full", "Greys"),
    "masked_image": ("Image multiplied with the map", "gray"),
}
_CAPTUM = " (Captum's {style}: divided by its maximum once more when resized, outliers not clipped)."


def overlay_figure(
    images: Images,
    cams: Cams,
    *,
    style: Style = "shaded",
    opacity: float = 0.7,
    columns: int | None = None,
    **options: Unpack[FigureOptions],
) -> Figure:
    """Cams laid over their images.

    The colour scale and what was done to maps and images stand in the figure. A dead map (nothing positive) is not drawn but said
    to be dead; so are maps that are constant or not finite said to be so.

    Args:
        images: (N, C, H, W), or N of (C, H, W) that may have different sizes, on any device.
        cams: (N, 1, h, w), or N of (1, h, w); raw and signed, as :meth:`.BatchGradCam.attribute` returns them.
        style: ``"shaded"``: the larger a value the more opaque, so that the image is seen where the map has nothing to say. Or
            one of those of ``captum.attr.visualization.visualize_image_attr``, each map divided by its own maximum and no
            outliers clipped: ``"blended_heat_map"``, ``"alpha_scaling"``, ``"masked_image"``.
        opacity: of the map at the end of its scale, and everywhere with ``"blended_heat_map"``; from 0 to 1.
        columns: samples a row. Default: as many as have room.
        **options: those of every figure:

            - ``scale``: which maps are divided by the same value: ``"map"``: each by its own largest; ``"sample"``: those of a
              sample by the largest of them; ``"figure"``: all by the largest of all; or a number, which all are divided by.
              Default: ``"map"``.
            - ``signed``: show negative values, too, in blue, from minus to plus the largest absolute value. Default: what is
              negative is 0.
            - ``mean`` and ``std``: of the ``Normalize`` that the images went through. Without them images in [0, 1] are shown as
              they are, and others from their own smallest to their own largest value.
            - ``titles``: N texts, of any number of lines, such as the label and the prediction.
            - ``problems``: N texts, empty for most: why there is no map to draw. It is written where the map would be.
            - ``title``: of the figure.

    Returns:
        The figure; it belongs to no window and needs no closing. ``figure.savefig(path)`` writes it.

    Raises:
        ValueError: images, cams and texts that do not fit; a style that cannot show what is asked for; more than 400 panels.

    Example:
        >>> import torch
        >>> figure = overlay_figure(torch.rand(2, 3, 32, 32), torch.rand(2, 1, 4, 4), titles=["cat", "dog"])
    """
    found = prepared(images, cams, **options)
    _check_style(style, opacity, found, options.get("scale", "map"))
    panels = [
        [overlay_panel(pixels, maps[0], found.scaled, style=style, opacity=opacity, note=problem)]
        for pixels, maps, problem in found.samples()
    ]
    said, colours = _STYLES[style]
    if style != "shaded":
        said += _CAPTUM.format(style=style)
    if colours is not None:
        found = replace(found, scaled=replace(found.scaled, colours=colours))
    said = said.format(opacity=opacity)
    grid = wrapped_in_rows(panels, [[title] for title in found.titles], columns, found.pictures.aspect)
    return found.figure(grid, said, found.resizing())


def contour_figure(
    images: Images,
    cams: Cams,
    *,
    levels: Sequence[float] = (0.25, 0.5, 0.75),
    columns: int | None = None,
    **options: Unpack[FigureOptions],
) -> Figure:
    """Images with lines where their cams reach some levels, so that all of the image is seen.

    Args:
        images: as of :func:`overlay_figure`.
        cams: likewise.
        levels: shares of the scale, above 0 and below 1. With ``signed`` their negatives as well.
        columns: samples a row. Default: as many as have room.
        **options: those of every figure, see :func:`overlay_figure`.

    Returns:
        The figure.

    Raises:
        ValueError: as :func:`overlay_figure`, and levels that are no shares.
    """
    levels = sorted(set(levels))
    if not levels or not all(0 < level < 1 for level in levels):
        raise ValueError(f"levels: expected numbers above 0 and below 1, got {levels}")
    said = f"Lines at {', '.join(f'{100 * level:g} %' for level in levels)} of the scale"
    if options.get("signed"):
        levels, said = [-level for level in reversed(levels)] + levels, f"{said} and of its negative part"
    found = prepared(images, cams, **options)
    panels = [
        [contour_panel(pixels, maps[0], found.scaled, levels=levels, note=problem)]
        for pixels, maps, problem in found.samples()
    ]
    grid = wrapped_in_rows(panels, [[title] for title in found.titles], columns, found.pictures.aspect)
    return found.figure(grid, f"{said}.", found.resizing(), levels=levels)


def side_by_side_figure(
    images: Images,
    cams: Cams,
    *,
    opacity: float = 0.7,
    columns: int | None = None,
    **options: Unpack[FigureOptions],
) -> Figure:
    """Of each sample the image, the cam in the layer's own resolution, and the cam laid over the image.

    Args:
        images: as of :func:`overlay_figure`.
        cams: likewise.
        opacity: likewise.
        columns: samples a row. Default: as many as have room.
        **options: those of every figure, see :func:`overlay_figure`.

    Returns:
        The figure.

    Raises:
        ValueError: as :func:`overlay_figure`.
    """
    found = prepared(images, cams, **options)
    _check_style("shaded", opacity, found, "map")
    panels: list[list[Panel]] = [
        [
            image_panel(pixels, problem if found.pictures.problems[place] else ""),
            map_panel(replace(maps[0], note=problem or maps[0].note), found.scaled, pixels.shape[:2]),
            overlay_panel(pixels, maps[0], found.scaled, style="shaded", opacity=opacity, note=problem),
        ]
        for place, (pixels, maps, problem) in enumerate(found.samples())
    ]
    titles = [[title, "map", "map over image"] for title in found.titles]
    grid = wrapped_in_rows(panels, titles, columns, found.pictures.aspect)
    said = _STYLES["shaded"][0].format(opacity=opacity)
    return found.figure(grid, said, found.resizing())


def class_grid_figure(
    images: Images,
    cams: Cams,
    targets: Tensor | Sequence[int] | None = None,
    *,
    class_names: Sequence[str] | None = None,
    opacity: float = 0.7,
    **options: Unpack[FigureOptions],
) -> Figure:
    """A row a sample, a column a class: the image, and each class's cam laid over it.

    Maps of a sample share a scale by default, so that classes can be compared: ``scale="sample"``.

    Args:
        images: as of :func:`overlay_figure`.
        cams: (N, M, h, w), or N of (M, h, w), as :meth:`.BatchGradCam.attribute_classes` returns them.
        targets: (M,) or (N, M), the class that each map explains; −1 where there is none. Default: 0 … M − 1.
        class_names: of all classes. Default: their numbers.
        opacity: of the map at the end of its scale.
        **options: those of every figure, see :func:`overlay_figure`.

    Returns:
        The figure.

    Raises:
        ValueError: as :func:`overlay_figure`; targets or names that do not fit the cams.
    """
    options = {"scale": "sample", **options}
    found = prepared(images, cams, several=True, **options)
    _check_style("shaded", opacity, found, "map")
    headings = _headings(targets, class_names, [len(maps) for maps in found.scaled.maps])
    panels: list[list[Panel | None]] = [
        [
            image_panel(pixels, problem if found.pictures.problems[place] else ""),
            *(
                overlay_panel(pixels, map_, found.scaled, style="shaded", opacity=opacity, note=problem)
                for map_ in maps
            ),
        ]
        for place, (pixels, maps, problem) in enumerate(found.samples())
    ]
    titles = [["image", *names] for names in headings]
    if all(row == titles[0] for row in titles):
        titles[1:] = [[""] * len(row) for row in titles[1:]]
    said = _STYLES["shaded"][0].format(opacity=opacity)
    return found.figure(
        Grid(panels, titles, found.titles if any(found.titles) else ()), said, found.resizing()
    )


def _check_style(style: Style, opacity: float, found: Prepared, scale: Scale) -> None:
    if style not in _STYLES:
        raise ValueError(f"style: expected {', '.join(map(repr, _STYLES))}, got {style!r}")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity: expected a number from 0 to 1, got {opacity}")
    if style != "shaded" and scale != "map":
        raise ValueError(
            f"style: expected 'shaded' with scale={scale!r}, as Captum divides each map by its own maximum, got {style!r}"
        )
    if style in ("alpha_scaling", "masked_image") and found.scaled.limits[0] < 0:
        raise ValueError(f"style: expected 'shaded' or 'blended_heat_map' for signed maps, got {style!r}")


def _headings(
    targets: Tensor | Sequence[int] | None, class_names: Sequence[str] | None, counts: list[int]
) -> list[list[str]]:
    """The class of each map."""
    if targets is None:
        rows = [list(range(count)) for count in counts]
    else:
        given = torch.as_tensor(targets)
        shape = tuple(given.shape)
        rows = (
            (given.expand(len(counts), -1) if given.dim() == 1 else given).tolist()
            if given.dim() in (1, 2)
            else []
        )
        if [len(row) for row in rows] != counts:
            raise ValueError(
                f"targets: expected (M,) or (N, M), a class for each map of {len(counts)} samples, got {shape}"
            )
    if class_names is not None and max(map(max, rows)) >= len(class_names):
        raise ValueError(
            f"class_names: expected more than {max(map(max, rows))}, as the targets say, got {len(class_names)}"
        )
    return [
        ["none" if k < 0 else str(k) if class_names is None else str(class_names[k]) for k in row]
        for row in rows
    ]
