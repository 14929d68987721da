"""What happens to a cam before it is compared or shown: rectify, normalize, resize."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_choice
from .common import full_precision, reduce

Normalization = Literal["max", "minmax", "none"]
ResizeMode = Literal["linear", "area", "auto"]

#: A cam whose largest positive value is at most this share of its largest absolute value is dead.
DEAD_TOLERANCE = 1e-3

_LINEAR_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def _over_pixels(tensor: Tensor) -> tuple[int, ...]:
    return tuple(range(1, tensor.dim()))


def rectify(cams: Tensor) -> Tensor:
    """Return the evidence for the class, ``relu(cams)``: the outer ReLU of Grad-CAM (Selvaraju et al. 2017, eq. 2).

    Args:
        cams: of any shape, signed.

    Returns:
        The same shape, at least 0.
    """
    return F.relu(cams)


def peak(cams: Tensor) -> Tensor:
    """Return the largest absolute value of each cam, to which every tolerance of the package is relative.

    Args:
        cams: (N, …), signed.

    Returns:
        (N, 1, …), with as many dimensions as the cams.
    """
    return cams.abs().amax(dim=_over_pixels(cams), keepdim=True)


def dead_cams(cams: Tensor) -> Tensor:
    """Find the cams that have no positive value to speak of: max relu(C) <= 1e-3 · max|C|.

    Args:
        cams: (N, 1, *spatial), signed.

    Returns:
        (N,) booleans. An all-zero cam is dead, and so is one so small that dividing by it overflows (below 1e-38 in float32).
    """
    lowest, highest = torch.aminmax(full_precision(cams.detach()).flatten(1), dim=1)
    return _is_dead(lowest, highest)


def _is_dead(lowest: Tensor, highest: Tensor) -> Tensor:
    # Where the largest absolute value is the highest value itself, the cam is alive unless that is zero.
    return highest <= (-DEAD_TOLERANCE * lowest).clamp(min=torch.finfo(lowest.dtype).tiny)


def dead_fraction(cams: Tensor, counted: Tensor | None = None) -> Tensor:
    """Return the share of dead cams in a batch.

    Args:
        cams: (N, 1, *spatial), signed.
        counted: (N,) booleans, which samples count. Default: all.

    Returns:
        A scalar in [0, 1]; 0 where nothing counts.
    """
    return reduce(dead_cams(cams).float(), "mean", counted)


def normalize(cams: Tensor, method: Normalization = "max") -> Tensor:
    """Scale each cam.

    Args:
        cams: (N, …); half types are computed and returned in float32.
        method: ``"max"`` divides by the largest value, so that a rectified cam peaks at 1; ``"minmax"`` maps the smallest
            value to 0 and the largest to 1; ``"none"`` changes nothing.

    Returns:
        (N, …). Zero, with a zero gradient, where there is no scale: for ``"max"`` the largest value is not positive, for
        ``"minmax"`` the map is constant, both relative to the largest absolute value of the cam.

    Raises:
        ValueError: an unknown method.
    """
    check_choice("normalization", method, Normalization)
    cams = full_precision(cams)
    if method == "none":
        return cams
    pixels = _over_pixels(cams)
    # Relative to the cam, never absolute: the raw cams of some networks peak at 1e-11.
    limits = torch.finfo(cams.dtype)
    tolerance = (limits.eps * peak(cams.detach())).clamp(min=limits.tiny)
    if method == "minmax":
        cams = cams - cams.amin(dim=pixels, keepdim=True)
    highest = cams.amax(dim=pixels, keepdim=True)
    no_scale = highest.detach() <= tolerance
    return cams.masked_fill(no_scale, 0) / highest.masked_fill(no_scale, 1)


def resize(maps: Tensor, size: Sequence[int], mode: ResizeMode = "auto") -> Tensor:
    """Change the spatial size of maps with one, two or three spatial dimensions.

    Args:
        maps: (N, C, *spatial).
        size: the new spatial size, one number per dimension.
        mode: ``"linear"`` (linear, bilinear or trilinear with ``align_corners=False``), ``"area"`` (the mean over the pixels
            that fall into each new one), or ``"auto"``: area where no dimension grows, linear otherwise.

    Returns:
        (N, C, *size); the input itself where nothing changes.

    Raises:
        ValueError: the number of dimensions does not fit, or an unknown mode.
    """
    check_choice("mode", mode, ResizeMode)
    spatial = tuple(maps.shape[2:])
    size = tuple(size)
    if len(size) != len(spatial) or len(spatial) not in _LINEAR_MODES:
        raise ValueError(
            f"resize: expected maps (N, C, *spatial) with 1 to 3 spatial dimensions and as many sizes, "
            f"got maps {tuple(maps.shape)} and size {size}"
        )
    if size == spatial:
        return maps
    if mode == "auto":
        shrinks = all(new <= old for new, old in zip(size, spatial, strict=True))
        mode = "area" if shrinks else "linear"
    if maps.shape[0] == 0:  # interpolate rejects an empty batch
        return maps.reshape(0, maps.shape[1], *size)
    if mode == "linear":
        return F.interpolate(maps, size=size, mode=_LINEAR_MODES[len(size)], align_corners=False)
    return F.interpolate(maps, size=size, mode=mode)


class PreparedCams(NamedTuple):
    """Cams ready for a comparison, as :func:`prepare` returns them."""

    maps: Tensor  #: (N, 1, *spatial), rectified and normalized; zero where dead
    dead: Tensor  #: (N,) booleans


def prepare(cams: Tensor, method: Normalization = "max") -> PreparedCams:
    """Rectify and normalize signed cams, and find the dead ones.

    Args:
        cams: (N, 1, *spatial), raw and signed.
        method: ``"max"``, ``"minmax"`` or ``"none"``, as in :func:`normalize`.

    Returns:
        The maps, relu(C) / max for ``"max"``, and which cams are dead. No gradient flows from ``maps`` into a dead cam, where
        dividing by its vanishing peak would make it arbitrarily large.
    """
    check_choice("normalization", method, Normalization)
    cams = full_precision(cams)
    rows = cams.flatten(1)
    highest = rows.amax(1)
    dead = _is_dead(rows.detach().amin(1), highest.detach())
    shape = (-1, *[1] * (cams.dim() - 1))
    if method == "max":
        # Divided by infinity a dead cam becomes zero, and so does its gradient.
        return PreparedCams(rectify(cams) / highest.masked_fill(dead, math.inf).reshape(shape), dead)
    return PreparedCams(normalize(rectify(cams.masked_fill(dead.reshape(shape), 0)), method), dead)
