"""Weightings: from activations and gradients to cams. A new one is a function and its registration."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .common import Registry, exact_matmul_dtype, full_precision, no_autocast

# A sum smaller than this share of the sum of its terms' magnitudes, in units of the type's precision, is their rounding error.
_ROUNDING = 16

#: (N, C, *spatial), (N, C, *spatial) -> (N, 1, *spatial), signed.
CamMethod = Callable[[Tensor, Tensor], Tensor]

#: CAM weightings by name. Your own: ``@CAM_METHODS.register("name")`` on a function of activations and gradients,
#: (N, C, *spatial) each, that returns (N, 1, *spatial). To return the share of each channel it also takes ``channel_sum=True``,
#: whose False returns (N, C, *spatial).
CAM_METHODS: Registry[CamMethod] = Registry("method")

#: The channel weights of a weighting where the gradient of a channel is the same at every place, as it is if the head begins with
#: global average pooling: (N, C) gradients at one place -> (N, C) weights w with cam = Σ_k w_k A_k for every A. The maps of many
#: classes are then one matrix product. A weighting that is not listed is computed in full.
CONSTANT_GRADIENT_WEIGHTS: dict[CamMethod, Callable[[Tensor], Tensor]] = {}


def get_method(method: str | CamMethod) -> CamMethod:
    """Return the weighting of a name, or the callable that is given.

    Args:
        method: a name of :data:`CAM_METHODS`, or a function (N, C, *spatial), (N, C, *spatial) -> (N, 1, *spatial) of activations
            and gradients.

    Returns:
        The function.

    Raises:
        ValueError: an unknown name.
        TypeError: neither a name nor a callable.
    """
    if isinstance(method, str):
        return CAM_METHODS[method]
    if not callable(method):
        raise TypeError(
            f"method: expected a name ({', '.join(map(repr, CAM_METHODS))}) or a function of activations and gradients, "
            f"got {type(method).__name__}"
        )
    return method


def apply_method(
    method: str | CamMethod, activations: Tensor, gradients: Tensor, *, channel_sum: bool = True
) -> Tensor:
    """Return the cam of a registered or a custom weighting, after a check of its shape.

    Args:
        method: a name in :data:`CAM_METHODS`, or a callable.
        activations: (N, C, *spatial).
        gradients: of the same shape.
        channel_sum: sum over the channels; for False the weighting has to take an argument of this name.

    Returns:
        (N, 1, *spatial); (N, C, *spatial) without the sum.

    Raises:
        TypeError: ``channel_sum=False`` and a weighting without that argument, or a result that is not a tensor.
        ValueError: an unknown name, or a result of another shape.
    """
    method = get_method(method)
    if channel_sum:
        cams: Any = method(activations, gradients)
    elif _takes_channel_sum(method):
        cams = method(activations, gradients, channel_sum=False)  # type: ignore[call-arg]
    else:
        raise TypeError(
            f"method: expected a function with an argument channel_sum, got {_name(method)} without one; give it "
            f"channel_sum=True, or leave the channels summed"
        )
    if not isinstance(cams, Tensor):
        raise TypeError(f"method: expected a tensor from {_name(method)}, got {type(cams).__name__}")
    expected = (activations.shape[0], 1 if channel_sum else activations.shape[1], *activations.shape[2:])
    if cams.shape != expected:
        raise ValueError(
            f"method: expected a cam {expected} of activations {tuple(activations.shape)}, got {tuple(cams.shape)} from "
            f"{_name(method)}; keep the samples and the places, and sum over the channels with keepdim=True"
        )
    return cams


def _takes_channel_sum(method: CamMethod) -> bool:
    try:
        arguments = inspect.signature(method).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
        return True
    return any(a.name == "channel_sum" or a.kind is inspect.Parameter.VAR_KEYWORD for a in arguments)


def _name(method: CamMethod) -> str:
    return getattr(method, "__name__", None) or type(method).__name__


def channel_weights(gradients: Tensor) -> Tensor:
    """Return α_k of Grad-CAM, the spatial mean of the gradient of each channel (Selvaraju et al. 2017, eq. 1).

    Args:
        gradients: (N, C, *spatial); without spatial dimensions they are the weights themselves.

    Returns:
        (N, C, 1, …), float32, or float64 if the gradients are.
    """
    gradients = full_precision(gradients)
    # Sum, then divide: the backward of a mean would divide a tensor of the activations' size.
    return over_places(gradients) / math.prod(gradients.shape[2:])


def over_places(tensor: Tensor) -> Tensor:
    """Return the sum over the spatial dimensions, (N, C, *spatial) -> (N, C, 1, …)."""
    spatial = tuple(range(2, tensor.dim()))
    return tensor.sum(dim=spatial, keepdim=True) if spatial else tensor


def summed_shares(
    name: str,
    share: Callable[[Tensor, Tensor], Tensor],
    activations: Tensor,
    gradients: Tensor,
    channel_sum: bool,
) -> Tensor:
    """Check shapes, compute each channel's share of a cam, (N, C, *spatial), in full precision, and sum over the channels."""
    if activations.shape != gradients.shape or activations.dim() < 2:
        raise ValueError(
            f"{name}: expected activations and gradients (N, C, *spatial) of one shape, got {tuple(activations.shape)} "
            f"and {tuple(gradients.shape)}"
        )
    with no_autocast(activations):
        # A product and a sum rather than a matrix product: no TF32, and rounded as Captum rounds.
        shares = share(full_precision(activations), full_precision(gradients))
        return shares.sum(dim=1, keepdim=True) if channel_sum else shares


class _WeightedChannels(torch.autograd.Function):
    """Σ_k w_k A_k: (N, C, 1, …), (N, C, *spatial) -> (N, 1, *spatial), each direction in one pass over A.

    A product and a sum would write two more tensors of the size of A.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(weights: Tensor, activations: Tensor) -> Tensor:
        return _over_channels(weights, activations)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx: Any, of_weights: Tensor, of_activations: Tensor) -> Tensor:
        weights, activations = ctx.saved_tensors
        return _over_channels(of_weights, activations) + _over_channels(weights, of_activations)

    @staticmethod
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, Tensor | None]:
        weights, activations = ctx.saved_tensors
        of_weights = of_activations = None
        if ctx.needs_input_grad[0]:
            of_weights = torch.bmm(activations.flatten(2), slopes.flatten(2).transpose(1, 2))
            of_weights = of_weights.reshape(weights.shape)
        if ctx.needs_input_grad[1]:
            of_activations = weights * slopes
        return of_weights, of_activations


def _over_channels(weights: Tensor, activations: Tensor) -> Tensor:
    sums = torch.bmm(weights.flatten(1).unsqueeze(1), activations.flatten(2))
    return sums.reshape(activations.shape[0], 1, *activations.shape[2:])


def weighted_channels(weights: Tensor, activations: Tensor) -> Tensor:
    """Return Σ_k w_k A_k, (N, C, 1, …) and (N, C, *spatial) -> (N, 1, *spatial), in full precision."""
    activations = full_precision(activations)
    # A matrix product only where it is differentiated eagerly and as exact as a sum of products.
    if (
        not torch.compiler.is_compiling()
        and weights.requires_grad
        and activations.dim() > 2
        and exact_matmul_dtype(activations) == activations.dtype
    ):
        summed: Tensor = _WeightedChannels.apply(weights, activations)
        return summed
    return (weights * activations).sum(dim=1, keepdim=True)


@CAM_METHODS.register("grad_cam")
def grad_cam(activations: Tensor, gradients: Tensor, *, channel_sum: bool = True) -> Tensor:
    """Return the signed Grad-CAM, Σ_k α_k A_k with α_k the spatial mean of ∂s/∂A_k (Selvaraju et al. 2017, eq. 1 and 2).

    The outer ReLU of the paper is left to :func:`~batchcam_captum.functional.rectify`, as in the other weightings.

    Args:
        activations: A, (N, C, *spatial), any number of spatial dimensions, also none.
        gradients: ∂s/∂A, of the same shape. For a cam to train with, its graph has to reach the head (``create_graph=True``).
        channel_sum: sum over the channels; False returns each channel's share, (N, C, *spatial).

    Returns:
        (N, 1, *spatial), float32, or float64 if the inputs are.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> import torch
        >>> activations = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])
        >>> gradients = torch.tensor([[[[1.0, 1.0]], [[0.0, -1.0]]]])
        >>> grad_cam(activations, gradients)
        tensor([[[[-0.5000,  0.0000]]]])
    """
    if channel_sum and gradients.requires_grad and activations.shape == gradients.shape:
        with no_autocast(activations):
            return weighted_channels(channel_weights(gradients), activations)
    return summed_shares("grad_cam", lambda a, g: channel_weights(g) * a, activations, gradients, channel_sum)


@CAM_METHODS.register("grad_cam_plus_plus")
def grad_cam_plus_plus(
    activations: Tensor, gradients: Tensor, *, channel_sum: bool = True, eps: float | None = None
) -> Tensor:
    """Return the signed Grad-CAM++ (Chattopadhay et al. 2018), which weighs each place of a channel before the sum.

    Σ_k w_k A_k with w_k = Σ_i α_ki relu(g_ki) and α_ki = g_ki² / (2 g_ki² + g_ki³ Σ_j A_kj), g = ∂s/∂A (eq. 19; the paper's
    score is exp(s), whose factor is left out because it scales the whole map).

    The formula is not homogeneous in the gradients: α depends on g·ΣA and tends to 1/2 where that is small. So, unlike with the
    other weightings, the map changes when the scores are multiplied by a number.

    Args:
        activations: A, (N, C, *spatial), any number of spatial dimensions, also none.
        gradients: ∂s/∂A, of the same shape.
        channel_sum: sum over the channels; False returns each channel's share, (N, C, *spatial).
        eps: added to the denominator; 1e-6 gives the values of pytorch-grad-cam. By default nothing is added, and α is zero
            where the denominator vanishes relative to its terms.

    Returns:
        (N, 1, *spatial), float32, or float64 if the inputs are.

    Raises:
        ValueError: the shapes differ, or a negative ``eps``.
    """
    _check_eps(eps)

    def share(a: Tensor, g: Tensor) -> Tensor:
        total, positive = over_places(a), g.relu()
        # The weights are zero where g is not positive, so relu(g) may stand for g throughout.
        if eps is None:  # divided by g², which would vanish before g does
            product = total * positive
            weights = _ratio(positive, 2 + product, 2 + product.abs())
        else:
            square = positive.square()
            weights = positive * _ratio(square, 2 * square + total * square * positive + eps)
        return over_places(weights) * a

    return summed_shares("grad_cam_plus_plus", share, activations, gradients, channel_sum)


@CAM_METHODS.register("xgrad_cam")
def xgrad_cam(
    activations: Tensor, gradients: Tensor, *, channel_sum: bool = True, eps: float | None = None
) -> Tensor:
    """Return the signed XGrad-CAM, Σ_k w_k A_k with w_k = Σ_i (A_ki / Σ_j A_kj) ∂s/∂A_ki (Fu et al. 2020).

    The gradient counts where the channel is active.

    Args:
        activations: A, (N, C, *spatial), any number of spatial dimensions, also none.
        gradients: ∂s/∂A, of the same shape.
        channel_sum: sum over the channels; False returns each channel's share, (N, C, *spatial).
        eps: added to the sum of the activations; 1e-7 gives the values of pytorch-grad-cam. By default nothing is added, and a
            channel whose activations sum to zero relative to their magnitudes has no weight.

    Returns:
        (N, 1, *spatial), float32, or float64 if the inputs are.

    Raises:
        ValueError: the shapes differ, or a negative ``eps``.
    """
    _check_eps(eps)

    def share(a: Tensor, g: Tensor) -> Tensor:
        weighted, total = over_places(g * a), over_places(a)
        if eps is None:
            return _ratio(weighted, total, over_places(a.detach().abs())) * a
        return _ratio(weighted, total + eps) * a

    return summed_shares("xgrad_cam", share, activations, gradients, channel_sum)


@CAM_METHODS.register("hires_cam")
def hires_cam(activations: Tensor, gradients: Tensor, *, channel_sum: bool = True) -> Tensor:
    """Return the signed HiResCAM, Σ_k ∂s/∂A_k ⊙ A_k, element by element (Draelos and Carin 2020).

    If one linear layer follows, the map sums to the score minus its bias: it shows what the model uses. For activations that go
    into a LayerNorm over the channels and nowhere else it is zero except for rounding, because that layer ignores the scale of
    its input: choose a layer before or after.

    Args:
        activations: A, (N, C, *spatial), any number of spatial dimensions, also none.
        gradients: ∂s/∂A, of the same shape.
        channel_sum: sum over the channels; False returns each channel's share, (N, C, *spatial).

    Returns:
        (N, 1, *spatial), float32, or float64 if the inputs are.

    Raises:
        ValueError: the shapes differ.
    """
    return summed_shares("hires_cam", lambda a, g: g * a, activations, gradients, channel_sum)


@CAM_METHODS.register("layer_cam")
def layer_cam(activations: Tensor, gradients: Tensor, *, channel_sum: bool = True) -> Tensor:
    """Return the signed LayerCAM, Σ_k relu(∂s/∂A_k) ⊙ A_k, element by element (Jiang et al. 2021).

    It also suits early layers: each place has its own weight, and none where its gradient is negative.

    Args:
        activations: A, (N, C, *spatial), any number of spatial dimensions, also none.
        gradients: ∂s/∂A, of the same shape.
        channel_sum: sum over the channels; False returns each channel's share, (N, C, *spatial).

    Returns:
        (N, 1, *spatial), float32, or float64 if the inputs are.

    Raises:
        ValueError: the shapes differ.
    """
    return summed_shares("layer_cam", lambda a, g: g.relu() * a, activations, gradients, channel_sum)


def _ratio(numerator: Tensor, denominator: Tensor, magnitude: Tensor | None = None) -> Tensor:
    """Return the quotient; zero, with a zero gradient, where the denominator is zero.

    Given the magnitude of its terms, the denominator is zero if it is no larger than their rounding error. That is relative,
    never absolute, because the raw maps of some networks peak at 1e-11.
    """
    limits = torch.finfo(denominator.dtype)
    tolerance = (
        limits.tiny if magnitude is None else (_ROUNDING * limits.eps * magnitude.detach()).clamp(limits.tiny)
    )
    vanishes = denominator.detach().abs() <= tolerance
    return numerator.masked_fill(vanishes, 0) / denominator.masked_fill(vanishes, 1)


def _check_eps(eps: float | None) -> None:
    if eps is not None and not eps >= 0:
        raise ValueError(f"eps: expected None or a number of at least 0, got {eps!r}")


CONSTANT_GRADIENT_WEIGHTS[grad_cam] = full_precision
CONSTANT_GRADIENT_WEIGHTS[hires_cam] = full_precision
CONSTANT_GRADIENT_WEIGHTS[layer_cam] = lambda gradients: full_precision(gradients).relu()
