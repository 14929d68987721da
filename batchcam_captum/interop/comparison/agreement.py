"""How far two batches of maps agree, map by map: differences, structural similarity, correlations, places that matter most."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ...functional import ssim

Scale = Literal["unit", "raw"]

#: So many of a hundred places of a map count as its top.
TOP_PERCENT = 20


@dataclass(frozen=True)
class MapAgreement:
    """The numbers of one pair of maps. A number that has no meaning for the pair is None; see :func:`agreement`."""

    max_difference: float | None  #: largest absolute difference
    mean_difference: float | None  #: mean absolute difference over the places
    ssim: float | None  #: structural similarity, 1 where they are equal
    pearson: float | None  #: correlation of the values
    spearman: float | None  #: correlation of the ranks
    top_overlap: float | None  #: intersection over union of the places with the highest values
    identical: bool  #: the same value at every place, to the last bit
    zero_ours: bool  #: ours is zero everywhere
    zero_theirs: bool  #: theirs is zero everywhere
    #: The largest absolute value of the two; what the differences of raw maps are relative to.
    peak: float | None

    @property
    def finite(self) -> bool:
        """Whether both maps are free of NaN and infinity; otherwise there are no numbers."""
        return self.peak is not None


@dataclass(frozen=True)
class Agreement:
    """The numbers of every pair of maps, and what they come to."""

    scale: Scale
    maps: tuple[MapAgreement, ...]

    def _known(self, name: str) -> list[float]:
        return [value for pair in self.maps if (value := getattr(pair, name)) is not None]

    def _over(self, name: str, take: Callable[[Iterable[float]], float]) -> float | None:
        known = self._known(name)
        return take(known) if known else None

    @property
    def max_difference(self) -> float | None:
        """The largest difference at any place of any map."""
        return self._over("max_difference", max)

    @property
    def mean_difference(self) -> float | None:
        """The mean difference over all places of all maps."""
        return self._over("mean_difference", statistics.fmean)

    def summary(self) -> dict[str, float | int | None]:
        """The largest difference, the mean ones, the worst and the mean of each likeness, and counts of maps.

        Returns:
            Plain numbers; None where no map has the number. ``constant``: pairs without correlations, as one of the two maps
            has the same value everywhere. ``not_finite``: pairs without any number, as one of the two holds NaN or infinity.
        """
        found: dict[str, float | int | None] = {
            "max_difference": self.max_difference,
            "mean_difference": self.mean_difference,
        }
        for name in ("ssim", "pearson", "spearman", "top_overlap"):
            found[f"{name}_min"] = self._over(name, min)
            found[f"{name}_mean"] = self._over(name, statistics.fmean)
        return found | {
            "maps": len(self.maps),
            "identical": sum(pair.identical for pair in self.maps),
            "zero_in_both": sum(pair.zero_ours and pair.zero_theirs for pair in self.maps),
            "zero_in_one": sum(pair.zero_ours != pair.zero_theirs for pair in self.maps),
            "constant": sum(pair.finite and pair.pearson is None for pair in self.maps),
            "not_finite": sum(not pair.finite for pair in self.maps),
        }

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, ready for JSON: ``scale``, ``summary``, and ``maps``, one entry a pair."""
        return {"scale": self.scale, "summary": self.summary(), "maps": [asdict(pair) for pair in self.maps]}


def agreement(ours: Tensor, theirs: Tensor, *, scale: Scale) -> Agreement:
    """Compare two batches of maps, pair by pair, in float64 on the CPU.

    Differences: |ours − theirs|. Maps of the scale ``"raw"`` have none of their own, so their differences are relative to the
    largest absolute value of the pair.

    SSIM: :func:`batchcam_captum.functional.ssim` (a Gaussian window of at most 11 with σ = 1.5, less on small maps), with a data
    range of 1 for ``"unit"``, and of 2 for ``"raw"``, whose maps are divided by the largest absolute value of the pair and so
    lie in [-1, 1].

    Correlations: Pearson's, and Spearman's with the mean rank for equal values. Neither is defined where one of the maps has
    the same value everywhere.

    Top overlap: a map's top are the k = ceil(0.2 · places) places of the highest values. Places that are equal to the last of
    them share what is left of the k: each counts as much as the other, by a weight below 1. The overlap is Σ min / Σ max of the
    two maps' weights: the intersection over union where no values are equal. Equal maps have 1, whatever their ties.

    Args:
        ours: (N, 1, *spatial), of any floating type and on any device.
        theirs: the same shape.
        scale: ``"unit"``: the maps are in [0, 1]; ``"raw"``: of any size and sign.

    Returns:
        The numbers. A pair in which a map holds NaN or infinity has none, but whether the maps are identical is told even then
        (NaN equals NaN there).

    Raises:
        ValueError: the shapes differ or are none of maps, or an unknown scale.

    Example:
        >>> ours = torch.tensor([[[[0.0, 0.5], [0.25, 1.0]]]])
        >>> theirs = torch.tensor([[[[0.0, 0.25], [0.5, 1.0]]]])
        >>> found = agreement(ours, theirs, scale="unit")
        >>> found.max_difference, found.maps[0].spearman, found.maps[0].top_overlap
        (0.25, 0.8, 1.0)
    """
    if scale not in get_args(Scale):
        raise ValueError(f"scale: expected 'unit' or 'raw', got {scale!r}")
    if ours.shape != theirs.shape or ours.dim() < 3 or ours.shape[1] != 1:
        raise ValueError(
            f"agreement: expected two batches of maps of one shape (N, 1, *spatial), got {tuple(ours.shape)} and "
            f"{tuple(theirs.shape)}; bring them to one size before"
        )
    if 0 in ours.shape[2:]:
        raise ValueError(f"agreement: expected maps with at least one place, got {tuple(ours.shape)}")
    # Map by map: in float64 a whole batch of large maps, and their ranks, would take several times the memory of the batch.
    return Agreement(
        scale, tuple(_pair(a, b, scale) for a, b in zip(_rows(ours), _rows(theirs), strict=True))
    )


def _rows(maps: Tensor) -> Iterable[Tensor]:
    return (row.detach().to("cpu", torch.float64) for row in maps)


def _pair(ours: Tensor, theirs: Tensor, scale: Scale) -> MapAgreement:
    """One pair, (1, *spatial) each, in float64."""
    identical = bool(((ours == theirs) | (ours.isnan() & theirs.isnan())).all())
    zero_ours, zero_theirs = not bool(ours.any()), not bool(theirs.any())
    peak = float(torch.stack([ours, theirs]).abs().max())
    if not math.isfinite(peak):
        return MapAgreement(None, None, None, None, None, None, identical, zero_ours, zero_theirs, None)
    if scale == "raw" and peak > 0:
        ours, theirs = ours / peak, theirs / peak
    differences = (ours - theirs).abs()
    return MapAgreement(
        max_difference=float(differences.max()),
        mean_difference=float(differences.mean()),
        ssim=_similarity(ours, theirs, scale),
        pearson=_correlation(ours, theirs),
        spearman=_correlation(_ranks(ours.flatten()), _ranks(theirs.flatten())),
        top_overlap=_overlap(ours.flatten(), theirs.flatten()),
        identical=identical,
        zero_ours=zero_ours,
        zero_theirs=zero_theirs,
        peak=peak,
    )


def _similarity(ours: Tensor, theirs: Tensor, scale: Scale) -> float:
    if torch.equal(ours, theirs):
        return 1.0  # whatever the rounding of the variances
    return float(ssim(ours[None], theirs[None], data_range=1.0 if scale == "unit" else 2.0))


def _correlation(first: Tensor, second: Tensor) -> float | None:
    """Pearson's; None where one of the two is constant."""
    centred: list[Tensor] = []
    for values in (first.flatten(), second.flatten()):
        lowest, highest = torch.aminmax(values)
        if lowest == highest:
            return None
        # From 0 to 1 first, so that the squares of small values do not vanish; a correlation does not see it.
        values = (values - lowest) / (highest - lowest)
        values = values - values.mean()
        centred.append(values / values.norm())
    if torch.equal(*centred):
        return 1.0  # whatever the rounding of the norm
    return min(max(float(centred[0] @ centred[1]), -1.0), 1.0)


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 1, (P,) -> (P,); equal values have the mean of the ranks that they take up."""
    in_order = values.sort().values
    below = torch.searchsorted(in_order, values, right=False)
    up_to = torch.searchsorted(in_order, values, right=True)
    return (below + 1 + up_to).double() / 2


def _overlap(first: Tensor, second: Tensor) -> float:
    tops = torch.stack([_top(first), _top(second)])
    return float(tops.amin(0).sum() / tops.amax(0).sum())


def _top(values: Tensor) -> Tensor:
    """How much each place belongs to the top, (P,) -> (P,): 1, 0, or a share where values are equal to the last one."""
    count = math.ceil(TOP_PERCENT * len(values) / 100)  # exact where it is whole, unlike 0.2 · 35
    last = values.topk(count).values[-1]
    above, level = values > last, values == last
    return above.double() + level.double() * (count - above.sum()) / level.sum()
