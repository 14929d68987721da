"""What every figure is made of: images and cams as they are drawn, and what is said of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from torch import Tensor

from ...functional.images import PerChannel
from .drawing import Grid, framed
from .pictures import Images, Pictures, pictures
from .scaling import Cams, Scale, ScaledMap, ScaledMaps, scaled_maps

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class FigureOptions(TypedDict, total=False):
    """What all figures take."""

    scale: Scale
    """Which maps are divided by the same value: ``"map"``: each by its own largest; ``"sample"``: those of a sample by the
    largest of them; ``"figure"``: all by the largest of all; or a number, which all are divided by. Default: ``"map"``."""
    signed: bool
    """Show negative values, too, in blue, from minus to plus the largest absolute value. Default: what is negative is 0."""
    mean: PerChannel
    """The ``mean`` of ``Normalize`` that the images went through. Without it and ``std``, images in [0, 1] are shown as they are,
    and others from their own smallest to their own largest value."""
    std: PerChannel
    """Its ``std``."""
    titles: Sequence[str] | None
    """N texts, of any number of lines, such as the label and the prediction."""
    problems: Sequence[str] | None
    """N texts, empty for most: why there is no map to draw. It is written where the map would be."""
    title: str | None
    """Of the figure."""


@dataclass(frozen=True)
class Prepared:
    """What a figure is made of."""

    pictures: Pictures
    scaled: ScaledMaps
    titles: list[str]
    problems: list[str]
    title: str | None

    def samples(self) -> list[tuple[Tensor, list[ScaledMap], str]]:
        """Pixels, maps and the problem of each."""
        return list(zip(self.pictures.pixels, self.scaled.maps, self.problems, strict=True))

    def resizing(self) -> str:
        """How the maps were brought to the images' sizes."""
        pairs = {(tuple(maps[0].values.shape), tuple(pixels.shape[:2])) for pixels, maps, _ in self.samples()}
        sizes = sorted({f"{height}x{width}" for (height, width), _ in pairs})
        named = sizes[0] if len(sizes) == 1 else f"{len(sizes)} sizes"
        changed = [(new[0] <= old[0] and new[1] <= old[1]) for old, new in pairs if new != old]
        if not changed:
            return f"Maps of {named}, as the images."
        how = " or ".join(["bilinearly"] * (not all(changed)) + ["by the mean over areas"] * any(changed))
        return f"Maps of {named}, resized {how} where they lie over an image."

    def figure(self, grid: Grid, *said: str, levels: Sequence[float] = ()) -> Figure:
        """Draw the panels; ``said`` is what was done besides scaling."""
        images = [f"Images: {self.pictures.how}."] if self.pictures.how else []
        sentences = " ".join([self.scaled.how, *said, *images])
        return framed(
            grid, self.scaled, self.pictures.aspect, said=sentences, title=self.title, levels=levels
        )


def prepared(
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
) -> Prepared:
    """Prepare the figure of N images and their cams; ``several``: of more than one map a sample. The rest: `FigureOptions`.

    Raises:
        ValueError: what does not fit.
    """
    found, scaled = pictures(images, mean, std), scaled_maps(cams, scale, signed=signed)
    count = len(found.pixels)
    texts = {}
    for name, given in (("titles", titles), ("problems", problems)):
        texts[name] = [""] * count if given is None else list(map(str, given))
        if len(texts[name]) != count:
            raise ValueError(f"{name}: expected {count}, one an image, got {len(texts[name])}")
    if len(scaled.maps) != count:
        raise ValueError(f"cams: expected those of {count} images, got those of {len(scaled.maps)}")
    if not several and any(len(maps) != 1 for maps in scaled.maps):
        raise ValueError(
            f"cams: expected one map a sample, (N, 1, h, w), got {max(map(len, scaled.maps))}; pick one, cams[:, :1], or draw "
            "them all with class_grid_figure"
        )
    both = [given or own for given, own in zip(texts["problems"], found.problems, strict=True)]
    return Prepared(found, scaled, texts["titles"], both, title)
