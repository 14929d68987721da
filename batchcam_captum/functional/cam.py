"""(activations, gradients) -> cam. Pure functions of two tensors; adding one is a function and its registration."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .precision import exact_matmul_dtype, full_precision, no_autocast
from .registry import Registry

#: (N, C, *spatial), (N, C, *spatial) -> (N, 1, *spatial), signed.
CamMethod = Callable[[Tensor, Tensor], Tensor]

#: CAM weightings by name. Your own: ``@CAM_METHODS.register("name")`` on a function (activations, gradients),
#: (N, C, *spatial) each -> (N, 1, *spatial). That is all. Only those who ask for the channels' shares need it to take a keyword
#: ``channel_sum=True``, too, whose False returns (N, C, *spatial).
CAM_METHODS: Registry[CamMethod] = Registry("method")

#: What a weighting's channel weights come down to where a channel's gradient is the same at every place, as it is when the head
#: begins with global average pooling: (N, C) gradients at one place -> (N, C) weights w with cam = Σ_k w_k A_k, whatever A.
#: Maps of many classes are then one matrix product. By function; a weighting that is not in here is computed in full.
CONSTANT_GRADIENT_WEIGHTS: dict[CamMethod, Callable[[Tensor], Tensor]] = {}


def get_method(method: str | CamMethod) -> CamMethod:
    """Return the weighting of this name, or the callable that was given.

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
    """Compute a cam by a weighting of any origin, and check what comes back.

    Args:
        method: a name in :data:`CAM_METHODS`, or a callable.
        activations: (N, C, *spatial).
        gradients: of the same shape.
        channel_sum: sum over the channels; without it the weighting has to take an argument of this name.

    Returns:
        (N, 1, *spatial); (N, C, *spatial) without the sum.

    Raises:
        TypeError: the shares of the channels are asked for, but the weighting has no argument ``channel_sum``; or its result is
            no tensor.
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
    """α_k of Grad-CAM, the spatial mean of each channel's gradient (Selvaraju et al. 2017, eq. 1).

    Args:
        gradients: (N, C, *spatial); with no spatial dimension they are the weights themselves.

    Returns:
        (N, C, 1, …), float32 (float64 stays).
    """
    gradients = full_precision(gradients)
    # Sum, then divide: the backward of a mean would divide a tensor of the activations' size.
    return over_places(gradients) / math.prod(gradients.shape[2:])


def over_places(tensor: Tensor) -> Tensor:
    """Sum over the spatial dimensions, (N, C, *spatial) -> (N, C, 1, …)."""
    spatial = tuple(range(2, tensor.dim()))
    return tensor.sum(dim=spatial, keepdim=True) if spatial else tensor


def summed_shares(
    name: str,
    share: Callable[[Tensor, Tensor], Tensor],
    activations: Tensor,
    gradients: Tensor,
    channel_sum: bool,
) -> Tensor:
    """What the weightings have in common: the shapes, the precision, the sum over the channels.

    Args:
        name: of the weighting, for errors.
        share: (activations, gradients), float32 or float64 -> each channel's share of the cam, (N, C, *spatial).
        activations: (N, C, *spatial).
        gradients: of the same shape.
        channel_sum: sum over the channels.
    """
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

    As a product and a sum it would write two tensors of A's size more.
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
    """Σ_k w_k A_k.

    Args:
        weights: (N, C, 1, …), float32 or float64.
        activations: (N, C, *spatial).

    Returns:
        (N, 1, *spatial), float32 (float64 stays).
    """
    activations = full_precision(activations)
    # A matrix product only where it is to be differentiated, step by step, and is as exact as a sum of products.
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
    """Grad-CAM, signed: Σ_k α_k A_k with α_k the spatial mean of ∂s/∂A_k (Selvaraju et al. 2017, eq. 1 and 2).

    The paper's outer ReLU is left to :func:`~batchcam_captum.functional.rectify`, here and in the other weightings.

    Args:
        activations: A, (N, C, *spatial), any number of spatial dimensions, also none.
        gradients: ∂s/∂A, the same shape. For a cam to train with, its graph has to reach the head
            (``create_graph=True``).
        channel_sum: sum over the channels; without it each channel's share is returned, (N, C, *spatial).

    Returns:
        (N, 1, *spatial), float32 whatever the inputs' half type (float64 stays).

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


CONSTANT_GRADIENT_WEIGHTS[grad_cam] = full_precision
