"""CAMs and losses are computed in float32 with autocast off, unless the input is float64."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def no_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Switch autocast off for a tensor's kind of device; free when it is off already.

    Args:
        tensor: any tensor on that device.

    Returns:
        A context, to be entered by ``with``.
    """
    device_type = tensor.device.type
    # torch 2.11 does not compile the first question; the second one raises on a device that has no autocast.
    available = torch.compiler.is_compiling() or torch.amp.is_autocast_available(device_type)
    if available and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def full_precision(tensor: Tensor) -> Tensor:
    """Bring a tensor to float32, unless it is float64.

    Args:
        tensor: of any real number type.

    Returns:
        The tensor in float32; the very input where it is float32 or float64.
    """
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def exact_matmul_dtype(tensor: Tensor) -> torch.dtype:
    """The type in which a matrix product is as exact as the tensor's own: wider where float32 products may be rounded to TF32.

    Args:
        tensor: a factor.

    Returns:
        ``torch.float64`` or the tensor's own type.
    """
    if tensor.dtype == torch.float32 and (
        tensor.is_cuda or torch.get_float32_matmul_precision() != "highest"
    ):
        return torch.float64
    return tensor.dtype
