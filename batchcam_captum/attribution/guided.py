"""Captum's GuidedGradCam with the map of :class:`BatchGradCam`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..functional import CamMethod
from . import _captum
from .batch_grad_cam import BatchGradCam
from .forward import ModelFacts, left_as_it_was
from .output import Picker, pick_output
from .reshape import Reshape
from .state import recordable
from .targets import Target, select_target


class GuidedBatchGradCam(_captum.GuidedGradCam):  # type: ignore[misc]
    """Guided Grad-CAM: the map, resized to the input, times guided backpropagation; swaps in for Captum's GuidedGradCam.

    The same constructor, the same :meth:`attribute`, the same values (Selvaraju et al. 2017, section 3.2). Beyond it: layers by
    name, the weightings and targets of :class:`BatchGradCam`, and calls that leave inputs, BatchNorm's statistics and torch's
    random state as they were; in train mode both halves see the same dropout mask.

    As in Captum, hooks change the backward of every ``torch.nn.ReLU`` module during a call, and a warning says so. Functional
    ReLUs have no such hooks.

    Args:
        model: the model.
        layer: the layer whose activations are explained, or its name. It has a single tensor.
        device_ids: only for a model that applies a DataParallel model without being one, as in Captum.
        method: how activations and gradients become a map, as in :class:`BatchGradCam`.
        reshape: from what the layer returns to (N, C, *spatial), as in :class:`BatchGradCam`.
        output: which part of the model's output holds the scores, as in :class:`BatchGradCam`.

    Raises:
        TypeError: ``model`` is no module, or what :class:`BatchGradCam` raises.
        ValueError: a list of layers, or what :class:`BatchGradCam` raises.

    Example:
        >>> import torch, warnings
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 14 * 14, 10)
        ... )
        >>> with warnings.catch_warnings(action="ignore"):
        ...     GuidedBatchGradCam(model, "1").attribute(torch.rand(4, 3, 16, 16), target=3).shape
        torch.Size([4, 3, 16, 16])
    """

    grad_cam: BatchGradCam

    def __init__(
        self,
        model: nn.Module,
        layer: nn.Module | str,
        device_ids: list[int] | None = None,
        *,
        method: str | CamMethod = "grad_cam",
        reshape: Reshape = None,
        output: Picker = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
        if isinstance(layer, list | tuple):
            raise ValueError(f"layer: expected one layer, got a {type(layer).__name__} of {len(layer)}")
        grad_cam = BatchGradCam(model, layer, device_ids, method=method, reshape=reshape, output=output)
        super().__init__(model, grad_cam.layer, device_ids)
        self.grad_cam = grad_cam
        self.guided_backprop.gradient_func = self._input_gradients

    @_captum.log_usage
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Target = None,
        additional_forward_args: object = None,
        interpolate_mode: str = "nearest",
        attribute_to_layer_input: bool = False,
    ) -> Any:
        """Attribute each sample's score to the values of the inputs.

        Args:
            inputs: (N, …), or a tuple of tensors with N first.
            target: which score is explained, as in :meth:`BatchGradCam.attribute`.
            additional_forward_args: one argument or a tuple of them, passed to the model after the inputs.
            interpolate_mode: how the map is resized, as in ``torch.nn.functional.interpolate``. The paper's is "bilinear".
            attribute_to_layer_input: explain what the layer receives instead of what it returns.

        Returns:
            Of the inputs' shapes, detached; a tuple if they are. Empty for an input with other dimensions than the map.

        Raises:
            ValueError: what :meth:`BatchGradCam.attribute` raises.
            TypeError: what :meth:`BatchGradCam.attribute` raises.
            RuntimeError: what :meth:`BatchGradCam.attribute` raises.
            AssertionError: the layer has several tensors.

        Warns:
            UserWarning: the ReLU modules have hooks now; the map does not fit an input; and those of
                :meth:`BatchGradCam.attribute`.
        """
        with torch.inference_mode(False):
            tensors = tuple(map(_differentiable, _captum.format_tensor_into_tuples(inputs)))
            try:
                with left_as_it_was(ModelFacts.of(self.forward_func), tensors, [self.grad_cam.layer]):
                    return super().attribute.__wrapped__(
                        self,
                        tensors if isinstance(inputs, tuple) else tensors[0],
                        target,
                        additional_forward_args,
                        interpolate_mode,
                        attribute_to_layer_input,
                    )
            finally:
                # Captum removes its hooks, but keeps their handles.
                self.guided_backprop.backward_hooks.clear()

    def _input_gradients(
        self,
        forward_func: Callable[..., Any],
        inputs: tuple[Tensor, ...],
        target: Target = None,
        additional_forward_args: object = None,
    ) -> tuple[Tensor, ...]:
        """Return guided backpropagation's gradients, of the same part of the output and the same target as the map."""
        with torch.enable_grad():
            output = _captum.run_forward(forward_func, inputs, None, additional_forward_args)
            selected = select_target(pick_output(output, self.grad_cam.output), target)
            return torch.autograd.grad(selected.sum(), inputs)


def _differentiable(value: Any) -> Any:
    """Return the same numbers in a tensor that requires a gradient; the user's does not."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return recordable(value).detach().requires_grad_()
    return value
