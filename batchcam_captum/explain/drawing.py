"""Panels of images and maps on a stated scale, with a color bar and a sentence about what was done to them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from math import ceil, sqrt
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

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
Scale = Literal["map", "sample", "figure"] | float
#: How a map is drawn over its image. All but "shaded" are those of ``captum.attr.visualization``.
Style = Literal["shaded", "blended_heat_map", "alpha_scaling", "masked_image"]

#: Inches: of a square panel, of a row of panels if their number is free, of a line of text, of a letter, of the color bar.
_SIDE, _WIDTH, _LINE, _LETTER, _BAR = 1.7, 9.0, 0.14, 0.055, 0.9
_SMALL = 7  # points
_MOST_PANELS = 400  # Matplotlib takes a minute for more
#: A map whose values differ by no more than this share of its largest absolute value is constant.
_CONSTANT = 1e-6


class _Map(NamedTuple):
    """A map as it is drawn."""

    values: Tensor  #: (h, w) float32 in [0, 1], or [-1, 1] if signed; 1 is the end of the scale
    note: str  #: "dead map: …" and the like; empty for most
    drawn: bool  #: False if there is nothing to draw


class Drawing:
    """Images and maps as they are drawn, and the figure with its panels and color bar.

    Args:
        images: N images.
        cams: The maps of N images.
        several: Allow more than one map per sample.
        scale: Like the others, described in :func:`.overlay_figure`.
    """

    figure: Figure

    def __init__(
        self,
        images: Images,
        cams: Cams,
        *,
        several: bool = False,
        scale: Scale = "map",
        signed: bool = False,
        mean: PerChannel = None,
        std: PerChannel = None,
        titles: Sequence[str] | None = None,
        problems: Sequence[str] | None = None,
        title: str | None = None,
    ) -> None:
        self.images, self.image_problems, image_note = _shown_images(images, mean, std)
        self.maps, top, clipped = _scaled_maps(cams, scale, signed)
        count = len(self.images)
        # Panels are as wide and high as the middle image.
        aspects = sorted(image.shape[1] / image.shape[0] for image in self.images)
        self.aspect = min(max(aspects[count // 2], 0.25), 4.0)
        letters = int(_SIDE * sqrt(self.aspect) / _LETTER)
        self.titles = [
            "\n".join("\n".join(textwrap.wrap(line, letters)) for line in text.split("\n"))
            for text in _texts("titles", titles, count)
        ]
        given = _texts("problems", problems, count)
        self.problems = [one or other for one, other in zip(given, self.image_problems, strict=True)]
        if len(self.maps) != count:
            raise ValueError(f"cams: expected those of {count} images, got those of {len(self.maps)}")
        if not several and any(len(maps) != 1 for maps in self.maps):
            raise ValueError(
                f"cams: expected one map per sample, (N, 1, h, w), got {max(map(len, self.maps))}; pick one, cams[:, :1], or "
                "draw all with class_grid_figure"
            )
        self.title = title
        self.colors = self.bar_colors = "RdBu_r" if signed else "viridis"
        self.limits = (-top if signed else 0.0, top)
        self.extend = "neither" if not clipped else "both" if signed else "max"
        self.bar, how = _scale_words(scale, signed, top)
        sizes = {tuple(maps[0].values.shape) for maps in self.maps}
        size = " x ".join(map(str, sizes.pop())) if len(sizes) == 1 else "several sizes"
        resized = any(
            maps[0].values.shape != image.shape[:2]
            for maps, image in zip(self.maps, self.images, strict=True)
        )
        resizing = ", resized to the images bilinearly, or by area where those are smaller" if resized else ""
        self.notes = [how, f"Maps of {size}{resizing}.", image_note]

    def sample_panels(
        self, per_sample: int, columns: int | None, said: str, levels: Sequence[float] = ()
    ) -> list[list[Axes]]:
        """Make the figure of samples side by side, ``columns`` of them in a row.

        Returns:
            The panels of each sample.
        """
        if columns is not None and columns < 1:
            raise ValueError(f"columns: expected at least 1, got {columns}")
        count = len(self.images)
        room = max(1, round(_WIDTH / (_SIDE * sqrt(self.aspect) * per_sample)))
        # As many in each row as the number of rows allows: 2 × 5 rather than 8 and 2.
        columns = columns or ceil(count / ceil(count / room))
        rows = ceil(count / columns)
        columns = min(columns, count)
        lines = [
            max(text.count("\n") + 1 for text in self.titles[row * columns :][:columns])
            for row in range(rows)
        ]
        axes = self.panels(rows, columns * per_sample, said, levels, lines=sum(lines)).ravel().tolist()
        for axis in axes[count * per_sample :]:
            axis.set_visible(False)
        return [axes[sample * per_sample :][:per_sample] for sample in range(count)]

    def panels(
        self,
        rows: int,
        columns: int,
        said: str,
        levels: Sequence[float] = (),
        *,
        lines: int,
        names: Sequence[str] = (),
    ) -> Any:
        """Make the figure with its title, color bar, and below the panels what was done to maps and images.

        Args:
            rows: Rows of panels.
            columns: Panels per row.
            said: How maps are drawn.
            levels: Where the color bar has lines, as shares of the scale.
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
        how, resizing, image_note = self.notes
        notes = textwrap.wrap(" ".join(filter(None, [how, said, resizing, image_note])), int(width * 17))
        texts = _LINE * (lines + len(notes) + 2) + 0.3 * bool(self.title)
        height = (_SIDE / sqrt(self.aspect) + 0.06) * rows + texts
        self.figure = Figure(figsize=(width, height), layout="constrained")
        if self.title:
            text = "\n".join(textwrap.wrap(self.title, int(width * 12)))
            self.figure.suptitle(text, fontsize=9, parse_math=False)
        self.figure.supxlabel("\n".join(notes), fontsize=_SMALL, x=0.02, ha="left", parse_math=False)
        axes = self.figure.subplots(rows, columns, squeeze=False)
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        for axis, name in zip(axes[:, 0], names, strict=False):
            axis.set_ylabel(name, fontsize=_SMALL, rotation=0, ha="right", va="center", parse_math=False)
        self._draw_bar(axes, height, levels)
        return axes

    def _draw_bar(self, axes: Any, height: float, levels: Sequence[float]) -> None:
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        length = min(1.0, 4.0 / height)  # at most 4 inches
        bar = self.figure.colorbar(
            ScalarMappable(Normalize(*self.limits), self.bar_colors), ax=axes, shrink=length, aspect=7 * length * height,
            pad=0.02, extend=self.extend, panchor=False,  # which would push the panels to the right
        )  # fmt: skip
        bar.set_label("\n".join(textwrap.wrap(self.bar, max(16, int(length * height * 11)))), fontsize=_SMALL)
        bar.ax.tick_params(labelsize=6)
        bar.ax.yaxis.get_offset_text().set_fontsize(6)
        for level in levels:
            for color, line in (("black", 2), ("white", 0.8)):
                bar.ax.axhline(level * self.limits[1], color=color, linewidth=line)

    def _color_options(self) -> dict[str, Any]:
        return {"cmap": self.colors, "vmin": -1 if self.limits[0] < 0 else 0, "vmax": 1}

    def head(self, axis: Axes, text: str) -> None:
        """Write a text above a panel."""
        axis.set_title(text, fontsize=_SMALL, pad=3, parse_math=False)

    def draw_image(self, axis: Axes, sample: int) -> None:
        """Draw the image alone."""
        axis.imshow(self.images[sample].numpy(), interpolation="nearest")
        _note(axis, self.problems[sample] if self.image_problems[sample] else "")

    def draw_map(self, axis: Axes, sample: int) -> None:
        """Draw the map alone, at its own resolution, as wide and high as the image."""
        map_, (height, width) = self.maps[sample][0], self.images[sample].shape[:2]
        extent = (-0.5, width - 0.5, height - 0.5, -0.5)
        if map_.drawn:
            axis.imshow(map_.values.numpy(), **self._color_options(), extent=extent, interpolation="nearest")
        else:
            axis.set(xlim=extent[:2], ylim=extent[2:], aspect="equal")
        _note(axis, self.problems[sample] or map_.note)

    def draw_overlay(
        self, axis: Axes, sample: int, place: int = 0, *, opacity: float, style: Style = "shaded"
    ) -> None:
        """Draw a map of a sample over its image."""
        image, map_ = self.images[sample], self.maps[sample][place]
        problem = self.problems[sample]
        if style == "shaded" or problem or not map_.drawn:
            axis.imshow(image.numpy(), interpolation="nearest")
        if map_.drawn and not problem:
            values = resize(map_.values[None, None], image.shape[:2])[0, 0]
            if style == "shaded":
                alpha = (opacity * values.abs()).numpy()
                axis.imshow(values.numpy(), **self._color_options(), alpha=alpha, interpolation="nearest")
            else:
                self._draw_captum(axis, image, values, style, opacity)
        _note(axis, problem or map_.note)

    def _draw_captum(self, axis: Axes, image: Tensor, values: Tensor, style: Style, opacity: float) -> None:
        from ..attribution._captum import visualize_image_attr

        # No clipping of outliers: each map would be clipped elsewhere, and the figure's scale would be wrong.
        visualize_image_attr(
            values.numpy(), image.numpy(), style, "all" if self.limits[0] < 0 else "positive", outlier_perc=0,
            plt_fig_axis=(axis.figure, axis), cmap=self.colors, alpha_overlay=opacity, use_pyplot=False,
        )  # fmt: skip

    def draw_contour(self, axis: Axes, sample: int, levels: Sequence[float]) -> None:
        """Draw an image with lines where its map reaches the levels."""
        from matplotlib.patheffects import Normal, Stroke

        image, map_ = self.images[sample], self.maps[sample][0]
        note = self.problems[sample] or map_.note
        axis.imshow(image.numpy(), interpolation="nearest")
        if map_.drawn and not self.problems[sample]:
            values = resize(map_.values[None, None], image.shape[:2])[0, 0]
            lowest, highest = float(values.min()), float(values.max())
            reached = [level for level in levels if lowest < level < highest]
            if reached:  # Matplotlib warns about others
                lines = axis.contour(values.numpy(), reached, **self._color_options(), linewidths=1.4)
                # Visible on any image.
                lines.set_path_effects([Stroke(linewidth=2.6, foreground="black"), Normal()])
            elif not note:
                note = "no line: below all levels" if highest <= min(levels) else "no line: above all levels"
        _note(axis, note)


def _note(axis: Axes, text: str) -> None:
    """Write a text at the bottom of a panel, in a frame, as the panel may be empty otherwise."""
    if text:
        axis.spines[:].set(visible=True, color="0.7", linestyle=(0, (3, 3)))
        axis.text(
            0.5, 0.04, "\n".join(textwrap.wrap(text, 26)), transform=axis.transAxes, ha="center", va="bottom", fontsize=6,
            bbox={"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 1.5}, parse_math=False,
        )  # fmt: skip


def _texts(name: str, given: Sequence[str] | None, count: int) -> list[str]:
    texts = [""] * count if given is None else list(map(str, given))
    if len(texts) != count:
        raise ValueError(f"{name}: expected {count}, one per image, got {len(texts)}")
    return texts


@torch.no_grad()
def _shown_images(images: Images, mean: PerChannel, std: PerChannel) -> tuple[list[Tensor], list[str], str]:
    """Return images as (H, W, 3) in [0, 1], a problem or "" for each, and what was done to them.

    Integers are taken as 0 to 255. Images are in color if C is 3, and the mean of the channels otherwise.
    """
    found = [_floating(image) for image in images]
    if not found:
        raise ValueError("images: expected at least one, got none")
    problems = ["" if bool(image.isfinite().all()) else "image not finite" for image in found]
    undone = mean is not None or std is not None
    if undone:
        found = [undo_standardization(image[None], mean, std)[0] for image in found]
    # Half types and resizing leave values slightly outside of [0, 1].
    outside = any(
        not p and bool(((i < -1e-3) | (i > 1 + 1e-3)).any()) for i, p in zip(found, problems, strict=True)
    )
    stretched = outside and not undone
    shown = []
    for image, problem in zip(found, problems, strict=True):
        if problem:
            shown.append(torch.ones(*image.shape[1:], 3))
        elif stretched:
            shown.append(gray_or_color(image[None])[0].movedim(0, -1))
        else:
            single = image if len(image) == 3 else image.mean(0, keepdim=True)
            shown.append(single.clamp(0, 1).expand(3, -1, -1).movedim(0, -1))
    done = "standardization undone" if undone else "each from its minimum to its maximum" if stretched else ""
    return shown, problems, done and f"Images: {done}."


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
    return (image.float() / scale).reshape(-1, *image.shape[-2:])


@torch.no_grad()
def _scaled_maps(cams: Cams, scale: Scale, signed: bool) -> tuple[list[list[_Map]], float, bool]:
    """Return the maps on their scale, the end of the color bar, and whether values lie beyond it.

    A dead map is not drawn unless ``signed``; neither is one with values that are not finite.
    """
    known = scale in ("map", "sample", "figure")
    if not known and (isinstance(scale, str | bool) or not 0 < scale < float("inf")):
        raise ValueError(f"scale: expected 'map', 'sample', 'figure' or a positive number, got {scale!r}")
    samples = []
    for given in cams:
        maps = _checked_cams(given)
        finite = maps.flatten(1).isfinite().all(1)
        maps = maps.masked_fill(~finite[:, None, None], 0)
        dead = dead_cams(maps[:, None])
        shown = maps if signed else maps.relu().masked_fill(dead[:, None, None], 0)
        samples.append((shown, _map_notes(maps, finite, dead)))
    largest = max((float(shown.abs().max()) for shown, _ in samples), default=0.0)
    drawn = []
    for shown, notes in samples:
        if scale == "map":
            end = peak(shown)
        elif scale == "sample":
            end = shown.abs().max()
        else:
            end = shown.new_tensor(largest if scale == "figure" else scale)
        values = (shown / end.where(end > 0, 1)).clamp(-1, 1)
        drawn.append([_Map(one, note, bool(one.any())) for one, note in zip(values, notes, strict=True)])
    top = largest or 1.0 if scale == "figure" else 1.0 if isinstance(scale, str) else float(scale)
    return drawn, top, not isinstance(scale, str) and largest > scale


def _checked_cams(maps: Tensor) -> Tensor:
    """Return the maps of a sample as (M, h, w) float32 on the CPU."""
    if not isinstance(maps, Tensor) or maps.dim() != 3 or maps.numel() == 0:
        got = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
        raise ValueError(
            f"cams: expected tensors (N, M, h, w), or N of (M, h, w), got one of {got}; figures show maps with two spatial "
            "dimensions: pick a slice of others"
        )
    return maps.detach().cpu().float()


def _map_notes(maps: Tensor, finite: Tensor, dead: Tensor) -> list[str]:
    """Say what is special about the maps (M, h, w) of a sample."""
    largest = peak(maps).flatten()
    spread = maps.amax((1, 2)) - maps.amin((1, 2))
    notes = []
    for place in range(len(maps)):
        if not finite[place]:
            notes.append("no map: not finite")
        elif dead[place]:
            notes.append("dead map: all zero" if largest[place] == 0 else "dead map: no positive value")
        else:
            notes.append("constant map" if spread[place] <= _CONSTANT * largest[place] else "")
    return notes


def _scale_words(scale: Scale, signed: bool, top: float) -> tuple[str, str]:
    """Return the label of the color bar, and what was done to the maps as a sentence."""
    value, largest = ("map", "largest absolute value") if signed else ("relu(map)", "maximum")
    bar, how = {
        "map": (f"{value} ÷ its {largest}", f"each divided by its own {largest}"),
        "sample": (
            f"{value} ÷ {largest} of the sample",
            f"divided by the {largest} of all maps of the sample",
        ),
        "figure": (value, f"all on one scale, which ends at the {largest} of all maps shown, {top:.3g}"),
    }.get(str(scale), (value, f"all on one scale, which ends at {top:g}; larger values are drawn as its end"))
    return bar, f"Maps: {'signed' if signed else 'positive part (relu)'}, {how}."
