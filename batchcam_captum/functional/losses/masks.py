"""What the losses against masks have in common."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

from ..checks import ValueChecks
from ..maps import Normalization, peak, prepare, resize
from ..precision import full_precision
from ..reduce import Reduction, reduce
from .comparison import check_aspect, check_cams, check_counted, check_resolution, revived, without

MaskResolution = Literal["map", "mask"]


class Annotated(NamedTuple):
    """Cams and masks, ready for a comparison; see :func:`annotated`."""

    cams: Tensor  #: (N, 1, *spatial), signed; zero where a sample does not count
    maps: Tensor  #: (N, 1, *size), rectified and normalised
    masks: Tensor  #: (N, 1, *size) in [0, 1]
    dead: Tensor  #: (N,) booleans
    counted: Tensor  #: (N,) booleans: neither ignored nor without an annotation

    def reduced(
        self, values: Tensor, revive: bool, reduction: Reduction, sample_weights: Tensor | None
    ) -> Tensor:
        """The values (N,) reduced, with those of dead cams revived."""
        if revive:
            values = revived(values, self.cams, self.masks, self.dead)
        return reduce(values, reduction, self.counted, sample_weights)


def annotated(
    cams: Tensor,
    masks: Tensor,
    normalization: Normalization,
    resolution: MaskResolution,
    counted: Tensor | None,
    sample_weights: Tensor | None,
    checks: ValueChecks | None,
) -> Annotated:
    """Check cams and masks, prepare the cams, and bring both to one size; to be called with autocast off.

    Raises:
        ValueError: a shape or a value that does not fit.
        TypeError: no tensors, or cams that are not floating.
    """
    check_cams(cams)
    check_resolution(resolution, MaskResolution)
    check_masks(masks, cams)
    counted = check_counted(cams, counted, sample_weights, checks)
    masks = without(masks.to(full_precision(cams).dtype), counted)
    checks = ValueChecks(synchronize=True) if checks is None else checks
    checks.require(
        (masks >= 0) & (masks <= 1),
        "masks: expected numbers from 0 to 1, got others, or NaN; divide masks of bytes by 255, and mark a sample without an "
        "annotation by a mask of zeros",
        lambda: f"found {'NaN' if bool(masks.isnan().any()) else f'{masks.min():.4g} to {masks.max():.4g}'}",
    )
    counted = counted & (masks.detach().flatten(1) > 0).any(1)
    cams = without(cams, counted)
    prepared = prepare(cams, normalization)
    maps = prepared.maps
    if resolution == "mask":
        maps = resize(maps, masks.shape[2:])
    return Annotated(cams, maps, fit_masks(masks, maps), prepared.dead, counted)


def fit_masks(masks: Tensor, maps: Tensor) -> Tensor:
    """Masks at the size of the maps. The peak stays what it was, so that what is smaller than a map's pixel still has a place."""
    if masks.shape[2:] == maps.shape[2:]:
        return masks
    resized = resize(masks, maps.shape[2:])
    highest = peak(resized)
    return resized * (peak(masks) / highest.masked_fill(highest == 0, 1))


def check_masks(masks: Tensor, cams: Tensor) -> None:
    """Check the shape of masks: expected (N, 1, *spatial), of the cams' aspect ratio.

    Raises:
        ValueError: another shape.
        TypeError: no tensor of real numbers.
    """
    if not isinstance(masks, Tensor) or masks.is_complex():
        kind = masks.dtype if isinstance(masks, Tensor) else type(masks).__name__
        raise TypeError(f"masks: expected a tensor of numbers from 0 to 1, got {kind}")
    shape, dims = tuple(masks.shape), cams.dim()
    if masks.dim() != dims or shape[1] != 1 or not masks[:1].flatten(2).shape[2]:
        remedy = (
            "call masks.unsqueeze(1)"
            if masks.dim() == dims - 1
            else "pass one channel a sample, as large as the images"
        )
        raise ValueError(
            f"masks: expected (N, 1, *spatial), with as many spatial dimensions as the cams {tuple(cams.shape)}, got {shape}; "
            f"{remedy}"
        )
    if shape[0] != cams.shape[0]:
        raise ValueError(
            f"masks: expected one for each of the {cams.shape[0]} cams, got {shape[0]}; a sample without an annotation has "
            f"a mask of zeros"
        )
    check_aspect("masks", shape[2:], cams.shape[2:])
