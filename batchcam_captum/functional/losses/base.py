"""What the losses share: checks, which samples count, one size and scale, dead cams, reduction."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from ..checks import ValueChecks, check_choice, readable, unless_all
from ..class_means import ClassWeights, check_sample_weights, class_weights
from ..common import Reduction, full_precision, no_autocast, reduce
from ..distance import Distance, cosine_distance, get_distance, unit
from ..maps import Normalization, normalize, prepare, resize

F = TypeVar("F", bound=Callable[..., Tensor])

#: A cam with a shorter side cannot tell one place from another: a prototype averaged onto 1×1 is worse than the zero map.
MIN_MAP_SIZE = 4

#: By how many pixels a cam may be larger than a common stride makes it, by rounding; and smaller, as convolutions without padding
#: cut some off.
_TOO_LARGE, _TOO_SMALL = 1, 3


def cam_loss(function: F) -> F:
    """Decorate a function whose first argument is cams: it runs with autocast off."""

    @functools.wraps(function)
    def loss(cams: Tensor, *args: Any, **options: Any) -> Tensor:
        with no_autocast(cams):
            return function(cams, *args, **options)

    return cast(F, loss)


class Samples(NamedTuple):
    """A batch, prepared for the formula of a loss."""

    cams: Tensor  #: (N, S, *spatial), signed; zero where a sample does not count
    maps: Tensor  #: (N, S, *spatial), rectified and normalized, zero where dead; signed cams if the loss does not rectify
    dead: Tensor | None  #: (N,) booleans; None: no cam is dead, or the loss does not rectify
    counted: Tensor | None  #: (N,) booleans, which samples count; None: all
    weights: Tensor | None  #: (N,) how much each sample counts; None: all alike
    references: Tensor | None = None  #: (N, P, *spatial), what each map is compared with: the nearest of P
    belongs: ClassWeights | None = None  #: the labels as weights, in a loss against prototypes
    prototypes: Tensor | None = None  #: (K, P, *size), of all classes, in a loss against prototypes
    seen: Tensor | None = None  #: (K,) booleans, which classes have a prototype; None: all
    labels: Tensor | None = None  #: as they were given to a :class:`~batchcam_captum.losses.CamLoss`
    images: Tensor | None = None
    masks: Tensor | None = None
    reduction: Reduction = "mean"
    revive: bool = False

    def reduce(self, values: Tensor) -> Tensor:
        """Reduce values (N,) over the samples that count, those of dead cams replaced by :meth:`revival` if they revive."""
        if self.revive and self.dead is not None:
            values = torch.where(self.dead, self.revival(), values)
        return reduce(values, self.reduction, self.counted, self.weights)

    def revival(self) -> Tensor:
        """Return 1 − cosine(C, P) of each signed cam and its nearest reference, or a map of ones: (N,)."""
        target = torch.ones_like(self.maps[:, :1]) if self.references is None else self.references
        return nearest(cosine_distance, self.cams[:, :1], target)

    def distances(self, distance: str | Distance) -> Tensor:
        """Return the distance of each map to the nearest of its references: (N,).

        Where the value is not used, a map of zeros is compared with one of ones: a distance may have no derivative where both
        maps are zero, as a square root has none, and would spoil the gradient of everything else.
        """
        assert self.references is not None
        unused = self.dead if self.revive else None if self.counted is None else ~self.counted
        references = self.references if unused is None else fill_samples(self.references, unused, 1)
        return nearest(get_distance(distance), self.maps, references)

    def dead_fraction(self) -> Tensor:
        """Return the share of dead cams among the samples that count, a detached scalar."""
        if self.dead is None:
            return torch.zeros((), device=self.cams.device)
        return reduce(self.dead.float(), "mean", self.counted)


def prepare_samples(
    cams: Tensor,
    counted: Tensor | None = None,
    weights: Tensor | None = None,
    normalization: Normalization | None = "max",
    *,
    reduction: Reduction = "mean",
    revive: bool = False,
) -> Samples:
    """Prepare cams (N, S, *spatial), each channel by itself; ``normalization=None`` leaves them signed.

    Where ``counted`` is False the cam becomes zero, so that not even a NaN reaches a gradient.
    """
    check_choice("reduction", reduction, Reduction)
    cams = without(full_precision(cams), counted)
    if normalization is None:
        return Samples(cams, cams, None, counted, weights, reduction=reduction)
    prepared = prepare(cams.flatten(0, 1).unsqueeze(1), normalization)
    dead = prepared.dead.reshape(cams.shape[:2])[:, 0]
    some_dead = None if readable(dead) and not bool(dead.any()) else dead
    maps = prepared.maps.reshape(cams.shape)
    return Samples(cams, maps, some_dead, counted, weights, reduction=reduction, revive=revive)


def checked_samples(
    cams: Tensor,
    normalization: Normalization | None = "max",
    *,
    channels: int = 1,
    sample_weights: Tensor | None,
    reduction: Reduction,
    revive: bool,
) -> Samples:
    """Check cams and the weights of samples, and prepare the cams."""
    check_cams(cams, channels)
    counted = counted_samples(cams.shape[0], sample_weights)
    return prepare_samples(cams, counted, sample_weights, normalization, reduction=reduction, revive=revive)


def without(cams: Tensor, counted: Tensor | None) -> Tensor:
    """Return the cams, zero where a sample does not count."""
    return cams if counted is None else fill_samples(cams, ~counted, 0)


def fill_samples(maps: Tensor, mask: Tensor, value: float) -> Tensor:
    """Fill the maps (N, …) of the samples in a mask (N,)."""
    return maps.masked_fill(mask.reshape(-1, *[1] * (maps.dim() - 1)), value)


def check_cams(cams: Tensor, channels: int = 1) -> None:
    """Check that cams have the shape that a loss needs.

    Args:
        cams: expected (N, channels, *spatial), floating, 1 to 3 spatial dimensions of at least 4 pixels.
        channels: how many scores the loss compares, one channel each.

    Raises:
        ValueError: another shape, with what to do about it.
        TypeError: not floating.
    """
    shape = tuple(cams.shape)
    if not cams.is_floating_point():
        raise TypeError(f"cams: expected floating cams (N, {channels}, *spatial), got {cams.dtype}")
    if not 3 <= len(shape) <= 5 or (channels == 1 and shape[1] != 1):
        raise ValueError(
            f"cams: expected (N, {channels}, *spatial) with 1 to 3 spatial dimensions, got {shape}; a layer with a vector output "
            f"has no map, choose an earlier layer"
        )
    if shape[1] != channels:
        raise ValueError(
            f"cams: expected (N, {channels}, *spatial), one channel for each of the loss's scores, got {shape}; concatenate the "
            f"cams of its scores along dimension 1, as a regularizer does"
        )
    if min(shape[2:]) < MIN_MAP_SIZE:
        raise ValueError(
            f"cams: expected maps of at least {MIN_MAP_SIZE} pixels per side, got {shape[2:]}; use a larger input, a stem with "
            f"smaller strides, or an earlier layer"
        )


def check_aspect(name: str, size: Sequence[int], cams_size: Sequence[int]) -> None:
    """Check that maps of one size can show the same things as cams of another.

    In the last two dimensions, where height and width may have been exchanged, one stride has to explain both sizes, up to
    rounding and what convolutions without padding cut off. Depth or time may have a stride of its own.

    Raises:
        ValueError: the aspect ratios are incompatible.
    """
    pairs = list(zip(size, cams_size, strict=True))[-2:]
    smallest = max(full / (side + _TOO_SMALL) for full, side in pairs)
    # A side of one pixel fits any stride that is large enough.
    largest = min(full / (side - _TOO_LARGE) if side > _TOO_LARGE else math.inf for full, side in pairs)
    if len(pairs) == 2 and smallest >= largest:
        strides = " and ".join(f"{full / side:.3g}" for full, side in pairs)
        raise ValueError(
            f"{name}: expected maps of the cams' aspect ratio {tuple(cams_size)}, got {tuple(size)}, which is {strides} times as "
            f"large; pass height before width and what the model is shown, or, if the model shrinks them that unevenly, "
            f"{name} of the cams' own size"
        )


def counted_samples(
    num_samples: int, sample_weights: Tensor | None, checks: ValueChecks | None = None
) -> Tensor | None:
    """Check the weights of samples, and return which samples count, (N,) booleans; None: all."""
    if sample_weights is None:
        return None
    return unless_all(check_sample_weights(sample_weights, num_samples, checks) > 0)


def fit_references(references: Tensor, size: Sequence[int] | None, dtype: torch.dtype) -> Tensor:
    """Bring maps (K, P, *spatial) to a dtype and a size, None for their own; each peaks at 1."""
    references = references.to(dtype)
    if size is not None:
        references = resize(references, size)
    return normalize(references.flatten(0, 1), "max").reshape(references.shape)


def check_prototypes(cams: Tensor, prototypes: Tensor) -> None:
    """Check that prototypes are (K, P, *spatial), with the aspect ratio of the cams.

    Raises:
        ValueError: they are not.
    """
    if prototypes.dim() != cams.dim() or not prototypes.shape[1]:
        raise ValueError(
            f"prototypes: expected (K, 1, *spatial), or P per class (K, P, *spatial), with as many spatial dimensions as the "
            f"cams {tuple(cams.shape)}, got {tuple(prototypes.shape)}"
        )
    check_aspect("prototypes", prototypes.shape[2:], cams.shape[2:])


def membership(
    cams: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    seen: Tensor | None,
    ignore_index: int,
    sample_weights: Tensor | None,
    checks: ValueChecks | None = None,
) -> ClassWeights:
    """Return the labels as weights, after a check that every one of them has a prototype."""
    checks = ValueChecks(synchronize=True) if checks is None else checks
    belongs = class_weights(
        labels,
        prototypes.shape[0],
        num_samples=cams.shape[0],
        ignore_index=ignore_index,
        dtype=full_precision(cams).dtype,
        sample_weights=sample_weights,
        checks=checks,
    )
    check_seen(belongs, seen, checks)
    return belongs


def check_seen(belongs: ClassWeights, seen: Tensor | None, checks: ValueChecks) -> None:
    """Check that every label that counts has a prototype, ``seen`` (K,); None: all classes have one."""
    if seen is None:
        return
    rows = belongs.indices
    if rows is None:
        known = seen | (belongs.weighted == 0).all(0)
    else:
        known = seen.index_select(0, rows)
        known = known if belongs.mask is None else known | ~belongs.mask
    checks.require(
        known,
        "prototypes: expected a prototype for the class of every label, got labels of a class that was never seen; take "
        "the prototypes over the whole training set, or ignore these labels",
        lambda: (
            f"classes without a prototype: "
            f"{sorted(set((known.logical_not().nonzero().flatten() if rows is None else rows[~known]).tolist()))[:10]}"
        ),
    )


def own_prototypes(
    belongs: ClassWeights, maps: Tensor, prototypes: Tensor, cams: Tensor, dead: Tensor | None
) -> Tensor:
    """Return the prototypes of each sample's class, (K, P, …) -> (N, P, …).

    With soft labels they are mixed by their shares. With several per class, the nearest of each class goes into the mixture,
    which is (N, 1, …): in L2 to the map, or by the cosine to the cam where that is dead and there is no map.

    Args:
        belongs: the labels.
        maps: (N, 1, *spatial).
        prototypes: (K, P, *spatial).
        cams: (N, 1, *spatial), signed.
        dead: (N,) booleans, or None.
    """
    if belongs.indices is not None or prototypes.shape[1] == 1:
        return belongs.pick(prototypes)
    with torch.no_grad():
        rows, candidates = maps.flatten(1), prototypes.flatten(0, 1).flatten(1)
        # ‖m − p‖² without ‖m‖², which all have in common
        apart = candidates.square().sum(1) - 2 * rows @ candidates.T
        if dead is not None:
            signed = unit(cams).flatten(1)
            apart = torch.where(dead.unsqueeze(1), -signed @ unit(candidates).T, apart)
        nearest_ones = apart.unflatten(1, prototypes.shape[:2]).argmin(2)
        chosen = torch.nn.functional.one_hot(nearest_ones, prototypes.shape[1]).to(maps.dtype)
        mixture = (chosen * belongs.shares.unsqueeze(2)).flatten(1) @ candidates
    return mixture.reshape(maps.shape)


def nearest(distance: Distance, maps: Tensor, references: Tensor) -> Tensor:
    """Return the distance of each map (N, 1, …) to the nearest of its references (N, P, …): (N,)."""
    n, several = references.shape[:2]
    if several > 1:
        maps, references = maps.repeat_interleave(several, 0), references.flatten(0, 1).unsqueeze(1)
    distances = distance(maps, references)
    if distances.shape != maps.shape[:1]:
        raise ValueError(
            f"distance: expected one number per pair, ({maps.shape[0]},), got {tuple(distances.shape)}; average over the pixels"
        )
    return distances.reshape(n, several).amin(1) if several > 1 else distances


def check_positive(name: str, value: float) -> None:
    """Raise a ``ValueError`` unless an option is positive and finite."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: expected a positive number, got {value}")
