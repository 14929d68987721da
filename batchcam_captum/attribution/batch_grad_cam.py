"""Captum's LayerGradCam, batched, differentiable on request, and without side effects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..functional import CamMethod, activation_gradients, get_method, rectify
from . import _captum
from .chunks import check_size, joined, row_chunks, rows_of
from .engine import Forward, Recording, Tensors, run
from .every_class import CamMaker, Classes, class_cams, class_rows, select_classes
from .layers import find_layers, module_names
from .output import Picker, check_picker, pick_output
from .recipe import CamOf
from .recorder import shape_of_input
from .reshape import Reshape, check_reshape, find_reshape
from .second_order import check_second_order
from .state import rng_kept
from .survey import survey
from .targets import Target, select_target, target_rows

T = TypeVar("T")

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
        method: how activations and gradients become a map: a name in :data:`batchcam_captum.functional.CAM_METHODS`
            (``"grad_cam"``, ``"grad_cam_plus_plus"``, ``"xgrad_cam"``, ``"hires_cam"``, ``"layer_cam"``), or a function of the
            two.
        reshape: for layers that do not return (N, C, *spatial): ``"auto"`` finds the grid of a Vision Transformer's tokens
            (N, L, C), its prefix tokens left out, and moves the channels of (N, *spatial, C) to the front; ``"tokens"`` and
            ``"channels_last"`` say which of the two it is; or a function of the tensor that selects and rearranges. By default
            nothing is reshaped, as in Captum.
        output: which part of what the model returns holds the scores: a key or field (``"logits"``, ``"out"``), a position, or a
            function. By default it has to return a tensor.

    Raises:
        TypeError: ``layer`` is neither a module nor a name, or a name is given with a ``forward_func`` that is no module; or
            another argument is of a wrong kind.
        ValueError: the model has no layer of this name, a layer is listed twice, or there is no such method.

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
        # What an earlier call took; the next one begins with that. See engine.run.
        self._recording = Recording.LAYER
        # Whether a differentiable map has been found to be one, down to its second derivative.
        self._second_order_works = False

    @property
    def layers(self) -> list[nn.Module]:
        """The explained layers, one or several."""
        return self.layer if isinstance(self.layer, list) else [self.layer]

    @property
    def layer_names(self) -> list[str]:
        """The layers' names in the model, or those of their classes where they are not found in it; each name once."""
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

        What comes before the layer runs without a graph, unless the maps are to be differentiable. A forward that asks for the
        grad mode sees that. Where it turns out to matter the forward is run again with a graph, and later calls record at once.

        Args:
            inputs: (N, …), or a tuple of tensors with N first, passed to ``forward_func`` in this order.
            target: which score is explained: None, an integer, a tuple, N of either in a list, a tensor, or a function of the
                output; see :func:`~batchcam_captum.attribution.targets.select_target`.
            additional_forward_args: one argument or a tuple of them, passed on after the inputs.
            attribute_to_layer_input: explain what the layer receives instead of what it returns.
            relu_attributions: keep only what speaks for the target.
            attr_dim_summation: sum over the channels; without it the result has as many channels as the layer.
            grad_kwargs: further arguments of ``torch.autograd.grad``; ``{"create_graph": True}`` is ``differentiable=True``.
            differentiable: return maps with their graph, for a loss on them. Otherwise they are detached.
            internal_batch_size: run the model on at most so many samples at a time. Inputs, targets and those further arguments
                that have N rows are cut; a function as target sees the output of one piece.

        Returns:
            (N, 1, *spatial), signed, float32 (float64 stays); a tuple where the layer has several tensors; a list, one entry a
            layer, where the constructor was given a list.

        Raises:
            ValueError: a target or a reshape that does not fit, or contradicting arguments.
            TypeError: an output that is no tensor, or a target of a wrong kind.
            RuntimeError: the forward does not reach the layer, or the scores do not depend on it; or the maps are to be
                differentiable and an operator after the layer has no second derivative.

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
            internal_batch_size,
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
        internal_batch_size: int | None = None,
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
            internal_batch_size: see :meth:`attribute`.

        Returns:
            The attributions, and the scores, (N, K): what ``forward_func`` returned, or the part of it that ``output`` picks.

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
        """Attribute the scores of many classes, or of all, from one forward: a map for each sample and class.

        The gradients of several classes are taken together (vectorised over the classes). Where the head begins with global
        average pooling they are taken at the pooled tensor, which costs little more than the forward, for 1,000 classes, too.

        Args:
            inputs: see :meth:`attribute`.
            classes: which classes: None, all K; a sequence or a 1-D tensor of M indices, the same for every sample; an (N, M)
                tensor, a row of its own for each; or a function of the scores that returns one, such as
                ``lambda scores: scores.topk(5).indices``. Negative indices count from the end.
            additional_forward_args: see :meth:`attribute`.
            relu_attributions: see :meth:`attribute`.
            internal_batch_size: see :meth:`attribute`.
            classes_per_chunk: how many classes are differentiated together. By default so many that their gradients take a
                moderate amount of memory.

        Returns:
            (N, M, *spatial), signed, float32 (float64 stays), detached: ``[:, m]`` is what :meth:`attribute` gives for class m.
            A tuple where the layer has several tensors; a list, one entry a layer, where the constructor was given a list.

        Raises:
            ValueError: scores that are not (N, K), or classes that do not fit them.
            TypeError: classes of a wrong kind, or an output that is no tensor.
            RuntimeError: see :meth:`attribute`.

        Warns:
            UserWarning: an operator after the layer cannot be vectorised; the classes are then differentiated one by one. See
                also :meth:`attribute`.
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
        """Like :meth:`attribute_classes`, and the scores of the same forward.

        Args:
            inputs: see :meth:`attribute`.
            classes: see :meth:`attribute_classes`.
            additional_forward_args: see :meth:`attribute`.
            relu_attributions: see :meth:`attribute`.
            internal_batch_size: see :meth:`attribute`.
            classes_per_chunk: see :meth:`attribute_classes`.

        Returns:
            The attributions, and the scores, (N, K), detached.

        Raises:
            ValueError: see :meth:`attribute_classes`.
            TypeError: see :meth:`attribute_classes`.
            RuntimeError: see :meth:`attribute`.
        """

        def use(
            forward: Forward, cam_of: CamMaker, rows: slice, samples: int
        ) -> tuple[list[Tensors], Tensor]:
            scores = pick_output(forward.output, self.output)
            selected = select_classes(scores, class_rows(classes, rows, samples))
            cams = class_cams(forward, scores, selected, cam_of, classes_per_chunk)
            if relu_attributions:
                cams = [tuple(map(rectify, row)) for row in cams]
            return cams, scores.detach()

        if classes_per_chunk is not None:
            check_size("classes_per_chunk", classes_per_chunk, "None chooses")
        maps, scores = self._run(
            use, inputs, additional_forward_args, internal_batch_size, several_gradients=True
        )
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
        grad_kwargs = dict(grad_kwargs or {})
        if differentiable and not grad_kwargs.get("create_graph", True):
            raise ValueError(
                'differentiable=True contradicts grad_kwargs={"create_graph": False}; leave one of them out'
            )
        if grad_kwargs.get("is_grads_batched"):
            raise ValueError(
                "grad_kwargs: expected one gradient a sample, got is_grads_batched=True, which has no cam; call "
                "attribute_classes for the maps of several classes"
            )
        if internal_batch_size is not None and "grad_outputs" in grad_kwargs:
            raise ValueError(
                "grad_kwargs: expected no grad_outputs with internal_batch_size, which cuts the batch; leave one of them out"
            )
        create_graph = grad_kwargs["create_graph"] = bool(grad_kwargs.get("create_graph", differentiable))

        def use(
            forward: Forward, cam_of: CamMaker, rows: slice, samples: int
        ) -> tuple[list[Tensors], Tensor]:
            scores = pick_output(forward.output, self.output)
            selected = select_target(scores, target_rows(target, rows, samples))
            tensors = forward.tensors
            flat = activation_gradients(selected, tensors, **grad_kwargs)
            gradients = forward.gathered(flat)
            if create_graph and (callable(target) or not self._second_order_works):
                check_second_order(flat, tensors)
                self._second_order_works = True
            maps = [
                tuple(
                    cam_of(activation, position=position)(gradient, channel_sum=attr_dim_summation)
                    for activation, gradient in zip(*pair, strict=True)
                )
                for position, pair in enumerate(zip(forward.gathered(tensors), gradients, strict=True))
            ]
            if relu_attributions:
                maps = [tuple(map(rectify, row)) for row in maps]
            if not create_graph:
                maps = [tuple(cam.detach() for cam in row) for row in maps]
            return maps, scores if create_graph else scores.detach()

        maps, scores = self._run(
            use,
            inputs,
            additional_forward_args,
            internal_batch_size,
            at_input=at_input,
            create_graph=create_graph,
        )
        return self._as_given(maps), scores

    def _run(
        self,
        use: Callable[..., T],
        inputs: Tensor | tuple[Tensor, ...],
        additional_forward_args: object,
        internal_batch_size: int | None,
        *,
        at_input: bool = False,
        create_graph: bool = False,
        several_gradients: bool = False,
    ) -> T:
        """Run the model, in pieces where asked for, and put together what ``use`` makes of each."""
        if not isinstance(inputs, Tensor | tuple):
            raise TypeError(f"inputs: expected a tensor or a tuple of tensors, got {type(inputs).__name__}")
        given: tuple[Tensor, ...] = _captum.format_tensor_into_tuples(inputs)
        arguments = _captum.format_additional_forward_args(additional_forward_args) or ()
        samples = len(given[0]) if given and given[0].dim() else 0
        chunks = row_chunks(samples, internal_batch_size)
        start = max(self._recording, Recording.MODEL) if create_graph else self._recording

        def use_rows(rows: slice) -> T:
            piece = tuple(rows_of(value, rows, samples) for value in given)
            cam_of = partial(self.cam_of, input_shape=shape_of_input(piece))
            result, recording = run(
                partial(use, cam_of=cam_of, rows=rows, samples=samples),
                self.forward_func,
                self.layers,
                piece,
                tuple(rows_of(value, rows, samples) for value in arguments),
                at_input=at_input,
                device_ids=self.device_ids,
                start=start,
                second_order=create_graph,
                several_gradients=several_gradients,
                keep_rng=len(chunks) == 1,
            )
            if not (create_graph or at_input):
                self._recording = recording
            return result

        with torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
            # The pieces draw random numbers one after the other, as they would in training.
            if len(chunks) > 1:
                may_train = survey(self.forward_func).may_train(self.layers)
                stack.enter_context(rng_kept(given, always=may_train))
            return joined([use_rows(rows) for rows in chunks])  # type: ignore[no-any-return]

    def cam_of(
        self,
        activations: Tensor,
        *,
        position: int = 0,
        method: str | CamMethod | None = None,
        input_shape: tuple[int, ...] | None = None,
    ) -> CamOf:
        """What makes maps of activations that come from another forward, given their gradients.

        Args:
            activations: as the layer returned them.
            position: of the layer, where there are several.
            method: the weighting, if it is to be another than this object's.
            input_shape: of the model's first input that has places, where it is known; for ``reshape="auto"``.

        Returns:
            A function of the gradients, of the activations' shape, that returns the maps (N, 1, *spatial).
        """
        reshape = find_reshape(
            self.reshape,
            activations,
            forward_func=self.forward_func,
            layer=self.layers[position],
            input_size=input_shape[2:] if input_shape else None,
            samples=input_shape[0] if input_shape else None,
        )
        return CamOf(activations, get_method(method or self.method), reshape)

    def _as_given(self, maps: list[Tensors]) -> Attribution:
        """A list only where a list of layers was given, a tuple only where a layer has several tensors."""
        single = [row[0] if len(row) == 1 else row for row in maps]
        return single if isinstance(self.layer, list) else single[0]
