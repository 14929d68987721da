"""Matplotlib figures of cams beside, over and around their images. Matplotlib is loaded when one is drawn."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..functional.images import PerChannel
from .drawing import Cams, Drawing, Images, Scale, Style
from .layout import Status
from .store import Store, open_store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FigureKind = Literal["overlay", "contour", "side_by_side", "class_grid"]

#: What a figure says about each style, and the colors of its bar if they are not the map's.
_STYLES: dict[str, tuple[str, str | None]] = {
    "shaded": ("Map over image: opacity grows with the distance from 0, up to {opacity:.0%}.", None),
    "blended_heat_map": ("Map over the gray image, {opacity:.0%} opaque everywhere{captum}", None),
    "alpha_scaling": ("Map as the image's opacity, from none to full{captum}", "Greys"),
    "masked_image": ("Image multiplied with the map{captum}", "gray"),
}
_CAPTUM = " (Captum's {style}: divided by its maximum once more when resized, outliers not clipped)."


class FigureOptions(TypedDict, total=False):
    """Options of every figure, described in :func:`overlay_figure`."""

    scale: Scale
    signed: bool
    mean: PerChannel
    std: PerChannel
    titles: Sequence[str] | None
    problems: Sequence[str] | None
    title: str | None


def overlay_figure(
    images: Images,
    cams: Cams,
    *,
    style: Style = "shaded",
    opacity: float = 0.7,
    columns: int | None = None,
    **options: Unpack[FigureOptions],
) -> Figure:
    """Draw cams over their images.

    The figure states the color scale and what was done to maps and images. A dead map (without a positive value), a constant map
    and a map with values that are not finite are named as such.

    Args:
        images: (N, C, H, W), or N tensors (C, H, W) of any sizes, on any device.
        cams: (N, 1, h, w), or N tensors (1, h, w), raw and signed, as :meth:`.BatchGradCam.attribute` returns them.
        style: ``"shaded"``: opacity grows with the value, so that the image is visible where the map is 0. The other styles are
            those of ``captum.attr.visualization.visualize_image_attr``, with each map divided by its own maximum and no outliers
            clipped: ``"blended_heat_map"``, ``"alpha_scaling"``, ``"masked_image"``.
        opacity: Opacity of the map at the end of its scale, and everywhere with ``"blended_heat_map"``, from 0 to 1.
        columns: Samples per row. Default: as many as fit.
        **options: Options of every figure:

            - ``scale``: which maps are divided by the same value: ``"map"`` (the default), each by its own maximum;
              ``"sample"``, the maps of a sample by the largest of their maxima; ``"figure"``, all maps by the largest of all; or
              a number that all are divided by.
            - ``signed``: show negative values in blue, on a scale from minus to plus the largest absolute value. By default they
              are drawn as 0.
            - ``mean`` and ``std``: those of the ``Normalize`` that the images went through. Without them, images in [0, 1] are
              drawn as they are, and others are scaled from their own minimum and maximum.
            - ``titles``: N texts, of any number of lines, such as the label and the prediction.
            - ``problems``: N texts, empty for most samples: why there is no map. The text is drawn instead of the map.
            - ``title``: the figure's title.

    Returns:
        The figure. It belongs to no window and need not be closed; ``figure.savefig(path)`` writes it.

    Raises:
        ValueError: If images, cams and texts do not fit, if the style cannot show what is asked for, or for more than 400 panels.

    Example:
        >>> import torch
        >>> figure = overlay_figure(torch.rand(2, 3, 32, 32), torch.rand(2, 1, 4, 4), titles=["cat", "dog"])
    """
    if style not in _STYLES:
        raise ValueError(f"style: expected {', '.join(map(repr, _STYLES))}, got {style!r}")
    if style != "shaded" and options.get("scale", "map") != "map":
        raise ValueError(
            f"style: expected 'shaded' with scale={options['scale']!r}, got {style!r}; Captum divides each map by its own maximum"
        )
    if style in ("alpha_scaling", "masked_image") and options.get("signed"):
        raise ValueError(f"style: expected 'shaded' or 'blended_heat_map' for signed maps, got {style!r}")
    drawing = Drawing(images, cams, **options)
    said, bar_colors = _STYLES[style]
    drawing.bar_colors = bar_colors or drawing.colors
    said = said.format(opacity=_checked_opacity(opacity), captum=_CAPTUM.format(style=style))
    for sample, (axis,) in enumerate(drawing.sample_panels(1, columns, said)):
        drawing.draw_overlay(axis, sample, opacity=opacity, style=style)
        drawing.head(axis, drawing.titles[sample])
    return drawing.figure


def contour_figure(
    images: Images,
    cams: Cams,
    *,
    levels: Sequence[float] = (0.25, 0.5, 0.75),
    columns: int | None = None,
    **options: Unpack[FigureOptions],
) -> Figure:
    """Draw images with contour lines of their cams, so that the whole image stays visible.

    Args:
        images: (N, C, H, W), or N tensors (C, H, W) of any sizes, on any device.
        cams: (N, 1, h, w), or N tensors (1, h, w), raw and signed.
        levels: Where the lines are, as shares of the scale, above 0 and below 1; with ``signed`` their negatives as well.
        columns: Samples per row. Default: as many as fit.
        **options: ``scale``, ``signed``, ``mean``, ``std``, ``titles``, ``problems`` and ``title`` as in :func:`overlay_figure`.

    Returns:
        The figure.

    Raises:
        ValueError: If images, cams, levels and texts do not fit.
    """
    levels = sorted(set(levels))
    if not levels or not all(0 < level < 1 for level in levels):
        raise ValueError(f"levels: expected numbers above 0 and below 1, got {levels}")
    said = f"Lines at {', '.join(f'{100 * level:g} %' for level in levels)} of the scale"
    if options.get("signed"):
        levels, said = [-level for level in reversed(levels)] + levels, f"{said} and of its negative part"
    drawing = Drawing(images, cams, **options)
    for sample, (axis,) in enumerate(drawing.sample_panels(1, columns, f"{said}.", levels)):
        drawing.draw_contour(axis, sample, levels)
        drawing.head(axis, drawing.titles[sample])
    return drawing.figure


def side_by_side_figure(
    images: Images,
    cams: Cams,
    *,
    opacity: float = 0.7,
    columns: int | None = None,
    **options: Unpack[FigureOptions],
) -> Figure:
    """Draw for each sample the image, the cam at the layer's own resolution, and the cam over the image.

    Args:
        images: (N, C, H, W), or N tensors (C, H, W) of any sizes, on any device.
        cams: (N, 1, h, w), or N tensors (1, h, w), raw and signed.
        opacity: Opacity of the map at the end of its scale, from 0 to 1.
        columns: Samples per row. Default: as many as fit.
        **options: ``scale``, ``signed``, ``mean``, ``std``, ``titles``, ``problems`` and ``title`` as in :func:`overlay_figure`.

    Returns:
        The figure.

    Raises:
        ValueError: If images, cams and texts do not fit.
    """
    drawing = Drawing(images, cams, **options)
    said = _STYLES["shaded"][0].format(opacity=_checked_opacity(opacity))
    for sample, axes in enumerate(drawing.sample_panels(3, columns, said)):
        drawing.draw_image(axes[0], sample)
        drawing.draw_map(axes[1], sample)
        drawing.draw_overlay(axes[2], sample, opacity=opacity)
        for axis, text in zip(
            axes, (drawing.titles[sample] or "image", "map", "map over image"), strict=True
        ):
            drawing.head(axis, text)
    return drawing.figure


def class_grid_figure(
    images: Images,
    cams: Cams,
    targets: Tensor | Sequence[int] | None = None,
    *,
    class_names: Sequence[str] | None = None,
    opacity: float = 0.7,
    **options: Unpack[FigureOptions],
) -> Figure:
    """Draw a row per sample and a column per class: the image, then the cam of each class over it.

    By default the maps of a sample share a scale, so that its classes can be compared: ``scale="sample"``.

    Args:
        images: (N, C, H, W), or N tensors (C, H, W) of any sizes, on any device.
        cams: (N, M, h, w), or N tensors (M, h, w), as :meth:`.BatchGradCam.attribute_classes` returns them.
        targets: (M,) or (N, M), the class that each map explains, -1 for none. Default: 0 … M - 1.
        class_names: Names of all classes. Default: their numbers.
        opacity: Opacity of the map at the end of its scale, from 0 to 1.
        **options: ``scale``, ``signed``, ``mean``, ``std``, ``titles``, ``problems`` and ``title`` as in :func:`overlay_figure`.

    Returns:
        The figure.

    Raises:
        ValueError: If images, cams, targets, names and texts do not fit.
    """
    options = {"scale": "sample", **options}
    drawing = Drawing(images, cams, several=True, **options)
    headings = _headings(targets, class_names, [len(maps) for maps in drawing.maps])
    shared = all(row == headings[0] for row in headings)  # above the first row alone
    said = _STYLES["shaded"][0].format(opacity=_checked_opacity(opacity))
    count = len(drawing.maps)
    grid = drawing.panels(
        count, 1 + max(map(len, headings)), said, lines=(1 if shared else count), names=drawing.titles
    )
    for sample, (axes, names) in enumerate(zip(grid, headings, strict=True)):
        drawing.draw_image(axes[0], sample)
        for place in range(len(names)):
            drawing.draw_overlay(axes[1 + place], sample, place, opacity=opacity)
        for axis, text in zip(axes, ["image", *names], strict=False):
            drawing.head(axis, text if sample == 0 or not shared else "")
        for axis in axes[1 + len(names) :]:
            axis.set_visible(False)
    return drawing.figure


def store_figure(
    store: Store | str | os.PathLike[str],
    positions: Sequence[int],
    kind: FigureKind = "overlay",
    *,
    images: Dataset[Any] | None = None,
    which: int = 0,
    **options: Any,
) -> Figure:
    """Draw samples of a store with their labels, predictions and confidences, and what was explained and how.

    Damaged and missing samples are drawn blank, with the reason.

    Args:
        store: What :func:`~batchcam_captum.explain.open_store` returns, or the path of a store.
        positions: Positions of the samples in the store, as in ``store.frame()``, from 0 to N - 1; repeats are allowed.
        kind: ``"overlay"``, ``"contour"``, ``"side_by_side"``, or ``"class_grid"``, which shows all maps of a sample.
        images: The data set that was explained, in the same order; the store's ``mean`` and ``std`` are undone. Default: the
            store's thumbnails.
        which: Which of the M maps of each sample is drawn; ignored by ``"class_grid"``.
        **options: Those of :func:`overlay_figure`, :func:`contour_figure`, :func:`side_by_side_figure` or
            :func:`class_grid_figure`.

    Returns:
        The figure.

    Raises:
        ValueError: If positions or the map are not in the store, if the kind is unknown, or if there are neither images nor
            thumbnails.
    """
    store = store if isinstance(store, Store) else open_store(store)
    if kind not in get_args(FigureKind):
        raise ValueError(f"kind: expected {', '.join(map(repr, get_args(FigureKind)))}, got {kind!r}")
    rows = [int(position) for position in positions]
    if not rows:
        raise ValueError("positions: expected at least one, got none")
    if outside := [row for row in rows if not 0 <= row < len(store)]:
        raise ValueError(f"positions: expected 0 to {len(store) - 1}, samples of the store, got {outside[0]}")
    targets = _rows(store.targets, rows)
    if not 0 <= which < targets.shape[1]:
        raise ValueError(f"which: expected 0 to {targets.shape[1] - 1}, a map of the store, got {which}")
    cams = torch.from_numpy(_rows(store.maps, rows).astype(np.float32))
    samples = store.frame().iloc[rows]
    problems = [
        {"damaged": f"damaged: {reason}", "missing": "not written yet"}.get(status, "")
        for status, reason in zip(samples["status"], samples["problem"], strict=True)
    ]
    if images is None:
        pixels: Images = _thumbnails(store, rows, problems)
    else:
        pixels = _images(images, store, rows, problems)
        options = {"mean": store.settings.get("mean"), "std": store.settings.get("std")} | options
    shared: dict[str, Any] = {"problems": problems, "title": _title(store)}
    if kind == "class_grid":
        shared |= {
            "titles": _titles(store, samples, None),
            "class_names": store.class_names,
            "targets": targets,
        }
    else:
        cams = cams[:, which : which + 1]
        shared["titles"] = _titles(store, samples, targets[:, which])
    kinds: dict[str, Callable[..., Figure]] = {
        "overlay": overlay_figure,
        "contour": contour_figure,
        "side_by_side": side_by_side_figure,
        "class_grid": class_grid_figure,
    }
    return kinds[kind](pixels, cams, **(shared | options))


def _headings(
    targets: Tensor | Sequence[int] | None, class_names: Sequence[str] | None, counts: list[int]
) -> list[list[str]]:
    """Return the name of the class of each map."""
    if targets is None:
        rows = [list(range(count)) for count in counts]
    else:
        given = torch.as_tensor(targets)
        rows = (
            (given.expand(len(counts), -1) if given.dim() == 1 else given).tolist()
            if given.dim() in (1, 2)
            else []
        )
        if [len(row) for row in rows] != counts:
            raise ValueError(
                f"targets: expected (M,) or (N, M), a class for each map of {len(counts)} samples, got {tuple(given.shape)}"
            )
    highest = max(map(max, rows))
    if class_names is not None and highest >= len(class_names):
        raise ValueError(
            f"class_names: expected more than {highest}, the largest target, got {len(class_names)}"
        )
    names = class_names or range(highest + 1)
    return [["none" if k < 0 else str(names[k]) for k in row] for row in rows]


def _checked_opacity(opacity: float) -> float:
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity: expected a number from 0 to 1, got {opacity}")
    return opacity


def _rows(array: Any, rows: Sequence[int]) -> np.ndarray[Any, Any]:
    """Read rows in the order asked for, each chunk once."""
    unique, places = np.unique(rows, return_inverse=True)
    return np.asarray(array.oindex[unique])[places]


def _thumbnails(store: Store, rows: Sequence[int], problems: Sequence[str]) -> Tensor:
    # Never the files that the paths name: the model mostly saw a crop of them, and the map would be in the wrong place.
    if store.thumbnails is None:
        raise ValueError(
            "images: expected the data set that was explained, as the store has no thumbnails, got None"
        )
    found = torch.from_numpy(_rows(store.thumbnails, rows)).permute(0, 3, 1, 2).clone()
    found[torch.tensor([bool(problem) for problem in problems])] = 255
    return found


def _images(images: Dataset[Any], store: Store, rows: Sequence[int], problems: Sequence[str]) -> list[Tensor]:
    """Return the images of the rows; those with a problem are not read, but blank."""
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


def _titles(store: Store, samples: Any, targets: np.ndarray[Any, Any] | None) -> list[str]:
    """Return for each sample its name, label and prediction, and the class explained if that is another one."""
    names = store.class_names

    def name(index: int) -> str:
        return _short(names[index] if names is not None and 0 <= index < len(names) else str(index))

    texts = []
    for place, sample in enumerate(samples.fillna({"label": -1, "prediction": -1}).itertuples()):
        lines = [_short(os.path.basename(sample.path) or f"sample {sample.id}")]
        if sample.label >= 0:
            lines.append(f"label {name(sample.label)}")
        if sample.prediction >= 0:
            lines.append(f"predicted {name(sample.prediction)} ({sample.confidence:.2f})")
        elif sample.status == Status.WRITTEN.name.lower():
            lines.append("scores not finite")
        if targets is not None and targets[place] not in (-1, sample.prediction):
            lines.append(f"map of {name(targets[place])}")
        texts.append("\n".join(lines))
    return texts


def _short(text: str) -> str:
    return text if len(text) <= 28 else f"{text[:14]}…{text[-13:]}"
