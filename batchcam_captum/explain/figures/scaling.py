"""Cams on the scale that they are drawn on, and what is to be said of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ...functional.maps import dead_cams, peak, resize

Cams = Tensor | Sequence[Tensor]
#: Which maps share a scale: each has its own, those of a sample, or all of the figure. A number is where the scale ends.
Sharing = Literal["map", "sample", "figure"]
Scale = Sharing | float

#: A map whose values differ by no more than this share of its largest absolute value is constant.
_CONSTANT = 1e-6
_MAP_COLOURS, _SIGNED_COLOURS = "viridis", "RdBu_r"


@dataclass(frozen=True)
class ScaledMap:
    """A map as it is drawn."""

    values: (
        Tensor  #: (h, w) float32, on the CPU, in [0, 1], or [−1, 1] where signed; 1 is the end of the scale
    )
    note: str  #: what is to be said of it, or empty
    drawn: bool  #: whether there is anything to draw

    def resized(self, size: Sequence[int]) -> Tensor:
        """(H, W), of an image; smoothly where the image is larger, and by the mean over areas where it is smaller."""
        return resize(self.values[None, None], size)[0, 0]


@dataclass(frozen=True)
class ScaledMaps:
    """All maps of a figure."""

    maps: list[list[ScaledMap]]  #: N samples of M
    colours: str  #: Matplotlib's name
    limits: tuple[float, float]  #: of the colour bar
    clipped: bool  #: whether values are beyond the scale's end
    bar: str  #: what the colour bar shows
    how: str  #: what was done, as a sentence


@torch.no_grad()
def scaled_maps(cams: Cams, scale: Scale = "map", *, signed: bool = False) -> ScaledMaps:
    """Bring cams to the scale that they are drawn on.

    Args:
        cams: (N, M, h, w), or N of (M, h, w) that may have different sizes; raw and signed.
        scale: which maps are divided by the same value: ``"map"``: each by its own largest, ``"sample"``: those of a sample by
            the largest of them, ``"figure"``: all by the largest of all; or a number that all are divided by.
        signed: show negative values, too: the scale goes from minus to plus the largest absolute value. Otherwise they are 0.

    Returns:
        The maps. One without a positive value to speak of (see :func:`~batchcam_captum.functional.dead_cams`) is dead, and not
        drawn unless ``signed``; one with values that are not finite is not drawn.

    Raises:
        ValueError: maps of other shapes, an unknown scale.
    """
    _check_scale(scale)
    samples = [_checked(sample) for sample in cams]
    finite = [maps.flatten(1).isfinite().all(1) for maps in samples]
    samples = [maps.where(known[:, None, None], 0) for maps, known in zip(samples, finite, strict=True)]
    dead = [dead_cams(maps[:, None]) for maps in samples]
    shown = [
        maps if signed else maps.masked_fill(none[:, None, None], 0).relu()
        for maps, none in zip(samples, dead, strict=True)
    ]
    ends = [peak(maps) for maps in shown]  # of (M, 1, 1)
    largest = max((float(end.max()) for end in ends), default=0.0)
    if scale == "sample":
        ends = [end.max().expand_as(end) for end in ends]
    elif scale != "map":
        ends = [torch.full_like(end, largest if scale == "figure" else scale) for end in ends]
    drawn = [
        [
            ScaledMap((one / end.where(end > 0, 1)).clamp(-1, 1), note, bool(one.any()))
            for one, end, note in zip(maps, sample_ends, notes, strict=True)
        ]
        for maps, sample_ends, notes in zip(shown, ends, map(_notes, samples, finite, dead), strict=True)
    ]
    top = {"map": 1.0, "sample": 1.0, "figure": largest or 1.0}.get(str(scale), scale)
    assert isinstance(top, float | int)
    return ScaledMaps(
        drawn,
        _SIGNED_COLOURS if signed else _MAP_COLOURS,
        (-top if signed else 0.0, float(top)),
        not isinstance(scale, str) and largest > scale,
        *_said(scale, signed, top),
    )


def _check_scale(scale: Scale) -> None:
    if isinstance(scale, str):
        known = scale in get_args(Sharing)
    else:
        known = isinstance(scale, int | float) and not isinstance(scale, bool) and 0 < scale < float("inf")
    if not known:
        raise ValueError(f"scale: expected 'map', 'sample', 'figure' or a positive number, got {scale!r}")


def _checked(maps: Tensor) -> Tensor:
    """(M, h, w) float32 on the CPU."""
    if not isinstance(maps, Tensor) or maps.dim() != 3 or maps.numel() == 0:
        got = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
        raise ValueError(
            f"cams: expected tensors (N, M, h, w), or N of (M, h, w), got one of {got}; figures are of maps with two spatial "
            "dimensions: pick a slice of others"
        )
    return maps.detach().cpu().float()


def _notes(maps: Tensor, finite: Tensor, dead: Tensor) -> list[str]:
    """What is to be said of the maps (M, h, w) of a sample."""
    largest = peak(maps)
    spread = maps.amax((1, 2), keepdim=True) - maps.amin((1, 2), keepdim=True)
    constant = (spread <= _CONSTANT * largest) & (largest > 0)
    notes = []
    for known, none, zero, same in zip(
        *(flags.flatten().tolist() for flags in (finite, dead, largest == 0, constant)), strict=True
    ):
        if not known:
            notes.append("no map: not finite")
        elif none:
            notes.append("dead map: all zero" if zero else "dead map: no positive value")
        else:
            notes.append("constant map" if same else "")
    return notes


def _said(scale: Scale, signed: bool, top: float) -> tuple[str, str]:
    """What stands at the colour bar and below the figure."""
    value, largest = ("map", "largest absolute value") if signed else ("relu(map)", "maximum")
    bar, how = {
        "map": (f"{value} ÷ its {largest}", f"each divided by its own {largest}"),
        "sample": (
            f"{value} ÷ the sample's {largest}",
            f"divided by the {largest} of all maps of the sample",
        ),
        "figure": (value, f"all on one scale, which ends at the {largest} of all maps shown, {top:.3g}"),
    }.get(str(scale), (value, f"all on one scale, which ends at {top:g}; what is beyond is drawn as its end"))
    return bar, f"Maps: {'signed' if signed else 'positive part (relu)'}, {how}."
