"""Captum's LayerGradCam, batched, differentiable on request, and without side effects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..functional import CamMethod, activation_gradients, apply_method, get_method, rectify
from . import _captum
from .chunks import check_size, joined, row_chunks, rows_of
from .classes import Classes, class_cams, class_rows, select_classes
from .forward import Attempt, ModelFacts, attempts
from .layers import find_layers, module_names
from .observer import Tensors, input_shape
from .output import Picker, check_picker, pick_output
from .reshape import Reshape, check_reshape, find_reshape
from .second_order import check_second_order
from .state import rng_kept
from .targets import Target, select_target, target_rows

#: (N, 1, *spatial); a tuple if a layer has several tensors; a list of either if there are several layers.
Attribution = Any
Rearrange = Callable[[Tensor], Tensor]


class Piece(NamedTuple):
    """Some rows of a batch."""

    rows: slice
    samples: int  #: of the whole batch
    inputs: Tensors
    additional_forward_args: tuple[Any, ...]


class BatchGradCam(_captum.LayerGradCam):  # type: ignore[misc]
    """Grad-CAM of a whole batch from one forward and one ``torch.autograd.grad``; swaps in for ``captum.attr.LayerGradCam``.

    The same constructor, the same :meth:`attribute`, the same values. What differs: the maps are detached unless
    ``differentiable=True``, and then their full second-order gradient reaches the weights after the layer (with Captum's
    default arguments the maps require a gradient, but the channel weights are constants). A call leaves everything as it was,
    also when it raises: ``.grad``, ``requires_grad``, training modes, BatchNorm's statistics, hooks and torch's random state.

    Args:
        forward_func: the model, or any callable that runs it.
        layer: the layer whose activations are explained, usually the last convolutional one; its name in ``forward_func``, such
            as ``"layer4.1"``; or a list of either, whose maps then come from one forward and one gradient.
        device_ids: only for a ``forward_func`` that applies a DataParallel model without being one, as in Captum.
        method: how activations and gradients become a map: a name in :data:`batchcam_captum.functional.CAM_METHODS`
            (``"grad_cam"``, ``"grad_cam_plus_plus"``, ``"xgrad_cam"``, ``"hires_cam"``, ``"layer_cam"``), or a function of the
            two.
        reshape: for layers that do not return (N, C, *spatial): ``"auto"`` finds the grid of a Vision Transformer's tokens
            (N, L, C) and drops its prefix tokens, or moves the channels of (N, *spatial, C) to the front; ``"tokens"`` and
            ``"channels_last"`` say which of the two it is; or a function of the tensor. By default nothing is reshaped, as in
            Captum.
        output: which part of the model's output holds the scores: a key or field (``"logits"``, ``"out"``), a position, or a
            function. By default the model has to return a tensor.

    Raises:
        TypeError: ``layer`` is neither a module nor a name, a name is given with a ``forward_func`` that is no module, or
            another argument has a wrong type.
        ValueError: the model has no layer of this name, a layer is listed twice, or the method is unknown.

    Example:
        >>> import torch
        >>> from batchcam_captum import BatchGradCam
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 14 * 14, 10)
        ... )
        >>> grad_cam = BatchGradCam(model, model[1])
        >>> grad_cam.attribute(torch.rand(4, 3, 16, 16), target=[3, 1, 0, 9]).shape
        torch.Size([4, 1, 14, 14])
        >>> grad_cam.attribute_classes(torch.rand(4, 3, 16, 16)).shape
        torch.Size([4, 10, 14, 14])
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module | str | Sequence[nn.Module | str],
        device_ids: list[int] | None = None,
        *,
        method: str | CamMethod = "grad_cam",
        reshape: Reshape = None,
        output: Picker = None,
    ) -> None:
        super().__init__(forward_func, find_layers(forward_func, layer), device_ids)
        get_method(method)
        check_reshape(reshape)
        check_picker(output)
        self.method = method
        self.reshape = reshape
        self.output = output
        # True once a trunk without a graph has failed: later calls begin with a recorded forward.
        self._from_inputs = False
        # True once a differentiable map has been found to have a second derivative.
        self._second_order_works = False

    @property
    def layers(self) -> list[nn.Module]:
        """Return the explained layers, one or several."""
        return self.layer if isinstance(self.layer, list) else [self.layer]

    @property
    def layer_names(self) -> list[str]:
        """Return the layers' names in the model, each once; the names of their classes if the model does not hold them."""
        known = module_names(self.forward_func)
        names: list[str] = []
        for layer in self.layers:
            name = known.get(layer) or type(layer).__name__
            names.append(name if name not in names else f"{name}_{len(names)}")
        return names

    @_captum.log_usage
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
        internal_batch_size: int | None = None,
    ) -> Attribution:
        """Attribute each sample's score to places in the layer.

        What comes before the layer runs without a graph, unless the maps are differentiable. If that turns out to miss a path
        from the layer to the scores, the forward runs again with a graph, and later calls record at once.

        Args:
            inputs: (N, …), or a tuple of tensors with N first, passed to ``forward_func`` in this order.
            target: which score is explained: None, an integer, a tuple, N of either in a list, a tensor, or a function of the
                output; see :func:`~batchcam_captum.attribution.targets.select_target`.
            additional_forward_args: one argument or a tuple of them, passed to ``forward_func`` after the inputs.
            attribute_to_layer_input: explain what the layer receives instead of what it returns.
            relu_attributions: keep only positive values, the evidence for the target.
            attr_dim_summation: sum over the channels; otherwise the result has as many channels as the layer.
            grad_kwargs: further arguments of ``torch.autograd.grad``; ``{"create_graph": True}`` is ``differentiable=True``.
            differentiable: return maps with their graph, for a loss on them. Otherwise they are detached.
            internal_batch_size: run the model on at most so many samples at a time. Inputs, targets and those further arguments
                that have N rows are cut; a function as target gets the output of one piece.

        Returns:
            (N, 1, *spatial), signed, float32 (float64 stays); a tuple if the layer has several tensors; a list with one entry
            per layer if the constructor was given a list.

        Raises:
            ValueError: a target or a reshape that does not fit, or contradicting arguments.
            TypeError: an output that is no tensor, or a target of a wrong type.
            RuntimeError: the forward does not reach the layer, or the scores do not depend on it; or the maps are to be
                differentiable and an operator after the layer has no second derivative.

        Warns:
            UserWarning: the layer runs more than once in a forward, and its last run is explained; or a BatchNorm with batch
                statistics follows the layer and mixes the samples of the batch.
        """
        maps, _ = self._attribute(
            inputs,
            target,
            additional_forward_args,
            attribute_to_layer_input,
            relu_attributions,
            attr_dim_summation,
            grad_kwargs,
            differentiable,
            internal_batch_size,
        )
        return maps

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
        internal_batch_size: int | None = None,
    ) -> tuple[Attribution, Tensor]:
        """Return what :meth:`attribute` returns, and the scores of the same forward, so that a prediction needs no second one.

        The arguments and the errors are those of :meth:`attribute`.

        Returns:
            The attributions, and the scores (N, K): what ``forward_func`` returned, or the part of it that ``output`` picks;
            detached unless ``differentiable=True``.
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
            internal_batch_size,
        )

    def attribute_classes(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        classes: Classes = None,
        additional_forward_args: object = None,
        *,
        relu_attributions: bool = False,
        internal_batch_size: int | None = None,
        classes_per_chunk: int | None = None,
    ) -> Attribution:
        """Attribute the scores of many classes, or of all, from one forward: one map per sample and class.

        The gradients of several classes are taken together (vectorized over the classes). If the head begins with global
        average pooling they are taken at the pooled tensor, which costs little more than the forward, even for 1,000 classes.

        Args:
            inputs: (N, …), or a tuple of tensors with N first, passed to ``forward_func`` in this order.
            classes: which classes: None, all K; a sequence or a 1-D tensor of M indices, the same for every sample; an (N, M)
                tensor, one row per sample; or a function of the scores that returns one of these, such as
                ``lambda scores: scores.topk(5).indices``. Negative indices count from the end.
            additional_forward_args: one argument or a tuple of them, passed to ``forward_func`` after the inputs.
            relu_attributions: keep only positive values, the evidence for each class.
            internal_batch_size: run the model on at most so many samples at a time.
            classes_per_chunk: how many classes are differentiated together. By default as many as take a moderate amount of
                memory.

        Returns:
            (N, M, *spatial), signed, float32 (float64 stays), detached: ``[:, m]`` is what :meth:`attribute` gives for class m.
            A tuple if the layer has several tensors; a list with one entry per layer if the constructor was given a list.

        Raises:
            ValueError: scores that are not (N, K), or classes that do not fit them.
            TypeError: classes of a wrong type, or an output that is no tensor.
            RuntimeError: the forward does not reach the layer, or the scores do not depend on it.

        Warns:
            UserWarning: an operator after the layer cannot be vectorized, and the classes are differentiated one by one; or for
                the reasons of :meth:`attribute`.
        """
        return self.attribute_classes_with_scores(
            inputs,
            classes,
            additional_forward_args,
            relu_attributions=relu_attributions,
            internal_batch_size=internal_batch_size,
            classes_per_chunk=classes_per_chunk,
        )[0]

    def attribute_classes_with_scores(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        classes: Classes = None,
        additional_forward_args: object = None,
        *,
        relu_attributions: bool = False,
        internal_batch_size: int | None = None,
        classes_per_chunk: int | None = None,
    ) -> tuple[Attribution, Tensor]:
        """Return what :meth:`attribute_classes` returns, and the scores of the same forward, (N, K), detached.

        The arguments and the errors are those of :meth:`attribute_classes`.
        """
        if classes_per_chunk is not None:
            check_size("classes_per_chunk", classes_per_chunk, "None chooses")
        parts = []
        with self._gradients_enabled(inputs, internal_batch_size):
            for piece, attempt in self._attempts(inputs, additional_forward_args, internal_batch_size):
                with attempt:
                    forward = attempt.run(piece.inputs, piece.additional_forward_args)
                    scores = pick_output(forward.output, self.output)
                    selected = select_classes(scores, class_rows(classes, piece.rows, piece.samples))
                    reshapes = self._reshapes(forward.gathered(forward.tensors), input_shape(piece.inputs))
                    maps = class_cams(forward, scores, selected, self.method, reshapes, classes_per_chunk)
                    if relu_attributions:
                        maps = [tuple(map(rectify, row)) for row in maps]
                    parts.append((maps, scores.detach()))
        maps, scores = joined(parts)
        return self._as_given(maps), scores

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
        internal_batch_size: int | None,
    ) -> tuple[Attribution, Tensor]:
        grad_kwargs = _checked_grad_kwargs(grad_kwargs, differentiable, internal_batch_size)
        create_graph = grad_kwargs["create_graph"]
        parts = []
        with self._gradients_enabled(inputs, internal_batch_size):
            for piece, attempt in self._attempts(
                inputs,
                additional_forward_args,
                internal_batch_size,
                at_input=at_input,
                second_order=create_graph,
            ):
                with attempt:
                    forward = attempt.run(piece.inputs, piece.additional_forward_args)
                    scores = pick_output(forward.output, self.output)
                    selected = select_target(scores, target_rows(target, piece.rows, piece.samples))
                    gradients = activation_gradients(selected, forward.tensors, **grad_kwargs)
                    if create_graph and (callable(target) or not self._second_order_works):
                        check_second_order(gradients, forward.tensors)
                        self._second_order_works = True
                    maps = self._maps(
                        forward.gathered(forward.tensors),
                        forward.gathered(gradients),
                        input_shape(piece.inputs),
                        channel_sum=attr_dim_summation,
                    )
                    if relu_attributions:
                        maps = [tuple(map(rectify, row)) for row in maps]
                    if not create_graph:
                        maps = [tuple(cam.detach() for cam in row) for row in maps]
                    parts.append((maps, scores if create_graph else scores.detach()))
        maps, scores = joined(parts)
        return self._as_given(maps), scores

    def _maps(
        self,
        activations: Sequence[Tensors],
        gradients: Sequence[Tensors],
        shape: tuple[int, ...] | None,
        *,
        channel_sum: bool,
    ) -> list[Tensors]:
        method, reshapes = get_method(self.method), self._reshapes(activations, shape)
        return [
            tuple(
                apply_method(method, rearrange(a), rearrange(g), channel_sum=channel_sum)
                for rearrange, a, g in zip(*row, strict=True)
            )
            for row in zip(reshapes, activations, gradients, strict=True)
        ]

    def _reshapes(
        self, activations: Sequence[Tensors], shape: tuple[int, ...] | None
    ) -> list[tuple[Rearrange, ...]]:
        return [
            tuple(self.reshape_of(activation, position, shape) for activation in row)
            for position, row in enumerate(activations)
        ]

    def reshape_of(
        self, activations: Tensor, position: int = 0, shape: tuple[int, ...] | None = None
    ) -> Rearrange:
        """Return the function that brings a layer's activations, or their gradients, to (N, C, *spatial).

        Args:
            activations: as the layer returned them.
            position: of the layer, if there are several.
            shape: of the model's input, if it is known; for ``reshape="auto"``.

        Raises:
            ValueError: a reshape that does not fit the activations.
        """
        return find_reshape(
            self.reshape,
            activations,
            forward_func=self.forward_func,
            layer=self.layers[position],
            input_size=shape[2:] if shape else None,
            samples=shape[0] if shape else None,
        )

    @contextmanager
    def _gradients_enabled(self, inputs: Any, internal_batch_size: int | None) -> Iterator[None]:
        with torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
            if internal_batch_size is not None:
                # The pieces draw random numbers one after the other, as a loop over them would.
                facts = ModelFacts.of(self.forward_func)
                may_train = bool(facts.training) or facts.hides(self.layers)
                given = inputs if isinstance(inputs, tuple) else (inputs,)
                tensors = [value for value in given if isinstance(value, Tensor)]
                stack.enter_context(rng_kept(tensors, always=may_train))
            yield

    def _attempts(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        additional_forward_args: object,
        internal_batch_size: int | None,
        *,
        at_input: bool = False,
        second_order: bool = False,
    ) -> Iterator[tuple[Piece, Attempt]]:
        """Yield the pieces of the batch, each with one or two attempts at a forward."""
        if not isinstance(inputs, Tensor | tuple):
            raise TypeError(f"inputs: expected a tensor or a tuple of tensors, got {type(inputs).__name__}")
        given: Tensors = _captum.format_tensor_into_tuples(inputs)
        arguments = _captum.format_additional_forward_args(additional_forward_args) or ()
        samples = len(given[0]) if given and given[0].dim() else 0
        for rows in row_chunks(samples, internal_batch_size):
            piece = Piece(
                rows,
                samples,
                tuple(rows_of(value, rows, samples) for value in given),
                tuple(rows_of(value, rows, samples) for value in arguments),
            )
            for attempt in attempts(
                self.forward_func,
                self.layers,
                from_inputs=self._from_inputs and not second_order,
                at_input=at_input,
                second_order=second_order,
                keep_rng=internal_batch_size is None,
                device_ids=self.device_ids,
            ):
                yield piece, attempt
                if not (second_order or at_input):
                    self._from_inputs = attempt.from_inputs

    def _as_given(self, maps: list[Tensors]) -> Attribution:
        """Return a list only if a list of layers was given, a tuple only if a layer has several tensors."""
        single = [row[0] if len(row) == 1 else row for row in maps]
        return single if isinstance(self.layer, list) else single[0]


def _checked_grad_kwargs(
    grad_kwargs: dict[str, Any] | None, differentiable: bool, internal_batch_size: int | None
) -> dict[str, Any]:
    grad_kwargs = dict(grad_kwargs or {})
    if differentiable and not grad_kwargs.get("create_graph", True):
        raise ValueError(
            'differentiable=True contradicts grad_kwargs={"create_graph": False}; leave one of them out'
        )
    if grad_kwargs.get("is_grads_batched"):
        raise ValueError(
            "grad_kwargs: expected one gradient per sample, got is_grads_batched=True, which has no cam; call attribute_classes "
            "for the maps of several classes"
        )
    if internal_batch_size is not None and "grad_outputs" in grad_kwargs:
        raise ValueError(
            "grad_kwargs: expected no grad_outputs with internal_batch_size, which cuts the batch; leave one of them out"
        )
    grad_kwargs["create_graph"] = bool(grad_kwargs.get("create_graph", differentiable))
    return grad_kwargs
