"""From raw cams to what pytorch-grad-cam, TorchCAM and Captum return: their scaling, their resizing, their epsilons.

The weightings have to be the peer's, too: see :mod:`~batchcam_captum.interop.peer_methods`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..functional import full_precision, rectify, resize
from ..optional import load
from .peer_methods import torchcam_method

if TYPE_CHECKING:
    import numpy as np

_PYTORCH_GRAD_CAM_EPS = 1e-7
_TORCHCAM_EPS = 1e-8


@torch.no_grad()
def to_pytorch_grad_cam(cams: Tensor | Sequence[Tensor], size: int | Sequence[int]) -> np.ndarray:
    """What pytorch-grad-cam 1.5.7 returns: ReLU, min-max, resized to the images' size, min-max again.

    The first scaling is in the cams' own precision; from the resizing on it is float32, as with OpenCV there. Pictures are
    resized bilinearly, without smoothing where they shrink. Volumes are resized by cubic splines between the outermost voxels'
    centres (``scipy.ndimage.zoom``), whose overshoots below zero are cut off.

    Args:
        cams: (N, 1, h, w) or (N, 1, d, h, w), raw and signed; or a list of them, one entry a layer, of whatever sizes: each
            layer is scaled by itself, then they are averaged.
        size: of the images, (H, W) or (D, H, W); one integer for all sides.

    Returns:
        (N, H, W) or (N, D, H, W), float32 in [0, 1]. A map without positive values, or a constant one, is zero.

    Raises:
        TypeError: a size that is no integer, nor several.
        ValueError: cams of another shape, or a size that does not fit them.
        ModuleNotFoundError: volumes, where SciPy is not installed.

    Example:
        >>> import torch
        >>> print(to_pytorch_grad_cam(torch.tensor([[[[-1.0, 1.0], [2.0, 4.0]]]]), (2, 2)).round(2))
        [[[0.   0.25]
          [0.5  1.  ]]]
    """
    layers = _checked("to_pytorch_grad_cam", cams)
    dims = {layer.dim() - 2 for layer in layers}
    size = _sides("to_pytorch_grad_cam", size, layers[0].dim() - 2)
    if dims not in ({2}, {3}) or {len(size)} != dims or min(size) < 1:
        raise ValueError(
            f"to_pytorch_grad_cam: expected cams (N, 1, h, w) with a size (H, W), or (N, 1, d, h, w) with (D, H, W), got "
            f"{_shapes(layers)} and size {size}; pytorch-grad-cam has no other maps"
        )
    resized = _bilinear if len(size) == 2 else _spline
    scaled = [resized(_min_max(rectify(layer), _PYTORCH_GRAD_CAM_EPS).float(), size) for layer in layers]
    together = torch.stack([layer.clamp(min=0) for layer in scaled]).mean(0)
    pictures = _min_max(together, _PYTORCH_GRAD_CAM_EPS).squeeze(1).cpu()
    return load("numpy", purpose="to_pytorch_grad_cam").asarray(pictures)  # type: ignore[no-any-return]


@torch.no_grad()
def to_torchcam(cams: Tensor | Sequence[Tensor], normalized: bool = True) -> list[Tensor]:
    """What an extractor of TorchCAM 0.5 returns: ReLU, then min-max, at the layer's own size.

    Args:
        cams: (N, 1, *spatial), raw and signed; or a list of them, one entry a layer.
        normalized: as the extractor's argument of this name; without it the maps are rectified only.

    Returns:
        One tensor a layer, (N, *spatial), float32 (float64 stays), detached, in [0, 1] if normalised. A map without positive
        values, or a constant one, is zero.

    Raises:
        ValueError: cams of another shape.

    Example:
        >>> import torch
        >>> to_torchcam(torch.tensor([[[[-1.0, 1.0], [2.0, 4.0]]]]))
        [tensor([[[0.0000, 0.2500],
                  [0.5000, 1.0000]]])]
    """
    rectified = [rectify(layer) for layer in _checked("to_torchcam", cams)]
    return [(_min_max(layer, _TORCHCAM_EPS) if normalized else layer).squeeze(1) for layer in rectified]


@torch.no_grad()
def fuse_as_torchcam(
    maps: Sequence[Tensor], size: int | Sequence[int] | None = None, *, method: str = "grad_cam"
) -> Tensor:
    """What ``fuse_cams`` of TorchCAM 0.5's extractors makes of the maps of several layers: the largest value at each place.

    Args:
        maps: of :func:`to_torchcam`, one entry a layer, (N, h, w) or (N, d, h, w). A single one comes back as it is, whatever the
            size.
        size: to which all are resized, bilinearly or trilinearly; by default the largest of each dimension.
        method: the weighting they were made with, a name of :func:`~batchcam_captum.interop.torchcam_method`. For
            ``"layer_cam"`` tanh(2 · map) goes into the maximum (Jiang et al. 2021, eq. 9).

    Returns:
        (N, *size).

    Raises:
        TypeError: a tensor instead of a list, or a size that is no integer, nor several.
        ValueError: maps that have another number of dimensions, or none, a size that does not fit them, or another method.
    """
    torchcam_method(method)
    given: Any = maps
    if isinstance(given, Tensor):
        raise TypeError(
            f"fuse_as_torchcam: expected a list of maps, one entry a layer, got a tensor {tuple(given.shape)}; pass what "
            f"to_torchcam returns, or list(maps) of maps stacked by layer"
        )
    dims = {layer.dim() - 1 for layer in maps}
    if len(maps) == 1:
        return maps[0]
    if dims not in ({2}, {3}):
        raise ValueError(
            f"fuse_as_torchcam: expected maps (N, h, w) or (N, d, h, w), got {_shapes(maps)}; TorchCAM fuses no others"
        )
    if size is None:
        size = tuple(map(max, zip(*(layer.shape[1:] for layer in maps), strict=True)))
    to = _sides("fuse_as_torchcam", size, *dims)
    if {len(to)} != dims:
        raise ValueError(f"fuse_as_torchcam: expected one size for each side of {_shapes(maps)}, got {to}")
    scaled = [(2 * layer).tanh() if method == "layer_cam" else layer for layer in maps]
    resized = [resize(layer.unsqueeze(1), to, "linear").squeeze(1) for layer in scaled]
    return torch.stack(resized).amax(0)


@torch.no_grad()
def to_captum(
    cams: Tensor, size: int | Sequence[int] | None = None, interpolate_mode: str = "nearest"
) -> Tensor:
    """What Captum's ``LayerGradCam`` returns, the raw map itself, or what its ``interpolate`` makes of it.

    Args:
        cams: (N, 1, *spatial), raw and signed.
        size: what ``LayerAttribution.interpolate`` is given; None leaves the maps at the layer's size.
        interpolate_mode: the same: ``"nearest"``, ``"area"``, ``"linear"``, ``"bilinear"``, ``"bicubic"``, ``"trilinear"``, …,
            as it fits the number of dimensions.

    Returns:
        (N, 1, *spatial) or (N, 1, *size), detached, of the cams' type.

    Raises:
        TypeError: a size that is no integer, nor several.
        ValueError: cams of another shape, or a size that does not fit them.

    Example:
        >>> import torch
        >>> to_captum(torch.tensor([[[[-1.0, 2.0]]]]), (1, 4))
        tensor([[[[-1., -1.,  2.,  2.]]]])
    """
    _checked("to_captum", cams)
    cams = cams.detach()
    if size is None:
        return cams
    spatial = cams.dim() - 2
    sizes = _sides("to_captum", size, spatial)
    if len(sizes) != spatial:
        raise ValueError(
            f"to_captum: expected one size for each of the {spatial} spatial dimensions of cams {tuple(cams.shape)}, got "
            f"{sizes}"
        )
    if not len(cams):  # interpolate rejects an empty batch
        return cams.new_zeros(0, 1, *sizes)
    return F.interpolate(cams, sizes, mode=interpolate_mode)


def _sides(name: str, size: Any, spatial: int) -> tuple[int, ...]:
    """One integer for each side, however many were given; a single one for all of them."""
    sides = [size] * spatial if isinstance(size, Integral) else size
    sides = list(sides) if isinstance(sides, Iterable) else [None]
    if not all(isinstance(side, Integral) for side in sides):
        raise TypeError(
            f"{name}: expected a size of integers, one for each of {spatial} spatial dimensions or one for all, got {size!r}; "
            f"pass images.shape[2:], or int() of each"
        )
    return tuple(map(int, sides))


def _checked(name: str, cams: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """One entry a layer, at least float32."""
    layers = [cams] if isinstance(cams, Tensor) else list(cams)
    fits = all(isinstance(layer, Tensor) and layer.dim() > 2 and layer.shape[1] == 1 for layer in layers)
    if not layers or not fits or len({len(layer) for layer in layers}) != 1:
        raise ValueError(
            f"{name}: expected cams (N, 1, *spatial), as attribute() returns them, or a list of such with one N, got "
            f"{_shapes(layers)}"
        )
    return [full_precision(layer.detach()) for layer in layers]


def _shapes(layers: Sequence[object]) -> str:
    found = [tuple(layer.shape) if isinstance(layer, Tensor) else type(layer).__name__ for layer in layers]
    return ", ".join(map(str, found)) or "an empty list"


def _min_max(maps: Tensor, eps: float) -> Tensor:
    """Each map from 0 to nearly 1; the epsilon is absolute, so that what peaks far below it stays faint."""
    pixels = tuple(range(1, maps.dim()))
    maps = maps - maps.amin(dim=pixels, keepdim=True)
    return maps / (maps.amax(dim=pixels, keepdim=True) + eps)


def _bilinear(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(N, 1, h, w) float32 -> (N, 1, *size), as OpenCV 4.14 and 5.0 do it: along the rows, then along the columns.

    Not torch's own, which rounds the places between the pixels to float32: where the ratio of the sizes is no power of two, that
    moves the values of large maps by more than 1e-6.
    """
    for dim in (3, 2):
        old, new = maps.shape[dim], size[dim - 2]
        if old == new:
            continue
        places = ((torch.arange(new, dtype=torch.float64) + 0.5) * (old / new) - 0.5).clamp(0, old - 1)
        below = places.floor()
        share = (places - below).float().to(maps.device).reshape(-1, *[1] * (3 - dim))
        first = below.long().to(maps.device)
        second = (first + 1).clamp(max=old - 1)
        maps = maps.index_select(dim, first) * (1 - share) + maps.index_select(dim, second) * share
    return maps


def _spline(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(N, 1, d, h, w) float32 -> (N, 1, *size), one after the other on the CPU."""
    zoom = load("scipy.ndimage", purpose="to_pytorch_grad_cam of volumes").zoom
    factors = [new / old for new, old in zip(size, maps.shape[2:], strict=True)]
    larger = [torch.from_numpy(zoom(one.numpy(), factors)) for one in maps.squeeze(1).cpu()]
    if not larger:
        return maps.new_zeros(0, 1, *size)
    return torch.stack(larger).unsqueeze(1).to(maps.device)
