"""Matplotlib figures of cams beside and over their images. Matplotlib is loaded when one is drawn."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from math import ceil, sqrt
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict, Unpack

import torch
from torch import Tensor

from ..functional.images import PerChannel, undo_standardization
from ..functional.maps import dead_cams, peak, resize
from ..functional.overlay import gray_or_color

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Images = Tensor | Sequence[Tensor]
Cams = Tensor | Sequence[Tensor]
Scale = Literal["map", "sample", "figure"]

#: Inches: of a square panel, of a row of panels, of a line of text, of a letter, of the color bar.
_SIDE, _WIDTH, _LINE, _LETTER, _BAR = 1.7, 9.0, 0.14, 0.055, 0.9
_SMALL = 7  # points
_MOST_PANELS = 400  # Matplotlib takes a minute for more
#: Label of the color bar, and what was done to the maps.
_SCALES = {
    "map": ("{value} ÷ its {largest}", "each divided by its own {largest}"),
    "sample": ("{value} ÷ {largest} of the sample", "divided by the {largest} of all maps of the sample"),
    "figure": ("{value}", "all on one scale, which ends at the {largest} of all maps shown, {top:.3g}"),
}


class FigureOptions(TypedDict, total=False):
    """Options of every figure, described in :func:`overlay_figure`."""

    scale: Scale
    signed: bool
    opacity: float
    mean: PerChannel
    std: PerChannel
    titles: Sequence[str] | None
    title: str | None


def overlay_figure(images: Images, cams: Cams, **options: Unpack[FigureOptions]) -> Figure:
    """Draw cams over their images. The opacity grows with the value, so that the image is visible where the cam is 0.

    The figure states the color scale and what was done to maps and images. A dead map (without a positive value) and a map with
    values that are not finite are named as such.

    Args:
        images: (N, C, H, W), or N tensors (C, H, W) of any sizes, on any device.
        cams: (N, 1, h, w), or N tensors (1, h, w), raw and signed, as :meth:`.BatchGradCam.attribute` returns them.
        **options: Options of every figure:

            - ``scale``: which maps are divided by the same value: ``"map"`` (the default), each by its own maximum;
              ``"sample"``, the maps of a sample by the largest of their maxima; ``"figure"``, all maps by the largest of all.
            - ``signed``: show negative values in blue, on a scale from minus to plus the largest absolute value. By default they
              are drawn as 0.
            - ``opacity``: opacity of the map at the end of its scale, from 0 to 1; 0.7 by default.
            - ``mean`` and ``std``: those of the ``Normalize`` that the images went through. Without them, images in [0, 1] are
              drawn as they are, and others are scaled from their own minimum and maximum.
            - ``titles``: N texts, of any number of lines, such as the label and the prediction.
            - ``title``: the figure's title.

    Returns:
        The figure. It belongs to no window and need not be closed; ``figure.savefig(path)`` writes it.

    Raises:
        ValueError: If images, cams and texts do not fit, or for more than 400 panels.

    Example:
        >>> import torch
        >>> figure = overlay_figure(torch.rand(2, 3, 32, 32), torch.rand(2, 1, 4, 4), titles=["cat", "dog"])
    """
    drawing = _Drawing(images, cams, **options)
    for sample, (axis,) in enumerate(drawing.sample_panels(1)):
        drawing.draw_overlay(axis, sample)
        _head(axis, drawing.titles[sample])
    return drawing.figure


def side_by_side_figure(images: Images, cams: Cams, **options: Unpack[FigureOptions]) -> Figure:
    """Draw for each sample the image, the cam at the layer's own resolution, and the cam over the image.

    Args:
        images: (N, C, H, W), or N tensors (C, H, W) of any sizes, on any device.
        cams: (N, 1, h, w), or N tensors (1, h, w), raw and signed.
        **options: As in :func:`overlay_figure`.

    Returns:
        The figure.

    Raises:
        ValueError: If images, cams and texts do not fit.
    """
    drawing = _Drawing(images, cams, **options)
    for sample, axes in enumerate(drawing.sample_panels(3)):
        axes[0].imshow(drawing.images[sample].numpy(), interpolation="nearest")
        drawing.draw_map(axes[1], sample)
        drawing.draw_overlay(axes[2], sample)
        for axis, text in zip(
            axes, (drawing.titles[sample] or "image", "map", "map over image"), strict=True
        ):
            _head(axis, text)
    return drawing.figure


def class_grid_figure(
    images: Images,
    cams: Cams,
    targets: Tensor | Sequence[int] | None = None,
    *,
    class_names: Sequence[str] | None = None,
    **options: Unpack[FigureOptions],
) -> Figure:
    """Draw a row per sample and a column per class: the image, then the cam of each class over it.

    By default the maps of a sample share a scale, so that its classes can be compared: ``scale="sample"``.

    Args:
        images: (N, C, H, W), or N tensors (C, H, W) of any sizes, on any device.
        cams: (N, M, h, w), or N tensors (M, h, w), as :meth:`.BatchGradCam.attribute_classes` returns them.
        targets: (M,) or (N, M), the class that each map explains, -1 for none. Default: 0 … M - 1.
        class_names: Names of all classes. Default: their numbers.
        **options: As in :func:`overlay_figure`.

    Returns:
        The figure.

    Raises:
        ValueError: If images, cams, targets, names and texts do not fit.
    """
    options = {"scale": "sample", **options}
    drawing = _Drawing(images, cams, maps_per_sample=None, **options)
    headings = _headings(targets, class_names, [len(maps) for maps in drawing.maps])
    shared = all(row == headings[0] for row in headings)  # above the first row alone
    lines = 1 if shared else len(headings)
    grid = drawing.panels(len(headings), 1 + max(map(len, headings)), lines=lines, names=drawing.titles)
    for sample, (axes, names) in enumerate(zip(grid, headings, strict=True)):
        axes[0].imshow(drawing.images[sample].numpy(), interpolation="nearest")
        for place in range(len(names)):
            drawing.draw_overlay(axes[1 + place], sample, place)
        for axis, text in zip(axes, ["image", *names], strict=False):
            _head(axis, text if sample == 0 or not shared else "")
        for axis in axes[1 + len(names) :]:
            axis.set_visible(False)
    return drawing.figure


class _Map(NamedTuple):
    """A map as it is drawn."""

    values: Tensor  #: (h, w) float32 in [0, 1], or [-1, 1] if signed; 1 is the end of the scale
    note: str  #: why there is nothing to draw; empty for most


class _Drawing:
    """Images and maps as they are drawn, and the figure with its panels and color bar."""

    figure: Figure

    def __init__(
        self,
        images: Images,
        cams: Cams,
        *,
        maps_per_sample: int | None = 1,
        scale: Scale = "map",
        signed: bool = False,
        opacity: float = 0.7,
        mean: PerChannel = None,
        std: PerChannel = None,
        titles: Sequence[str] | None = None,
        title: str | None = None,
    ) -> None:
        if not 0 <= opacity <= 1:
            raise ValueError(f"opacity: expected a number from 0 to 1, got {opacity}")
        self.images, image_note = _shown_images(images, mean, std)
        self.maps, top = _scaled_maps(cams, scale, signed)
        self.opacity, self.title = opacity, title
        count = len(self.images)
        if len(self.maps) != count or any(len(maps) != (maps_per_sample or len(maps)) for maps in self.maps):
            raise ValueError(
                f"cams: expected those of {count} images, {maps_per_sample or 'any number of'} for each, got "
                f"{list(map(len, self.maps))}; draw several maps of an image with class_grid_figure"
            )
        # Panels are as wide and high as the middle image.
        self.aspect = sorted(min(max(i.shape[1] / i.shape[0], 0.25), 4.0) for i in self.images)[count // 2]
        letters = int(_SIDE * sqrt(self.aspect) / _LETTER)
        if titles is not None and len(titles) != count:
            raise ValueError(f"titles: expected {count}, one per image, got {len(titles)}")
        self.titles = [_wrapped(str(text), letters) for text in titles or [""] * count]
        colors = "RdBu_r" if signed else "viridis"
        self.color_options: dict[str, Any] = {"cmap": colors, "vmin": -1 if signed else 0, "vmax": 1}
        self.limits = (-top if signed else 0.0, top)
        words = {
            "value": "map" if signed else "relu(map)",
            "largest": "largest absolute value" if signed else "maximum",
        }
        self.bar, how = (text.format(**words, top=top) for text in _SCALES[scale])
        sizes = {tuple(maps[0].values.shape) for maps in self.maps}
        size = " x ".join(map(str, sizes.pop())) if len(sizes) == 1 else "several sizes"
        self.notes = " ".join(
            [
                f"Maps: {'signed' if signed else 'positive part (relu)'}, {how}.",
                f"Map over image: opacity grows with the distance from 0, up to {opacity:.0%}.",
                f"Maps of {size}, resized to the images bilinearly, or by area where those are smaller.",
                image_note,
            ]
        ).strip()

    def sample_panels(self, per_sample: int) -> list[list[Axes]]:
        """Make the figure of samples side by side, and return the panels of each sample."""
        count = len(self.images)
        room = max(1, round(_WIDTH / (_SIDE * sqrt(self.aspect) * per_sample)))
        # As many in each row as the number of rows allows: 2 × 5 rather than 8 and 2.
        columns = ceil(count / ceil(count / room))
        rows = ceil(count / columns)
        lines = sum(
            max(text.count("\n") + 1 for text in self.titles[row * columns :][:columns])
            for row in range(rows)
        )
        axes = self.panels(rows, columns * per_sample, lines=lines).ravel().tolist()
        for axis in axes[count * per_sample :]:
            axis.set_visible(False)
        return [axes[sample * per_sample :][:per_sample] for sample in range(count)]

    def panels(self, rows: int, columns: int, *, lines: int, names: Sequence[str] = ()) -> Any:
        """Make the figure with its title, color bar, and below the panels what was done to maps and images.

        Args:
            rows: Rows of panels.
            columns: Panels per row.
            lines: Lines of text above all rows together.
            names: Texts to the left of the rows.

        Returns:
            (rows, columns), an array of axes.
        """
        from matplotlib.figure import Figure

        if rows * columns > _MOST_PANELS:
            raise ValueError(
                f"figure: expected at most {_MOST_PANELS} panels, got {rows} rows of {columns}; choose fewer samples or classes"
            )
        beside = _LETTER * max((len(line) for name in names for line in name.split("\n")), default=0)
        width = max(_SIDE * sqrt(self.aspect) * columns + _BAR + beside, 3.6)
        notes = textwrap.wrap(self.notes, int(width * 17))
        texts = _LINE * (lines + len(notes) + 2) + 0.3 * bool(self.title)
        height = (_SIDE / sqrt(self.aspect) + 0.06) * rows + texts
        self.figure = Figure(figsize=(width, height), layout="constrained")
        if self.title:
            self.figure.suptitle(_wrapped(self.title, int(width * 12)), fontsize=9, parse_math=False)
        self.figure.supxlabel("\n".join(notes), fontsize=_SMALL, x=0.02, ha="left", parse_math=False)
        axes = self.figure.subplots(rows, columns, squeeze=False)
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        for axis, name in zip(axes[:, 0], names, strict=False):
            axis.set_ylabel(name, fontsize=_SMALL, rotation=0, ha="right", va="center", parse_math=False)
        self._draw_bar(axes, height)
        return axes

    def _draw_bar(self, axes: Any, height: float) -> None:
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        length = min(1.0, 4.0 / height)  # at most 4 inches
        bar = self.figure.colorbar(
            ScalarMappable(Normalize(*self.limits), self.color_options["cmap"]), ax=axes, shrink=length,
            aspect=7 * length * height, pad=0.02, panchor=False,  # which would push the panels to the right
        )  # fmt: skip
        bar.set_label(_wrapped(self.bar, max(16, int(length * height * 11))), fontsize=_SMALL)
        bar.ax.tick_params(labelsize=6)
        bar.ax.yaxis.get_offset_text().set_fontsize(6)

    def draw_map(self, axis: Axes, sample: int) -> None:
        """Draw the map alone, at its own resolution, as wide and high as the image."""
        map_, (height, width) = self.maps[sample][0], self.images[sample].shape[:2]
        extent = (-0.5, width - 0.5, height - 0.5, -0.5)
        if map_.note:
            axis.set(xlim=extent[:2], ylim=extent[2:], aspect="equal")
        else:
            axis.imshow(map_.values.numpy(), **self.color_options, extent=extent, interpolation="nearest")
        _note(axis, map_.note)

    def draw_overlay(self, axis: Axes, sample: int, place: int = 0) -> None:
        """Draw a map of a sample over its image."""
        image, map_ = self.images[sample], self.maps[sample][place]
        axis.imshow(image.numpy(), interpolation="nearest")
        if not map_.note:
            values = resize(map_.values[None, None], image.shape[:2])[0, 0]
            alpha = (self.opacity * values.abs()).numpy()
            axis.imshow(values.numpy(), **self.color_options, alpha=alpha, interpolation="nearest")
        _note(axis, map_.note)


def _head(axis: Axes, text: str) -> None:
    axis.set_title(text, fontsize=_SMALL, pad=3, parse_math=False)


def _note(axis: Axes, text: str) -> None:
    """Write a text at the bottom of a panel, in a frame, as the panel may be empty otherwise."""
    if text:
        axis.spines[:].set(visible=True, color="0.7", linestyle=(0, (3, 3)))
        axis.text(
            0.5, 0.04, _wrapped(text, 26), transform=axis.transAxes, ha="center", va="bottom", fontsize=6,
            bbox={"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 1.5}, parse_math=False,
        )  # fmt: skip


def _wrapped(text: str, letters: int) -> str:
    return "\n".join("\n".join(textwrap.wrap(line, letters)) for line in text.split("\n"))


@torch.no_grad()
def _shown_images(images: Images, mean: PerChannel, std: PerChannel) -> tuple[list[Tensor], str]:
    """Return images as (H, W, 3) in [0, 1], and what was done to them.

    Integers are taken as 0 to 255. Images are in color if C is 3, and the mean of the channels otherwise.
    """
    found = [_floating(image) for image in images]
    if not found:
        raise ValueError("images: expected at least one, got none")
    if mean is not None or std is not None:
        found = [undo_standardization(image[None], mean, std)[0] for image in found]
        done = "Images: standardization undone."
    # Half types and resizing leave values slightly outside of [0, 1].
    elif any(bool(((image < -1e-3) | (image > 1 + 1e-3)).any()) for image in found):
        found = [gray_or_color(image[None])[0] for image in found]
        done = "Images: each from its minimum to its maximum."
    else:
        done = ""
    single = [image if len(image) == 3 else image.mean(0, keepdim=True) for image in found]
    return [image.clamp(0, 1).expand(3, -1, -1).movedim(0, -1) for image in single], done


def _floating(image: Tensor) -> Tensor:
    """Return an image as (C, H, W) float32 on the CPU."""
    if not isinstance(image, Tensor) or image.dim() not in (2, 3) or image.numel() == 0:
        got = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(
            f"images: expected tensors (N, C, H, W), or N of (C, H, W) or (H, W), got one of {got}; convert other types to "
            "tensors, and pass a single image as images.unsqueeze(0)"
        )
    image = image.detach().cpu()
    scale = 1 if image.is_floating_point() or image.dtype is torch.bool else 255
    return (image.float() / scale).nan_to_num().reshape(-1, *image.shape[-2:])


@torch.no_grad()
def _scaled_maps(cams: Cams, scale: Scale, signed: bool) -> tuple[list[list[_Map]], float]:
    """Return the maps on their scale, and the end of the color bar. A dead map is drawn only if ``signed``."""
    if scale not in _SCALES:
        raise ValueError(f"scale: expected {', '.join(map(repr, _SCALES))}, got {scale!r}")
    samples = []
    for given in cams:
        if not isinstance(given, Tensor) or given.dim() != 3 or given.numel() == 0:
            got = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise ValueError(
                f"cams: expected tensors (N, M, h, w), or N of (M, h, w), got one of {got}; figures show maps with two spatial "
                "dimensions: pick a slice of others"
            )
        maps = given.detach().cpu().float()
        finite = maps.flatten(1).isfinite().all(1)
        maps = maps.masked_fill(~finite[:, None, None], 0)
        dead = dead_cams(maps[:, None])
        shown = maps if signed else maps.relu().masked_fill(dead[:, None, None], 0)
        blank = ~shown.flatten(1).any(1)
        notes = [
            "no map: not finite" if not good else "dead map" if none else ""
            for good, none in zip(finite, blank, strict=True)
        ]
        samples.append((shown, notes))
    largest = max((float(shown.abs().max()) for shown, _ in samples), default=0.0)
    drawn = []
    for shown, notes in samples:
        ends = {"map": peak(shown), "sample": shown.abs().max(), "figure": shown.new_tensor(largest)}
        end = ends[scale]
        values = (shown / end.where(end > 0, 1)).clamp(-1, 1)
        drawn.append([_Map(one, note) for one, note in zip(values, notes, strict=True)])
    return drawn, (largest or 1.0) if scale == "figure" else 1.0


def _headings(
    targets: Tensor | Sequence[int] | None, class_names: Sequence[str] | None, counts: list[int]
) -> list[list[str]]:
    """Return the name of the class of each map."""
    given = torch.arange(counts[0]) if targets is None else torch.as_tensor(targets)
    rows = (given.expand(len(counts), -1) if given.dim() == 1 else given).tolist()
    if given.dim() not in (1, 2) or [len(row) for row in rows] != counts:
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
