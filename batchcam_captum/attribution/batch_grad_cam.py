"""Captum's LayerGradCam, batched, differentiable on request, and without side effects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from ..functional import grad_cam, rectify
from . import _captum
from .engine import layer_gradients
from .targets import Target, select_target

#: (N, 1, *spatial); a tuple where a layer has several tensors; a list of either where there are several layers.
Attribution = Any


class BatchGradCam(_captum.LayerGradCam):  # type: ignore[misc]
    """Grad-CAM of a whole batch from one forward and one ``torch.autograd.grad``; swaps in for ``captum.attr.LayerGradCam``.

    The same constructor, the same :meth:`attribute`, the same values. What differs: the maps are detached unless
    ``differentiable=True``, and then their full second-order gradient reaches the weights after the layer (with Captum's
    default arguments the maps require a gradient, but the channel weights are constants). A call leaves everything as it was:
    ``.grad``, ``requires_grad``, training modes, BatchNorm's statistics, hooks and torch's random state, also when it raises.

    Args:
        forward_func: the model, or any callable that runs it.
        layer: the layer whose activations are explained, usually the last convolutional one; its name in ``forward_func``, such
            as ``"layer4.1"``; or a list of either: then the maps of all of them come from one forward and one gradient.
        device_ids: only for a ``forward_func`` that applies a DataParallel model without being one, as in Captum.

    Raises:
        TypeError: ``layer`` is neither a module nor a name, or a name is given with a ``forward_func`` that is no module.
        ValueError: the model has no layer of this name, or a layer is listed twice.

    Example:
        >>> import torch
        >>> from batchcam_captum import BatchGradCam
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 14 * 14, 10)
        ... )
        >>> grad_cam = BatchGradCam(model, model[1])
        >>> grad_cam.attribute(torch.rand(4, 3, 16, 16), target=[3, 1, 0, 9]).shape
        torch.Size([4, 1, 14, 14])
    """

    def __init__(
        self,
        forward_func: Callable[..., Tensor],
        layer: nn.Module | str | Sequence[nn.Module | str],
        device_ids: list[int] | None = None,
    ) -> None:
        super().__init__(forward_func, _find_layers(forward_func, layer), device_ids)
        # Whether an earlier call had to record the trunk; the next one then does so at once. See layer_gradients.
        self._record_trunk = False

    @property
    def layers(self) -> list[nn.Module]:
        """The explained layers, one or several."""
        return self.layer if isinstance(self.layer, list) else [self.layer]

    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Target = None,
        additional_forward_args: object = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = False,
        attr_dim_summation: bool = True,
        grad_kwargs: dict[str, Any] | None = None,
        *,
        differentiable: bool = False,
    ) -> Attribution:
        """Attribute each sample's score to places in the layer.

        What comes before the layer runs without a graph, unless the maps are to be differentiable. A forward that asks for the
        grad mode sees that. Where it turns out to matter the forward is run again with a graph, and later calls record at once.

        Args:
            inputs: (N, …), or a tuple of tensors with N first, passed to ``forward_func`` in this order.
            target: which score is explained: None, an integer, a tuple, N of either in a list, or a tensor; see
                :func:`~batchcam_captum.attribution.targets.select_target`.
            additional_forward_args: one argument or a tuple of them, passed on after the inputs.
            attribute_to_layer_input: explain what the layer receives instead of what it returns.
            relu_attributions: keep only what speaks for the target.
            attr_dim_summation: sum over the channels; without it the result has as many channels as the layer.
            grad_kwargs: further arguments of ``torch.autograd.grad``; ``{"create_graph": True}`` is ``differentiable=True``.
            differentiable: return maps with their graph, for a loss on them. Otherwise they are detached.

        Returns:
            (N, 1, *spatial), signed, float32 (float64 stays); a tuple where the layer has several tensors; a list, one entry a
            layer, where the constructor was given a list.

        Raises:
            ValueError: a target that does not fit, or contradicting arguments.
            TypeError: an output that is no tensor, or a target of a wrong kind.
            RuntimeError: the forward does not reach the layer, or the scores do not depend on it.

        Warns:
            UserWarning: the layer runs more than once in a forward; its last run is explained. Or a BatchNorm with batch
                statistics follows the layer, and mixes the samples of the batch.
        """
        attributions, _ = self._attribute(
            inputs,
            target,
            additional_forward_args,
            attribute_to_layer_input,
            relu_attributions,
            attr_dim_summation,
            grad_kwargs,
            differentiable,
        )
        return attributions

    def attribute_with_scores(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Target = None,
        additional_forward_args: object = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = False,
        attr_dim_summation: bool = True,
        grad_kwargs: dict[str, Any] | None = None,
        *,
        differentiable: bool = False,
    ) -> tuple[Attribution, Tensor]:
        """Like :meth:`attribute`, and the scores of the same forward, so that the prediction needs no second one.

        Args:
            inputs: see :meth:`attribute`.
            target: see :meth:`attribute`.
            additional_forward_args: see :meth:`attribute`.
            attribute_to_layer_input: see :meth:`attribute`.
            relu_attributions: see :meth:`attribute`.
            attr_dim_summation: see :meth:`attribute`.
            grad_kwargs: see :meth:`attribute`.
            differentiable: see :meth:`attribute`; the scores keep their graph as well.

        Returns:
            The attributions, and what ``forward_func`` returned, (N, K).

        Raises:
            ValueError: see :meth:`attribute`.
            TypeError: see :meth:`attribute`.
            RuntimeError: see :meth:`attribute`.
        """
        return self._attribute(
            inputs,
            target,
            additional_forward_args,
            attribute_to_layer_input,
            relu_attributions,
            attr_dim_summation,
            grad_kwargs,
            differentiable,
        )

    def _attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Target,
        additional_forward_args: object,
        at_input: bool,
        relu_attributions: bool,
        attr_dim_summation: bool,
        grad_kwargs: dict[str, Any] | None,
        differentiable: bool,
    ) -> tuple[Attribution, Tensor]:
        if not isinstance(inputs, Tensor | tuple):
            raise TypeError(f"inputs: expected a tensor or a tuple of tensors, got {type(inputs).__name__}")
        grad_kwargs = dict(grad_kwargs or {})
        if differentiable and not grad_kwargs.get("create_graph", True):
            raise ValueError(
                'differentiable=True contradicts grad_kwargs={"create_graph": False}; leave one of them out'
            )
        if grad_kwargs.get("is_grads_batched"):
            raise ValueError(
                "grad_kwargs: expected one gradient a sample, got is_grads_batched=True, which has no cam; call once for each"
            )
        create_graph = grad_kwargs["create_graph"] = bool(grad_kwargs.get("create_graph", differentiable))
        with torch.inference_mode(False), torch.enable_grad():
            result, recorded = layer_gradients(
                self.forward_func,
                self.layers,
                _captum.format_tensor_into_tuples(inputs),
                _captum.format_additional_forward_args(additional_forward_args) or (),
                lambda output: select_target(output, target),
                at_input=at_input,
                device_ids=self.device_ids,
                record_trunk=create_graph or self._record_trunk,
                **grad_kwargs,
            )
            attributions = [
                self._cams(activations, gradients, relu_attributions, attr_dim_summation, create_graph)
                for activations, gradients in zip(result.activations, result.gradients, strict=True)
            ]
        if not (create_graph or at_input):
            self._record_trunk = recorded
        output = result.output if create_graph else result.output.detach()
        return (attributions if isinstance(self.layer, list) else attributions[0]), output

    def _cams(
        self,
        activations: tuple[Tensor, ...],
        gradients: tuple[Tensor, ...],
        relu_attributions: bool,
        attr_dim_summation: bool,
        keep_graph: bool,
    ) -> Attribution:
        """The cams of one layer, a tuple where it has several tensors."""
        cams = tuple(
            grad_cam(activation, gradient, channel_sum=attr_dim_summation)
            for activation, gradient in zip(activations, gradients, strict=True)
        )
        if relu_attributions:
            cams = tuple(rectify(cam) for cam in cams)
        if not keep_graph:
            cams = tuple(cam.detach() for cam in cams)
        return cams if len(cams) > 1 else cams[0]


def _find_layers(
    forward_func: Callable[..., Tensor], layer: nn.Module | str | Sequence[nn.Module | str]
) -> nn.Module | list[nn.Module]:
    if isinstance(layer, nn.Module | str) or not isinstance(layer, Sequence):
        return _find_layer(forward_func, layer)
    layers = [_find_layer(forward_func, entry) for entry in layer]
    if not layers:
        raise ValueError("layer: expected at least one layer, got an empty list")
    repeated = [position for position, entry in enumerate(layers) if entry in layers[:position]]
    if repeated:
        raise ValueError(
            f"layer: expected each layer once, got {type(layers[repeated[0]]).__name__} again at position {repeated[0]}; leave "
            f"it out and use its map twice"
        )
    return layers


def _find_layer(forward_func: Callable[..., Tensor], layer: nn.Module | str) -> nn.Module:
    if isinstance(layer, nn.Module):
        return layer
    if not isinstance(layer, str):
        raise TypeError(f"layer: expected a torch.nn.Module or its name, got {type(layer).__name__}")
    if not isinstance(forward_func, nn.Module):
        raise TypeError(
            f"layer: expected a module, got the name {layer!r} with a forward_func that is no module; pass the module itself"
        )
    try:
        return forward_func.get_submodule(layer)
    except AttributeError:
        known = [name for name, _ in forward_func.named_modules() if name]
        same_end = [name for name in known if name.split(".")[-1] == layer.split(".")[-1]]
        close = same_end or sorted(get_close_matches(layer, known, n=8)) or known
        raise ValueError(
            f"layer: expected the name of a layer of {type(forward_func).__name__}, got {layer!r}; it has "
            f"{', '.join(close[-8:])}"
        ) from None
