"""The peers' weightings, their epsilons and quirks included, for ``BatchGradCam(…, method=…)``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..functional import (
    CamMethod,
    full_precision,
    grad_cam,
    grad_cam_plus_plus,
    hires_cam,
    layer_cam,
    xgrad_cam,
)
from ..functional.cam import channel_weights, over_places, summed_shares
from ..optional import load


def grad_cam_elementwise(activations: Tensor, gradients: Tensor, *, channel_sum: bool = True) -> Tensor:
    """``GradCAMElementWise`` of pytorch-grad-cam 1.5.7: Σ_k relu(∂s/∂A_k ⊙ A_k), never negative.

    Args:
        activations: (N, C, *spatial).
        gradients: of the same shape.
        channel_sum: sum over the channels; without it each channel's share is returned, (N, C, *spatial).

    Returns:
        (N, 1, *spatial), float32 whatever the inputs' half type (float64 stays).

    Raises:
        ValueError: the shapes differ.
    """
    return summed_shares(
        "grad_cam_elementwise", lambda a, g: (g * a).relu(), activations, gradients, channel_sum
    )


class _PytorchGradCamMethod:
    """A weighting whose sums are NumPy's on the CPU, and torch's elsewhere.

    A float32 sum depends on its order. Mostly that is the last bit; where the terms nearly cancel, in a denominator of Grad-CAM++
    or over the channels of what a LayerNorm reads, it is the map.

    Args:
        name: of the weighting.
        by_torch: the weighting itself, with the epsilons.
        shares: (numpy, activations, gradients, axes of the places) -> the channels' shares; all arrays (N, C, *spatial).
    """

    def __init__(self, name: str, by_torch: Callable[..., Tensor], shares: Callable[..., Any]) -> None:
        self.__name__ = name
        self.by_torch, self.shares = by_torch, shares

    def __call__(self, activations: Tensor, gradients: Tensor, *, channel_sum: bool = True) -> Tensor:
        if (
            activations.device.type != "cpu"
            or gradients.requires_grad  # differentiable maps
            or activations.shape != gradients.shape
            or torch.compiler.is_compiling()
        ):
            return self.by_torch(activations, gradients, channel_sum=channel_sum)
        np = load("numpy", purpose="pytorch-grad-cam's weightings")
        a, g = (full_precision(tensor.detach()).numpy() for tensor in (activations, gradients))
        # Dividing by zero is NaN or infinity for tensors, without a warning.
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            found = np.asarray(self.shares(np, a, g, tuple(range(2, a.ndim))))
            return torch.from_numpy(found.sum(axis=1, keepdims=True) if channel_sum else found)

    def __repr__(self) -> str:
        return f"pytorch_grad_cam_method({self.__name__!r})"

    def __reduce__(self) -> tuple[Callable[[str], CamMethod], tuple[str]]:
        return pytorch_grad_cam_method, (self.__name__,)


def _grad_cam_plus_plus(np: Any, a: Any, g: Any, places: tuple[int, ...]) -> Any:
    square = g**2
    cube_term = a.sum(axis=places, keepdims=True) * (square * g)
    alpha = np.where(g == 0, 0, square / (2 * square + cube_term + 1e-6))
    return (np.maximum(g, 0) * alpha).sum(axis=places, keepdims=True) * a


def _xgrad_cam(np: Any, a: Any, g: Any, places: tuple[int, ...]) -> Any:
    return (g * a / (a.sum(axis=places, keepdims=True) + 1e-7)).sum(axis=places, keepdims=True) * a


def _with_eps(method: Callable[..., Tensor], eps: float) -> Callable[..., Tensor]:
    return partial(method, eps=eps)


_PYTORCH_GRAD_CAM: dict[str, CamMethod] = {
    name: _PytorchGradCamMethod(name, by_torch, shares)
    for name, by_torch, shares in (
        ("grad_cam", grad_cam, lambda np, a, g, places: g.mean(axis=places, keepdims=True) * a),
        ("grad_cam_plus_plus", _with_eps(grad_cam_plus_plus, 1e-6), _grad_cam_plus_plus),
        ("xgrad_cam", _with_eps(xgrad_cam, 1e-7), _xgrad_cam),
        ("hires_cam", hires_cam, lambda np, a, g, places: g * a),
        ("layer_cam", layer_cam, lambda np, a, g, places: np.maximum(g, 0) * a),
        ("grad_cam_elementwise", grad_cam_elementwise, lambda np, a, g, places: np.maximum(g * a, 0)),
    )
}


class _TorchCamMethod:
    """Weights times activations, what is not a number left out of the sum over the channels."""

    def __init__(self, name: str, weights: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.__name__ = name
        self.weights = weights

    def __call__(self, activations: Tensor, gradients: Tensor, *, channel_sum: bool = True) -> Tensor:
        def share(a: Tensor, g: Tensor) -> Tensor:
            shares = self.weights(a, g) * a
            return torch.where(shares.isnan(), 0, shares)

        return summed_shares(self.__name__, share, activations, gradients, channel_sum)

    def __repr__(self) -> str:
        return f"torchcam_method({self.__name__!r})"

    def __reduce__(self) -> tuple[Callable[[str], CamMethod], tuple[str]]:
        return torchcam_method, (self.__name__,)


_TORCHCAM: dict[str, CamMethod] = {
    name: _TorchCamMethod(name, weights)
    for name, weights in {
        "grad_cam": lambda a, g: channel_weights(g),
        "grad_cam_plus_plus": lambda a, g: over_places(g.square() * g.relu()),
        "xgrad_cam": lambda a, g: over_places(g * a) / (over_places(a) + 1e-8),
        "layer_cam": lambda a, g: g.relu(),
    }.items()
}


def pytorch_grad_cam_method(name: str) -> CamMethod:
    """The weighting of pytorch-grad-cam 1.5.7, with its epsilons, and on the CPU with its order of summation (NumPy's).

    Grad-CAM++ adds 1e-6 to its denominator, XGrad-CAM 1e-7; the others are this package's own. Both epsilons are absolute, so
    they change the maps of networks with small gradients or activations. Differentiable maps, and those on other devices, are
    summed by torch: in float64 that is the same but for the last bit, in float32 not where the sums nearly cancel.

    Args:
        name: ``"grad_cam"``, ``"grad_cam_plus_plus"``, ``"xgrad_cam"``, ``"hires_cam"``, ``"layer_cam"`` or
            ``"grad_cam_elementwise"``.

    Returns:
        A function for ``BatchGradCam(…, method=…)``.

    Raises:
        ValueError: another name.
    """
    return _choose("pytorch-grad-cam", _PYTORCH_GRAD_CAM, name)


def torchcam_method(name: str) -> CamMethod:
    """The weighting of TorchCAM 0.5, with its epsilon and its quirks.

    - Its Grad-CAM++ never divides: the division in place goes to the copy that indexing by a mask makes, so the weights remain
      w_k = Σ_i g_ki² relu(g_ki), and neither the activations nor its epsilon of 1e-8 have a part in them.
    - XGrad-CAM adds 1e-8 to the sum of the activations.
    - In all of them a channel's share that is not a number counts as zero.

    Args:
        name: ``"grad_cam"``, ``"grad_cam_plus_plus"``, ``"xgrad_cam"`` or ``"layer_cam"``.

    Returns:
        A function for ``BatchGradCam(…, method=…)``.

    Raises:
        ValueError: another name.
    """
    return _choose("TorchCAM", _TORCHCAM, name)


def _choose(peer: str, methods: Mapping[str, CamMethod], name: str) -> CamMethod:
    try:
        return methods[name]
    except KeyError:
        raise ValueError(
            f"method: expected one that {peer} has ({', '.join(map(repr, methods))}), got {name!r}"
        ) from None
