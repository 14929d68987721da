"""Cam losses as a term of the training objective."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from ..attribution import (
    BatchGradCam,
    ForwardObserver,
    ModelFacts,
    Split,
    attempts,
    check_second_order,
    find_shortcut,
    input_shape,
    left_as_it_was,
    pick_output,
    recordable,
)
from ..functional import activation_gradients, get_method, select_scores
from ..functional.head import run_head, update_buffers
from ..losses import CamLoss
from .cams import LayerGradient, TermCams
from .gradient_norms import GradientNorms
from .objective import Batch, CamObjective
from .parallel import MidStepGradients, checkpointing_error, own_scores, unwrapped
from .recipes import DEFAULT_RECIPE, Recipe, recipe_losses
from .schedules import AutoWeight
from .terms import GivenWeight, Term


class StepOutput(NamedTuple):
    """What :meth:`CamRegularizer.run` returns."""

    scores: Tensor  #: (N, K), as the model returned them
    loss: Tensor  #: Σ λ_t · loss_t, a scalar to add to the task loss


class CapturedForward(NamedTuple):
    """What a forward leaves for the cams."""

    activations: list[Tensor]  #: of each layer, graph attached
    output: Any  #: what the model itself returned, inside of DistributedDataParallel
    input_shape: tuple[int, ...] | None
    hooked: bool  #: a user's hook on an activation may change its gradient


class CamRegularizer(CamObjective):
    """Cam losses computed from the training forward: no second forward, no second dropout mask.

    Inside ``with regularizer:`` it remembers the layer's activations of the one forward that the task loss needs anyway. Called
    with the scores of that forward it takes one ``torch.autograd.grad`` for the whole batch, makes the cams, and returns
    Σ λ_t · loss_t, to be added to the task loss before the one ``backward()``.

    Made with a trunk and a head instead of a :class:`~batchcam_captum.BatchGradCam`, it needs no hooks:
    ``scores, cam_loss = regularizer.run(images, labels)`` runs both, and ``torch.compile(fullgraph=True)`` takes a whole training
    step. Move the regularizer to the model's device then. What a compiled step finds wrong with values raises at :meth:`check`.

    If all that reads the layer is a pooling over the places, or a linear layer over the flattened places, the gradient of
    Grad-CAM is taken after that, where it is smaller, with the same result. With a weighting of your own
    (``BatchGradCam(method=function)``) it is always taken at the layer.

    Args:
        grad_cam: the model and its layer; with several layers each term is the mean over them. The model is not registered as a
            submodule: its parameters stay its own. Make it with the model itself, not with DistributedDataParallel's wrapper. Or
            a :class:`~batchcam_captum.attribution.Split` of the model in a trunk and a head, from
            :func:`~batchcam_captum.split_model`, for :meth:`run`.
        losses: one loss; or several by name, ``{"name": loss}`` or ``{"name": (loss, weight)}``; or a list of losses or pairs,
            which go by the names that they are registered under. Losses that take the same cam of the same score share one
            gradient.
        weight: λ, a function of :attr:`steps` such as :class:`LinearWarmup`, or ``"auto"`` for an :class:`AutoWeight`; for all
            terms that come without a weight of their own. A term with weight 0 is not computed.
        validate: check values (NaN, the range of labels) at once on every device, which makes the host wait for a GPU. Without it
            a wrong value on a GPU raises at :meth:`check`; on the CPU it always raises at once.

    Raises:
        TypeError: ``grad_cam``, a loss or a weight of another type, or ``"auto"`` with a trunk and a head.
        ValueError: no loss, a name that cannot be used or comes twice, a weight that is not finite, a loss with an unknown
            method, or a loss that remembers earlier cams with several layers.

    Example:
        >>> import torch
        >>> from batchcam_captum import BatchCamLoss, BatchGradCam, CamRegularizer
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 6 * 6, 10)
        ... )
        >>> images, labels = torch.rand(16, 1, 8, 8), torch.arange(16) % 10
        >>> regularizer = CamRegularizer(BatchGradCam(model, model[1]), BatchCamLoss(torch.rand(10, 1, 8, 8)), weight=1.0)
        >>> with regularizer:
        ...     scores = model(images)
        >>> loss = torch.nn.functional.cross_entropy(scores, labels) + regularizer(scores, labels)
        >>> loss.backward()
        >>> sorted(regularizer.values)
        ['batch_cam', 'dead_fraction']
    """

    def __init__(
        self,
        grad_cam: BatchGradCam | Split,
        losses: CamLoss | Mapping[str, Term] | Sequence[Term],
        weight: GivenWeight = 1.0,
        *,
        validate: bool = False,
    ) -> None:
        if not isinstance(grad_cam, BatchGradCam | Split):
            raise TypeError(
                f"grad_cam: expected a BatchGradCam, or a Split of the model in trunk and head, got {type(grad_cam).__name__}"
            )
        get_method(grad_cam.method)
        split = isinstance(grad_cam, Split)
        layer_names = grad_cam.layer_names if isinstance(grad_cam, BatchGradCam) else [""]
        super().__init__(losses, weight, validate=validate, layer_names=layer_names, on_device=split)
        if split and self.auto_weights:
            raise TypeError(
                f"weight: expected a number or a function of the steps for {next(iter(self.auto_weights))!r}, got 'auto', which "
                f"takes gradients of its own in the middle of a step and does not compile; use a BatchGradCam for it"
            )
        self.grad_cam = grad_cam
        self._observer: ForwardObserver | None = None
        self._norms_observed = False
        self._second_order_works = False
        self._mid_step: MidStepGradients | None = None
        if isinstance(grad_cam, BatchGradCam):
            self._mid_step = MidStepGradients(grad_cam.forward_func, grad_cam.layers)

    @classmethod
    def from_loader(
        cls,
        grad_cam: BatchGradCam | Split,
        loader: Iterable[Any],
        num_classes: int,
        *,
        recipe: str | Recipe = DEFAULT_RECIPE,
        validate: bool = False,
        **options: Any,
    ) -> Self:
        """Make a regularizer by a recipe, with prototypes of the training images.

        Args:
            grad_cam: the model and its layer.
            loader: of batches that begin with images (N, C, *spatial) and labels (N,), without random augmentation.
            num_classes: the number of classes, K.
            recipe: ``"foreground_shape"``, ``"foreground"`` or ``"shape"``, or a recipe of your own.
            validate: check values at once on every device.
            **options: of :func:`recipe_losses`: ``steps_per_epoch``, ``mean`` and ``std`` of standardized images,
                ``to_channel``, ``size``, …

        Returns:
            The regularizer, with the losses on the model's device, unless ``device`` names another.

        Raises:
            ValueError: an unknown recipe, or images or labels that do not fit.
            TypeError: a batch, a recipe or ``grad_cam`` of another type.

        Example:
            >>> import torch
            >>> from batchcam_captum import BatchGradCam, CamRegularizer
            >>> model = torch.nn.Sequential(
            ...     torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 144, 2)
            ... )
            >>> images = torch.zeros(20, 1, 12, 12)
            >>> images[:, :, 4:8, 4:8] = 0.9
            >>> loader = [(images, torch.arange(20) % 2)]
            >>> regularizer = CamRegularizer.from_loader(BatchGradCam(model, model[1]), loader, 2, progress=False)
            >>> regularizer.weights
            {'foreground': 0.1, 'shape': LinearWarmup(weight=1.0, steps=1, start=0.0)}
        """
        models = grad_cam if isinstance(grad_cam, Split) else [getattr(grad_cam, "forward_func", None)]
        parameters = (p for model in models if isinstance(model, nn.Module) for p in model.parameters())
        options.setdefault("device", next((parameter.device for parameter in parameters), None))
        return cls(grad_cam, recipe_losses(loader, num_classes, recipe=recipe, **options), validate=validate)

    def __enter__(self) -> Self:
        if isinstance(self.grad_cam, Split):
            raise RuntimeError(
                "CamRegularizer: expected a BatchGradCam for `with regularizer:`, got a trunk and a head, which have no hooks; "
                "call regularizer.run(images, labels)"
            )
        if self._observer is not None and self._observer.is_open:
            raise RuntimeError(
                "CamRegularizer: expected one block for each forward, got a nested `with` of the same regularizer"
            )
        self._forget()
        model = unwrapped(self.grad_cam.forward_func)
        # Once: the hooks on BatchNorms slow them a little.
        norms = () if self._norms_observed else ModelFacts.of(model).norms
        self._norms_observed = self._norms_observed or bool(norms)
        self._observer = ForwardObserver(self.grad_cam.layers, model, second_order=True, norms=norms)
        self._observer.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._forget()
        elif self._observer is not None:  # None if the regularizer was called inside the block
            self._observer.__exit__(kind, error, trace)

    def forward(
        self,
        scores: Tensor,
        labels: Tensor,
        *,
        images: Tensor | None = None,
        masks: Tensor | None = None,
        task_loss: Tensor | None = None,
        sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Compute Σ λ_t · loss_t from the forward captured last, and let go of it, also when this raises.

        Args:
            scores: (N, K), what the model returned in that forward, before any softmax, graph attached.
            labels: (N,) class indices, or (N, K) soft labels or several labels per sample.
            images: (N, C, *spatial), for losses that compare with the image.
            masks: (N, 1, *spatial), for losses that compare with a mask.
            task_loss: the scalar that the result is added to, for weights that are set by gradients (``"auto"``); before a
                ``GradScaler`` scales it.
            sample_weights: (N,) how much each sample counts, at least 0. Default: all alike.

        Returns:
            A scalar to add to the task loss. If every weight is 0 it is a plain zero.

        Raises:
            RuntimeError: no forward was captured, or the scores are not of that forward, have no graph, or their graph is freed.
            ValueError: shapes, labels or prototypes that do not fit, scores that are not finite, or no ``task_loss`` for a
                weight that needs it.
            TypeError: labels of a wrong type.

        Warns:
            UserWarning: all cams of the batch are dead (on a GPU, at :meth:`check`); or a weight depends on the steps, and
                :meth:`step` is never called.
        """
        if isinstance(self.grad_cam, Split):
            raise RuntimeError(
                "CamRegularizer: expected a BatchGradCam to be called with scores, got a trunk and a head; call "
                "regularizer.run(images, labels), which returns the scores and the loss"
            )
        batch = Batch(labels, images, masks, sample_weights)
        try:
            self._begin_call()
            total, self.values = self._of_captured(scores, batch, task_loss)
        finally:
            self._forget()
        self._note_dead(self.values)
        return total

    def run(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        masks: Tensor | None = None,
        sample_weights: Tensor | None = None,
    ) -> StepOutput:
        """Run the model and compute Σ λ_t · loss_t, for a regularizer that was made with a trunk and a head.

        This compiles whole::

            regularizer = CamRegularizer(split_model(model), BatchCamLoss(prototypes))


            @torch.compile(fullgraph=True)
            def objective(images, labels):
                scores, cam_loss = regularizer.run(images, labels)
                return F.cross_entropy(scores, labels) + cam_loss

        A schedule of weights compiles nothing anew, unless a weight goes to 0 or comes back from it. Under
        DistributedDataParallel wrap a module whose ``forward`` is the objective, and which has the model as a submodule: a trunk
        and a head that are called on their own are not synchronized.

        Args:
            images: (N, C, *spatial), the trunk's input.
            labels: (N,) class indices, or (N, K) soft labels or several labels per sample.
            masks: (N, 1, *spatial), for losses that compare with a mask.
            sample_weights: (N,) how much each sample counts, at least 0. Default: all alike.

        Returns:
            The scores, and the weighted sum of the terms; if every weight is 0 that is a plain zero.

        Raises:
            RuntimeError: gradients are switched off, the regularizer was made with a BatchGradCam, or the head cannot be
                differentiated by ``torch.func``.
            ValueError: shapes, labels or prototypes that do not fit.
            TypeError: labels of a wrong type, or a head that returns no tensor.
        """
        if not isinstance(self.grad_cam, Split):
            raise RuntimeError(
                "run: expected a regularizer made with a trunk and a head, got one with a BatchGradCam; run the model inside "
                "`with regularizer:` and call regularizer(scores, labels), or make it with split_model(model)"
            )
        if not torch.is_grad_enabled():
            raise RuntimeError(
                "run: expected a training step that records a graph, got one under torch.no_grad(); for validation call "
                "evaluate(images, labels)"
            )
        compiling = torch.compiler.is_compiling()
        if not compiling:
            self._begin_call()
        batch = Batch(labels, images, masks, sample_weights)
        output, self.values = self._of_split(self.grad_cam, self._active_losses(), batch)
        if not compiling:
            self._note_dead(self.values)
        return output

    def evaluate(
        self,
        images: Tensor | tuple[Tensor, ...],
        labels: Tensor,
        *,
        masks: Tensor | None = None,
        additional_forward_args: tuple[Any, ...] = (),
    ) -> dict[str, Tensor]:
        """Return the terms of a validation batch, from a forward of its own that leaves everything as it was.

        Args:
            images: (N, C, *spatial), the model's input; a tuple if the model takes several, images first.
            labels: (N,) class indices, or (N, K) soft labels or several labels per sample.
            masks: (N, 1, *spatial), for losses that compare with a mask.
            additional_forward_args: passed to the model after the images.

        Returns:
            What :attr:`values` would hold, without a graph, of this process's batch alone; also the terms that a schedule leaves
            out in this step (but not those whose weight is the number 0). :attr:`values` itself stays.

        Raises:
            ValueError: shapes, labels or prototypes that do not fit.
            TypeError: labels of a wrong type.
        """
        inputs = images if isinstance(images, tuple) else (images,)
        with torch.inference_mode(False), torch.enable_grad(), self._evaluating() as active:
            inputs = tuple(map(recordable, inputs))
            batch = Batch(recordable(labels), inputs[0], recordable(masks))
            if isinstance(self.grad_cam, Split):
                parts = nn.ModuleList([part for part in self.grad_cam if isinstance(part, nn.Module)])
                facts = ModelFacts.of(parts if len(parts) == 2 else self.grad_cam.trunk)
                with torch.no_grad(), left_as_it_was(facts, [inputs[0]]):
                    return self._of_split(self.grad_cam, active, batch)[1]
            # A wrapper's forward would wait for the other ranks.
            model, layers = unwrapped(self.grad_cam.forward_func), self.grad_cam.layers
            values: dict[str, Tensor] = {}
            for attempt in attempts(model, layers):
                with attempt:
                    forward = attempt.run(inputs, additional_forward_args)
                    rows = dict(zip(layers, forward.rows, strict=True))
                    seen = CapturedForward(
                        [_single(layer, row) for layer, row in rows.items()],
                        None,
                        input_shape(inputs),
                        forward.hooked,
                    )
                    scores = pick_output(forward.output, self.grad_cam.output)
                    batch.check(scores)
                    self._check_captured(scores, seen, active)
                    cams = self._cams(scores, seen, batch.labels, active, create_graph=False)
                    values = self._weighted_sum(active, cams, batch)[1]
            return values

    def extra_repr(self) -> str:
        """Return what ``print`` shows."""
        if isinstance(self.grad_cam, Split):
            return f"weights={self.weights}"
        layers = ", ".join(type(layer).__name__ for layer in self.grad_cam.layers)
        return f"layer={layers}, weights={self.weights}"

    def _of_captured(
        self, scores: Tensor, batch: Batch, task_loss: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if not isinstance(scores, Tensor):
            raise TypeError(
                f"scores: expected a tensor (N, K), got {type(scores).__name__}; pass the part of the model's output that holds "
                f"the scores, such as output['logits'], and make the BatchGradCam with output='logits'"
            )
        active = self._active_losses()
        if not active:
            return torch.zeros((), device=scores.device), {}
        assert self._mid_step is not None
        forward = self._captured()
        batch.check(scores)
        self._check_captured(scores, forward, active)
        own = own_scores(scores, forward.output, forward.activations)
        norms = None
        if any(isinstance(self.weights[name], AutoWeight) for name in active):
            norms = GradientNorms(task_loss, scores, own, forward.activations, self._mid_step)
        cams = self._cams(own, forward, batch.labels, active, create_graph=True)
        total, values = self._weighted_sum(active, cams, batch, norms)
        self._mid_step.prepare_backward(total)
        return total, values

    def _of_split(
        self, split: Split, active: dict[str, CamLoss], batch: Batch
    ) -> tuple[StepOutput, dict[str, Tensor]]:
        assert batch.images is not None
        activations = split.trunk(batch.images)
        if not active:
            scores = split.head(activations)
            return StepOutput(scores, torch.zeros((), device=scores.device)), {}
        batch.check(activations)
        cams = TermCams(active.values(), split.method)
        found = run_head(split.head, activations, batch.labels, list(cams.scores.values()))
        with self._failures_noted(active, found.scores.device):
            self._check_scores(found.scores, active)
            for score, gradient in zip(cams.scores, found.gradients, strict=True):
                cams.add(score, [activations], [LayerGradient(gradient)], [split.reshape or _as_it_is])
            total, values = self._weighted_sum(active, cams, batch)
        update_buffers(found)  # last: a loss may raise
        return StepOutput(found.scores, total), values

    def _cams(
        self,
        scores: Tensor,
        forward: CapturedForward,
        labels: Tensor,
        active: dict[str, CamLoss],
        *,
        create_graph: bool,
    ) -> TermCams:
        assert isinstance(self.grad_cam, BatchGradCam)
        cams = TermCams(active.values(), self.grad_cam.method)
        reshapes = [
            self.grad_cam.reshape_of(activations, position, forward.input_shape)
            for position, activations in enumerate(forward.activations)
        ]
        shortcuts_allowed = create_graph and not forward.hooked and self.grad_cam.reshape is None
        for key, score in cams.scores.items():
            selected = select_scores(scores, labels, score)
            shortcuts = [
                find_shortcut(selected, activations)
                if shortcuts_allowed and cams.needs_weights_only(key)
                else None
                for activations in forward.activations
            ]
            ends = [
                shortcut.end if shortcut else activations
                for shortcut, activations in zip(shortcuts, forward.activations, strict=True)
            ]
            gradients = self._gradients(selected, ends, forward.activations, create_graph=create_graph)
            cams.add(key, forward.activations, list(map(LayerGradient, gradients, shortcuts)), reshapes)
        return cams

    def _gradients(
        self,
        selected: Tensor,
        ends: Sequence[Tensor | GradientEdge],
        activations: Sequence[Tensor],
        *,
        create_graph: bool,
    ) -> tuple[Tensor, ...]:
        """Take ∂(Σ selected)/∂ends; the graph stays, as the task loss, or another term's score, still needs it."""
        assert self._mid_step is not None
        try:
            with self._mid_step.taken() if create_graph else nullcontext():
                gradients = activation_gradients(selected, ends, create_graph=create_graph, retain_graph=True)
                if create_graph and not self._second_order_works:  # once per regularizer
                    check_second_order(gradients, activations)
                    self._second_order_works = True
        except RuntimeError as error:
            because = checkpointing_error(error, selected, activations)
            if because is None:
                raise
            raise because from error
        return gradients

    def _captured(self) -> CapturedForward:
        observer = self._observer
        if observer is None:
            raise RuntimeError(
                "CamRegularizer: expected a captured forward, got none; run the model inside `with regularizer:`, and call the "
                "regularizer once for each such block"
            )
        # The step may be inside of the block, and a checkpointed layer runs once more for its gradients.
        if observer.is_open:
            observer.__exit__(None, None, None)
        activations = []
        for layer, by_device in zip(observer.layers, observer.activations, strict=True):
            if not by_device:
                self._raise_not_run(layer)
            if len(by_device) > 1:
                raise RuntimeError(
                    f"{type(layer).__name__}: expected a single tensor of activations on one device, got one on each of "
                    f"{', '.join(map(str, by_device))}: DataParallel runs a copy of the layer on every device, while the loss "
                    f"and its gradient are taken in one place; train with DistributedDataParallel instead of DataParallel"
                )
            activations.append(_single(layer, *by_device.values()))
        hooked = observer.hooked or any(tensor._backward_hooks for tensor in activations)
        return CapturedForward(activations, observer.output, observer.input_shape, hooked)

    def _raise_not_run(self, layer: nn.Module) -> NoReturn:
        assert isinstance(self.grad_cam, BatchGradCam)
        model = self.grad_cam.forward_func
        text = f"{type(layer).__name__}: expected one run of the layer inside `with regularizer:`, got none; "
        if isinstance(model, nn.Module) and layer not in set(model.modules()):
            raise RuntimeError(
                f"{text}the layer is not part of {type(model).__name__}, which the regularizer was made with: take the layer of "
                f"the model that is trained, not of a copy or of what it was before it was replaced"
            )
        raise RuntimeError(
            f"{text}call the model that the layer belongs to inside the block (a compiled model runs no hooks; one with "
            f"checkpointing may run the blocks of a Sequential one by one: choose its last block)"
        )

    def _check_captured(self, scores: Tensor, forward: CapturedForward, active: dict[str, CamLoss]) -> None:
        samples = forward.activations[0].shape[0]
        if not scores.dim() or scores.shape[0] != samples:
            raise ValueError(
                f"scores: expected scores of the {samples} captured samples, got shape {tuple(scores.shape)}; pass what the "
                f"model returned in the captured forward"
            )
        if not scores.requires_grad:
            raise RuntimeError(
                "scores: expected scores with a graph, got scores without one; run the model outside torch.no_grad() and do not "
                "detach; for validation call evaluate(images, labels)"
            )
        self._check_scores(scores, active)

    def _forget(self) -> None:
        """Let go of the captured forward, and undo the marks on it."""
        observer, self._observer = self._observer, None
        if observer is not None:
            observer.release()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was captured, which stays with the original."""
        return {**self.__dict__, "_observer": None}


def _single(layer: nn.Module, tensors: Sequence[Tensor]) -> Tensor:
    if len(tensors) > 1:
        raise ValueError(
            f"{type(layer).__name__}: expected a single tensor of activations, got {len(tensors)}; choose a layer with one output"
        )
    return tensors[0]


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
