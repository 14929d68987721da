"""How cams are brought together with what they are compared with; what the losses have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ..checks import ValueChecks
from ..class_means import ClassWeights, check_sample_weights, class_weights
from ..distance import Distance, cosine_distance, get_distance, unit
from ..maps import normalize, resize
from ..precision import full_precision

Resolution = Literal["map", "prototype"]
ImageResolution = Literal["map", "image"]

#: A cam with a shorter side cannot tell one place from another: a prototype averaged onto 1×1 is worse than the zero map.
MIN_MAP_SIZE = 4

#: By how many pixels a cam may be larger than a common stride would make it, by rounding; and smaller, as convolutions without
#: padding cut some off.
_TOO_LARGE, _TOO_SMALL = 1, 3


def check_resolution(resolution: str, known: object = Resolution) -> None:
    """Raise a ``ValueError`` unless ``resolution`` is one of the known ones."""
    names = get_args(known)
    if resolution not in names:
        raise ValueError(f"resolution: expected {' or '.join(map(repr, names))}, got {resolution!r}")


def check_cams(cams: Tensor, channels: int = 1) -> None:
    """Check that cams have the shape that a loss needs.

    Args:
        cams: expected (N, 1, *spatial), floating, 1 to 3 spatial dimensions of at least 4 pixels.
        channels: how many scores the loss compares, each with a channel of its own.

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
            f"cams: expected maps of at least {MIN_MAP_SIZE} pixels a side, got {shape[2:]}; use a larger input, a stem with "
            f"smaller strides, or an earlier layer"
        )


def check_aspect(name: str, size: Sequence[int], cams_size: Sequence[int]) -> None:
    """Check that maps of one size can show the same things as cams of another.

    In the last two dimensions, where height and width could have been exchanged, one stride has to explain both sizes, up to
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


def check_counted(
    cams: Tensor,
    counted: Tensor | None,
    sample_weights: Tensor | None,
    checks: ValueChecks | None,
) -> Tensor:
    """Which samples count, of a loss that does not look at labels: (N,) booleans.

    Args:
        cams: (N, …).
        counted: (N,) booleans, or None for all.
        sample_weights: (N,), or None; a sample of weight 0 does not count.
        checks: where the check of the weights goes.

    Raises:
        ValueError: not one entry for each sample, or a negative weight.
        TypeError: weights that are no tensor.
    """
    if counted is None:
        counted = torch.ones(cams.shape[0], dtype=torch.bool, device=cams.device)
    elif counted.shape != cams.shape[:1] or counted.dtype != torch.bool:
        raise ValueError(
            f"counted: expected booleans ({cams.shape[0]},), got {counted.dtype} {tuple(counted.shape)}"
        )
    if sample_weights is None:
        return counted
    return counted & (check_sample_weights(sample_weights, cams.shape[0], checks) > 0)


def fit(
    maps: Tensor, prototypes: Tensor, resolution: Resolution, name: str = "prototypes"
) -> tuple[Tensor, Tensor]:
    """Bring maps (N, 1, …) and prototypes (K, P, …) to one size and dtype; every prototype peaks at 1."""
    check_resolution(resolution)
    check_aspect(name, prototypes.shape[2:], maps.shape[2:])
    prototypes = prototypes.to(maps.dtype)
    if resolution == "map":
        prototypes = resize(prototypes, maps.shape[2:])
    else:
        maps = resize(maps, prototypes.shape[2:])
    return maps, normalize(prototypes.flatten(0, 1), "max").reshape(prototypes.shape)


def check_prototypes(cams: Tensor, prototypes: Tensor) -> None:
    """Check that prototypes are (K, P, *spatial), with as many spatial dimensions as the cams."""
    if prototypes.dim() != cams.dim() or not prototypes.shape[1]:
        raise ValueError(
            f"prototypes: expected (K, 1, *spatial), or P a class (K, P, *spatial), with as many spatial dimensions as the cams "
            f"{tuple(cams.shape)}, got {tuple(prototypes.shape)}"
        )


def membership(
    cams: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    seen: Tensor | None,
    ignore_index: int,
    sample_weights: Tensor | None,
    checks: ValueChecks | None,
) -> ClassWeights:
    """The labels as weights, after a check that every one of them has a prototype."""
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
    if seen is not None:
        missing = (belongs.weighted != 0).any(0) & ~seen
        checks.require(
            ~missing,
            "prototypes: expected a prototype for the class of every label, got labels of a class that was never seen; take "
            "the prototypes over the whole training set, or ignore these labels",
            lambda: f"classes without a prototype: {missing.nonzero().flatten().tolist()[:10]}",
        )
    return belongs


def own_prototypes(
    belongs: ClassWeights, maps: Tensor, prototypes: Tensor, cams: Tensor, dead: Tensor
) -> Tensor:
    """The prototypes of each sample's class, (K, P, …) -> (N, P, …).

    With soft labels they are mixed by their shares. With several a class, of each class the one that is nearest goes into the
    mixture, which is (N, 1, …): in L2 to the map, or where there is none because the cam is dead, by the cosine to the cam.

    Args:
        belongs: the labels.
        maps: (N, 1, …) of the prototypes' size.
        prototypes: (K, P, …).
        cams: (N, 1, *spatial), signed.
        dead: (N,) booleans.
    """
    if belongs.indices is not None or prototypes.shape[1] == 1:
        return belongs.pick(prototypes)
    with torch.no_grad():
        rows, candidates = maps.flatten(1), prototypes.flatten(0, 1).flatten(1)
        signed = unit(resize(full_precision(cams), maps.shape[2:])).flatten(1)
        # ‖m − p‖² without the ‖m‖² that all have in common
        apart = candidates.square().sum(1) - 2 * rows @ candidates.T
        apart = torch.where(dead.unsqueeze(1), -signed @ unit(candidates).T, apart)
        nearest_ones = apart.unflatten(1, prototypes.shape[:2]).argmin(2)
        chosen = torch.nn.functional.one_hot(nearest_ones, prototypes.shape[1]).to(maps.dtype)
        mixture = (chosen * belongs.shares.unsqueeze(2)).flatten(1) @ candidates
    return mixture.reshape(maps.shape)


def nearest(distance: Distance, maps: Tensor, prototypes: Tensor) -> Tensor:
    """The distance of each map (N, 1, …) to the nearest of its prototypes (N, P, …): (N,)."""
    n, several = prototypes.shape[:2]
    if several > 1:
        maps, prototypes = maps.repeat_interleave(several, 0), prototypes.flatten(0, 1).unsqueeze(1)
    distances = distance(maps, prototypes)
    if distances.shape != maps.shape[:1]:
        raise ValueError(
            f"distance: expected one number a pair, ({maps.shape[0]},), got {tuple(distances.shape)}; average over the pixels"
        )
    return distances.reshape(n, several).amin(1) if several > 1 else distances


def compared(maps: Tensor, prototypes: Tensor, distance: str | Distance, skip: Tensor) -> Tensor:
    """Distances (N,) of maps (N, 1, …) to the nearest of their prototypes (N, P, …).

    Where ``skip`` says that the outcome is not used, nothing that it is made of can spoil a gradient: a distance of the user's
    may have no derivative where both maps are zero, as a square root has none. A skipped pair is the zero map and a map of ones.
    """
    by_pair = skip.reshape(-1, *[1] * (maps.dim() - 1))
    maps, prototypes = maps.masked_fill(by_pair, 0), prototypes.masked_fill(by_pair, 1)
    return nearest(get_distance(distance), maps, prototypes)


def without(cams: Tensor, counted: Tensor) -> Tensor:
    """The cams, zero where a sample does not count, so that not even a NaN in it reaches a gradient."""
    return cams.masked_fill(~counted.reshape(-1, *[1] * (cams.dim() - 1)), 0)


class Groups(NamedTuple):
    """The classes whose mean cams are compared: all of them, or with more classes than samples those of the batch."""

    labels: Tensor  #: (N, G), how much each sample belongs to each group
    weights: Tensor  #: (N, G), the same times the importance of the sample
    prototypes: Tensor  #: (G, P, *spatial)
    classes: Tensor | None = None  #: (G,) class indices; None: group c is class c

    def spread(self, values: Tensor, num_classes: int) -> Tensor:
        """Values (G,) -> (K,), zero for absent classes; the values of absent groups have to be zero."""
        if self.classes is None:
            return values
        return values.new_zeros(num_classes).index_add(0, self.classes, values)


def all_classes(belongs: ClassWeights, prototypes: Tensor) -> Groups:
    """A group for each class."""
    return Groups(belongs.weights, belongs.weighted, prototypes)


def grouped(belongs: ClassWeights, prototypes: Tensor) -> Groups:
    """Choose the groups, see :class:`Groups`; the cost never grows with more classes than samples."""
    n, num_classes = belongs.weights.shape
    if belongs.indices is None or num_classes <= n:
        return all_classes(belongs, prototypes)
    # Sample i stands for its class if it is the first of it: a group each, without asking the device how many there are.
    same = (belongs.indices.unsqueeze(1) == belongs.indices) & belongs.counted & belongs.counted.unsqueeze(1)
    is_first = same.cumsum(1).diagonal() == 1
    labels = (same & is_first).to(belongs.weights.dtype)
    weights = labels if belongs.importance is None else labels * belongs.importance.unsqueeze(1)
    return Groups(labels, weights, belongs.pick(prototypes), belongs.indices)


def revived(values: Tensor, cams: Tensor, prototypes: Tensor, dead: Tensor) -> Tensor:
    """The values (N,), with 1 − cosine(C, P) in the place of those of dead cams, P the nearest of (N, P, …)."""
    # Where it can be known without waiting for a device; the costs of all cams would be computed for nothing.
    if dead.device.type == "cpu" and not torch.compiler.is_compiling() and not bool(dead.any()):
        return values
    signed = resize(full_precision(cams), prototypes.shape[2:])
    return torch.where(dead, nearest(cosine_distance, signed, prototypes), values)


def check_temperature(temperature: float) -> None:
    """Raise a ``ValueError`` unless the temperature is positive and finite."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature: expected a positive number, got {temperature}")
