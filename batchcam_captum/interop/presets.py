"""The weightings and the postprocessing of pytorch-grad-cam, TorchCAM and Captum, in torch.

A peer's maps are ``BatchGradCam(model, layer, method=<its weighting>).attribute(...)``, passed to the peer's preset.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..functional import (
    CamMethod,
    full_precision,
    grad_cam,
    grad_cam_plus_plus,
    hires_cam,
    layer_cam,
    rectify,
    resize,
    xgrad_cam,
)
from ..functional.cam import channel_weights, over_places, summed_shares
from ..optional import load

if TYPE_CHECKING:
    import numpy as np

_PYTORCH_GRAD_CAM_EPS = 1e-7
_TORCHCAM_EPS = 1e-8


def pytorch_grad_cam_method(name: str) -> CamMethod:
    """Return a weighting of pytorch-grad-cam 1.5.7, for ``BatchGradCam(..., method=...)``.

    Grad-CAM++ adds 1e-6 to its denominator and XGrad-CAM 1e-7; the others are this package's own. Both epsilons are absolute, so
    they change the maps of networks with small gradients or activations.

    Args:
        name: ``"grad_cam"``, ``"grad_cam_plus_plus"``, ``"xgrad_cam"``, ``"hires_cam"``, ``"layer_cam"`` or
            ``"grad_cam_elementwise"``.

    Raises:
        ValueError: an unknown name.
    """
    return _by_name("pytorch-grad-cam", _PYTORCH_GRAD_CAM, name)


def torchcam_method(name: str) -> CamMethod:
    """Return a weighting of TorchCAM 0.5, for ``BatchGradCam(..., method=...)``.

    - Grad-CAM++ is not divided: TorchCAM's in-place division goes to a copy, so the weights are w_k = Σ_i g_ki² relu(g_ki).
    - XGrad-CAM adds 1e-8 to the sum of the activations.
    - A channel's contribution that is NaN counts as zero.

    Args:
        name: ``"grad_cam"``, ``"grad_cam_plus_plus"``, ``"xgrad_cam"`` or ``"layer_cam"``.

    Raises:
        ValueError: an unknown name.
    """
    return _by_name("TorchCAM", _TORCHCAM, name)


def grad_cam_elementwise(activations: Tensor, gradients: Tensor, *, channel_sum: bool = True) -> Tensor:
    """Compute ``GradCAMElementWise`` of pytorch-grad-cam: Σ_k relu(∂s/∂A_k ⊙ A_k), never negative.

    Args:
        activations: (N, C, *spatial).
        gradients: of the same shape.
        channel_sum: sum over the channels; False returns each channel's contribution, (N, C, *spatial).

    Returns:
        (N, 1, *spatial), float32 or float64.

    Raises:
        ValueError: the shapes differ.
    """
    return summed_shares(
        "grad_cam_elementwise", lambda a, g: (g * a).relu(), activations, gradients, channel_sum
    )


def _torchcam_cam(
    activations: Tensor, gradients: Tensor, *, channel_sum: bool = True, name: str = "grad_cam"
) -> Tensor:
    def contributions(a: Tensor, g: Tensor) -> Tensor:
        weighted = _TORCHCAM_WEIGHTS[name](a, g) * a
        return torch.where(weighted.isnan(), 0, weighted)

    return summed_shares(name, contributions, activations, gradients, channel_sum)


def _with_eps(method: Callable[..., Tensor], eps: float) -> CamMethod:
    return partial(method, eps=eps)


_PYTORCH_GRAD_CAM: dict[str, CamMethod] = {
    "grad_cam": grad_cam,
    "grad_cam_plus_plus": _with_eps(grad_cam_plus_plus, 1e-6),
    "xgrad_cam": _with_eps(xgrad_cam, 1e-7),
    "hires_cam": hires_cam,
    "layer_cam": layer_cam,
    "grad_cam_elementwise": grad_cam_elementwise,
}
_TORCHCAM_WEIGHTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "grad_cam": lambda a, g: channel_weights(g),
    "grad_cam_plus_plus": lambda a, g: over_places(g.square() * g.relu()),
    "xgrad_cam": lambda a, g: over_places(g * a) / (over_places(a) + 1e-8),
    "layer_cam": lambda a, g: g.relu(),
}
# By name, so that an attribution object with such a weighting can be pickled.
_TORCHCAM: dict[str, CamMethod] = {name: partial(_torchcam_cam, name=name) for name in _TORCHCAM_WEIGHTS}


def _by_name(peer: str, methods: dict[str, CamMethod], name: str) -> CamMethod:
    if name not in methods:
        raise ValueError(
            f"method: expected a method of {peer} ({', '.join(map(repr, methods))}), got {name!r}"
        )
    return methods[name]


@torch.no_grad()
def to_pytorch_grad_cam(cams: Tensor | Sequence[Tensor], size: int | Sequence[int]) -> np.ndarray:
    """Turn raw cams into the maps of pytorch-grad-cam 1.5.7: ReLU, min-max, resize to the image, mean over layers, min-max.

    Images are resized bilinearly; volumes by cubic splines (``scipy.ndimage.zoom``), whose values below zero are cut off.

    Args:
        cams: (N, 1, h, w) or (N, 1, d, h, w), raw and signed; or a list with one such tensor per layer, of any sizes.
        size: of the images, (H, W) or (D, H, W); one integer for all sides.

    Returns:
        (N, H, W) or (N, D, H, W), float32 in [0, 1]. A map without positive values, or a constant one, is zero.

    Raises:
        ValueError: cams of another shape, or a size that does not fit them.
        ModuleNotFoundError: volumes without SciPy installed.

    Example:
        >>> import torch
        >>> print(to_pytorch_grad_cam(torch.tensor([[[[-1.0, 1.0], [2.0, 4.0]]]]), (2, 2)).round(2))
        [[[0.   0.25]
          [0.5  1.  ]]]
    """
    layers = _checked("to_pytorch_grad_cam", cams)
    spatial = {layer.dim() - 2 for layer in layers}
    size = (size,) * max(spatial) if isinstance(size, int) else tuple(size)
    if spatial not in ({2}, {3}) or {len(size)} != spatial or min(size) < 1:
        raise ValueError(
            f"to_pytorch_grad_cam: expected cams (N, 1, h, w) and a size (H, W), or (N, 1, d, h, w) and (D, H, W), got "
            f"{_shapes(layers)} and size {size}; pass images.shape[2:]"
        )
    scaled = [_min_max(rectify(layer), _PYTORCH_GRAD_CAM_EPS).float() for layer in layers]
    resized = [_bilinear(maps, size) if len(size) == 2 else _spline(maps, size) for maps in scaled]
    maps = _min_max(torch.stack([entry.clamp(min=0) for entry in resized]).mean(0), _PYTORCH_GRAD_CAM_EPS)
    return load("numpy", purpose="to_pytorch_grad_cam").asarray(maps.squeeze(1).cpu())  # type: ignore[no-any-return]


@torch.no_grad()
def to_torchcam(cams: Tensor | Sequence[Tensor], normalized: bool = True) -> list[Tensor]:
    """Turn raw cams into what an extractor of TorchCAM 0.5 returns: ReLU, then min-max, at the layer's size.

    Args:
        cams: (N, 1, *spatial), raw and signed; or a list with one such tensor per layer.
        normalized: as the extractor's argument of this name; False leaves out the min-max.

    Returns:
        One tensor per layer, (N, *spatial), float32 or float64, detached. Normalized maps are in [0, 1]; a map without positive
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
    """Fuse the maps of several layers as ``fuse_cams`` of TorchCAM 0.5: the largest value at each position.

    Args:
        maps: from :func:`to_torchcam`, one tensor per layer, (N, h, w) or (N, d, h, w). A single one is returned as it is.
        size: resize to this size, bilinearly or trilinearly; by default to the largest size of each dimension.
        method: the weighting of the maps, a name of :func:`torchcam_method`. For ``"layer_cam"`` the maps are scaled by
            tanh(2 · map) first (Jiang et al. 2021, eq. 9).

    Returns:
        (N, *size).

    Raises:
        TypeError: a tensor instead of a list.
        ValueError: maps that are not (N, h, w) or (N, d, h, w), a size that does not fit them, or an unknown method.
    """
    torchcam_method(method)
    given: object = maps
    if isinstance(given, Tensor):
        raise TypeError(
            f"maps: expected a list with one tensor per layer, got a tensor {tuple(given.shape)}; pass what to_torchcam returns"
        )
    if len(maps) == 1:
        return maps[0]
    spatial = {layer.dim() - 1 for layer in maps}
    if spatial not in ({2}, {3}):
        raise ValueError(
            f"maps: expected (N, h, w) or (N, d, h, w), got {_shapes(maps)}; TorchCAM fuses nothing else"
        )
    if size is None:
        size = tuple(map(max, zip(*(layer.shape[1:] for layer in maps), strict=True)))
    size = (size,) * max(spatial) if isinstance(size, int) else tuple(size)
    if {len(size)} != spatial:
        raise ValueError(
            f"size: expected one number for each side of {_shapes(maps)}, got {size}; pass images.shape[2:]"
        )
    scaled = [(2 * layer).tanh() if method == "layer_cam" else layer for layer in maps]
    resized = [resize(layer.unsqueeze(1), size, "linear").squeeze(1) for layer in scaled]
    return torch.stack(resized).amax(0)


@torch.no_grad()
def to_captum(
    cams: Tensor, size: int | Sequence[int] | None = None, interpolate_mode: str = "nearest"
) -> Tensor:
    """Turn raw cams into what Captum's ``LayerGradCam`` and ``LayerAttribution.interpolate`` return.

    Args:
        cams: (N, 1, *spatial), raw and signed.
        size: the size that ``interpolate`` is given; None returns the raw maps.
        interpolate_mode: the mode of ``torch.nn.functional.interpolate``, such as ``"nearest"`` or ``"bilinear"``.

    Returns:
        (N, 1, *spatial) or (N, 1, *size), detached.

    Raises:
        ValueError: cams of another shape, or a size that does not fit them.

    Example:
        >>> import torch
        >>> to_captum(torch.tensor([[[[-1.0, 2.0]]]]), (1, 4))
        tensor([[[[-1., -1.,  2.,  2.]]]])
    """
    _checked("to_captum", cams)
    if size is None:
        return cams.detach()
    return F.interpolate(cams, size if isinstance(size, int) else tuple(size), mode=interpolate_mode)


def _checked(name: str, cams: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Return one tensor per layer, float32 or float64."""
    layers = [cams] if isinstance(cams, Tensor) else list(cams)
    fits = all(isinstance(layer, Tensor) and layer.dim() > 2 and layer.shape[1] == 1 for layer in layers)
    if not fits or len({len(layer) for layer in layers}) != 1:
        raise ValueError(
            f"{name}: expected cams (N, 1, *spatial), as attribute() returns them, or a list of them with one N, got "
            f"{_shapes(layers)}"
        )
    return [full_precision(layer.detach()) for layer in layers]


def _shapes(layers: Sequence[object]) -> str:
    found = [tuple(layer.shape) if isinstance(layer, Tensor) else type(layer).__name__ for layer in layers]
    return ", ".join(map(str, found)) or "an empty list"


def _min_max(maps: Tensor, eps: float) -> Tensor:
    """Scale each map to [0, 1]. The epsilon is absolute, as in the peers, so maps with a peak far below it stay faint."""
    spatial = tuple(range(1, maps.dim()))
    maps = maps - maps.amin(dim=spatial, keepdim=True)
    return maps / (maps.amax(dim=spatial, keepdim=True) + eps)


def _bilinear(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (N, 1, h, w) as OpenCV does. Float64, since torch's float32 positions are off by 1e-6 on large maps."""
    if not len(maps):  # interpolate rejects an empty batch
        return maps.new_zeros(0, 1, *size)
    precise = maps if maps.device.type == "mps" else maps.double()
    return F.interpolate(precise, tuple(size), mode="bilinear", align_corners=False).float()


def _spline(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (N, 1, d, h, w) with SciPy, one volume at a time on the CPU."""
    zoom = load("scipy.ndimage", purpose="to_pytorch_grad_cam of volumes").zoom
    factors = [new / old for new, old in zip(size, maps.shape[2:], strict=True)]
    resized = [torch.from_numpy(zoom(volume.numpy(), factors)) for volume in maps.squeeze(1).cpu()]
    return torch.stack(resized).unsqueeze(1) if resized else maps.new_zeros(0, 1, *size)
