"""Further weightings: Grad-CAM++, XGrad-CAM, HiResCAM, LayerCAM. A new one goes here: a function and its registration."""

from __future__ import annotations

import torch
from torch import Tensor

from .cam import CAM_METHODS, CONSTANT_GRADIENT_WEIGHTS, over_places, summed_shares
from .precision import full_precision

# A sum smaller than this share of the sum of its terms' magnitudes, in units of the type's precision, is their rounding error.
_ROUNDING = 16


@CAM_METHODS.register("grad_cam_plus_plus")
def grad_cam_plus_plus(
    activations: Tensor, gradients: Tensor, *, channel_sum: bool = True, eps: float | None = None
) -> Tensor:
    """Grad-CAM++, signed (Chattopadhay et al. 2018): each place of a channel has a weight of its own before the sum.

    Σ_k w_k A_k with w_k = Σ_i α_ki relu(g_ki) and α_ki = g_ki² / (2 g_ki² + g_ki³ Σ_j A_kj), g = ∂s/∂A (eq. 19; the paper's
    score is exp(s), whose factor is left out, as it scales the whole map).

    The formula is not homogeneous in the gradients: α depends on g·ΣA, and tends to 1/2 where that is small. So the map changes
    when the scores are multiplied by a number, unlike that of the other weightings.

    Args:
        activations: see :func:`~batchcam_captum.functional.grad_cam`.
        gradients: see :func:`~batchcam_captum.functional.grad_cam`.
        channel_sum: see :func:`~batchcam_captum.functional.grad_cam`.
        eps: added to the denominator; 1e-6 gives pytorch-grad-cam's values. By default nothing is added, and α is zero where the
            denominator vanishes, compared with its terms.

    Returns:
        (N, 1, *spatial), float32 whatever the inputs' half type (float64 stays).

    Raises:
        ValueError: the shapes differ, or a negative ``eps``.

    Example:
        >>> import torch
        >>> activations = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])
        >>> gradients = torch.tensor([[[[1.0, 1.0]], [[0.0, -1.0]]]])
        >>> grad_cam_plus_plus(activations, gradients)
        tensor([[[[0.4000, 0.8000]]]])
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
    """XGrad-CAM, signed: Σ_k w_k A_k with w_k = Σ_i (A_ki / Σ_j A_kj) ∂s/∂A_ki (Fu et al. 2020).

    The gradient counts where the channel is active.

    Args:
        activations: see :func:`~batchcam_captum.functional.grad_cam`.
        gradients: see :func:`~batchcam_captum.functional.grad_cam`.
        channel_sum: see :func:`~batchcam_captum.functional.grad_cam`.
        eps: added to the sum of the activations; 1e-7 gives pytorch-grad-cam's values. By default nothing is added, and a
            channel whose activations sum to zero, compared with their magnitudes, has no weight.

    Returns:
        (N, 1, *spatial), float32 whatever the inputs' half type (float64 stays).

    Raises:
        ValueError: the shapes differ, or a negative ``eps``.

    Example:
        >>> import torch
        >>> activations = torch.tensor([[[[1.0, 3.0]], [[2.0, -2.0]]]])
        >>> gradients = torch.tensor([[[[1.0, 0.0]], [[5.0, -1.0]]]])
        >>> xgrad_cam(activations, gradients)
        tensor([[[[0.2500, 0.7500]]]])
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
    """HiResCAM, signed: Σ_k ∂s/∂A_k ⊙ A_k, element by element (Draelos and Carin 2020).

    Where the layer is followed by one linear layer, the map sums to the score less its bias: it shows what the model uses. Of
    what goes into a LayerNorm over the channels and nowhere else it is zero but for rounding, as that layer ignores the scale of
    its input: choose a layer before or after.

    Args:
        activations: see :func:`~batchcam_captum.functional.grad_cam`.
        gradients: see :func:`~batchcam_captum.functional.grad_cam`.
        channel_sum: see :func:`~batchcam_captum.functional.grad_cam`.

    Returns:
        (N, 1, *spatial), float32 whatever the inputs' half type (float64 stays).

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> import torch
        >>> activations = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])
        >>> gradients = torch.tensor([[[[1.0, 1.0]], [[0.0, -1.0]]]])
        >>> hires_cam(activations, gradients)
        tensor([[[[ 1., -2.]]]])
    """
    return summed_shares("hires_cam", lambda a, g: g * a, activations, gradients, channel_sum)


@CAM_METHODS.register("layer_cam")
def layer_cam(activations: Tensor, gradients: Tensor, *, channel_sum: bool = True) -> Tensor:
    """LayerCAM, signed: Σ_k relu(∂s/∂A_k) ⊙ A_k, element by element (Jiang et al. 2021).

    Made for early layers, too: a place has a weight of its own, and none where its gradient is negative.

    Args:
        activations: see :func:`~batchcam_captum.functional.grad_cam`.
        gradients: see :func:`~batchcam_captum.functional.grad_cam`.
        channel_sum: see :func:`~batchcam_captum.functional.grad_cam`.

    Returns:
        (N, 1, *spatial), float32 whatever the inputs' half type (float64 stays).

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> import torch
        >>> activations = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])
        >>> gradients = torch.tensor([[[[1.0, 1.0]], [[0.0, -1.0]]]])
        >>> layer_cam(activations, gradients)
        tensor([[[[1., 2.]]]])
    """
    return summed_shares("layer_cam", lambda a, g: g.relu() * a, activations, gradients, channel_sum)


def _ratio(numerator: Tensor, denominator: Tensor, magnitude: Tensor | None = None) -> Tensor:
    """The quotient; zero, with a zero gradient, where the denominator is zero.

    With the magnitude of its terms: where it is no more than their rounding error. Relative, never absolute, as the raw maps of
    some networks peak at 1e-11.
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


CONSTANT_GRADIENT_WEIGHTS[hires_cam] = full_precision
CONSTANT_GRADIENT_WEIGHTS[layer_cam] = lambda gradients: full_precision(gradients).relu()
