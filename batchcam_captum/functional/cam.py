"""(activations, gradients) -> cam. Pure functions of two tensors; adding one is a function and its registration."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from .precision import full_precision, no_autocast
from .registry import Registry

CamMethod = Callable[[Tensor, Tensor], Tensor]

#: CAM weightings by name. Your own: ``@CAM_METHODS.register("name")`` on a function
#: (N, C, *spatial), (N, C, *spatial) -> (N, 1, *spatial).
CAM_METHODS: Registry[CamMethod] = Registry("method")


def channel_weights(gradients: Tensor) -> Tensor:
    """α_k of Grad-CAM, the spatial mean of each channel's gradient (Selvaraju et al. 2017, eq. 1).

    Args:
        gradients: (N, C, *spatial); with no spatial dimension they are the weights themselves.

    Returns:
        (N, C, 1, …), float32 (float64 stays).
    """
    gradients = full_precision(gradients)
    spatial = tuple(range(2, gradients.dim()))
    if not spatial:
        return gradients
    # Sum, then divide: the backward of a mean would divide a tensor of the activations' size.
    return gradients.sum(dim=spatial, keepdim=True) / math.prod(gradients.shape[2:])


def grad_cam(activations: Tensor, gradients: Tensor, *, channel_sum: bool = True) -> Tensor:
    """Grad-CAM, signed: Σ_k α_k A_k with α_k the spatial mean of ∂s/∂A_k (Selvaraju et al. 2017, eq. 1 and 2).

    The paper's outer ReLU is left to :func:`~batchcam_captum.functional.rectify`.

    Args:
        activations: A, (N, C, *spatial), any number of spatial dimensions.
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
    if activations.shape != gradients.shape:
        raise ValueError(
            f"grad_cam: expected activations and gradients of one shape, got {tuple(activations.shape)} "
            f"and {tuple(gradients.shape)}"
        )
    with no_autocast(activations):
        # A product and a sum rather than a matrix product: no TF32, and rounded as Captum rounds.
        cams = channel_weights(gradients) * full_precision(activations)
        return cams.sum(dim=1, keepdim=True) if channel_sum else cams


CAM_METHODS.register("grad_cam")(grad_cam)
