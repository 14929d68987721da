"""One comparison with Captum, relative to the map's maximum: an absolute one passes for any map of an untrained network."""

from __future__ import annotations

from typing import Any

import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn

from batchcam_captum import BatchGradCam

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11}


def fresh(value: Any) -> Any:
    """Copies of the tensors in an argument: Captum leaves the requires_grad of some changed."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    return tuple(fresh(entry) for entry in value) if isinstance(value, tuple) else value


def as_tuple(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def assert_close_to(actual: Any, expected: Any, dtype: torch.dtype) -> None:
    assert isinstance(actual, tuple) == isinstance(expected, tuple)
    actual, expected = as_tuple(actual), as_tuple(expected)
    assert len(actual) == len(expected)
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype == dtype
        peak = theirs.detach().abs().max().item()
        assert peak > 1e-4, f"a vanishing reference ({peak}) shows nothing"
        error = (ours.detach() - theirs.detach()).abs().max().item() / peak
        assert error <= TOLERANCE[dtype], f"{error} of the maximum {peak}"


def assert_like_captum(
    forward_func: Any,
    layer: nn.Module,
    inputs: Any,
    dtype: torch.dtype = torch.float64,
    **arguments: Any,
) -> None:
    """Both attribute with the same arguments; ours has to give Captum's map."""
    copies = {name: fresh(value) for name, value in arguments.items()}
    expected = LayerGradCam(forward_func, layer).attribute(fresh(inputs), **copies)
    actual = BatchGradCam(forward_func, layer).attribute(fresh(inputs), **arguments)
    assert_close_to(actual, expected, dtype)
