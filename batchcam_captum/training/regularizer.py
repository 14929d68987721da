"""Cam losses as a term of the training objective."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from ..attribution import BatchGradCam
from ..attribution.engine import Forward, run
from ..attribution.output import pick_output
from ..attribution.recorder import shape_of_input
from ..attribution.second_order import check_second_order
from ..attribution.state import recordable
from ..functional import activation_gradients
from ..losses import CamLoss
from .cams import ForwardCams
from .norms import gradient_norm
from .objective import Batch, CamObjective, CamsOf, GradientNorm
from .recipes import DEFAULT_RECIPE, Recipe, recipe_losses
from .recompute import Recomputation, checkpointing_error
from .schedules import AutoWeight
from .sharding import gathered_again, kept_unsharded
from .terms import GivenWeight, Term
from .watch import ForwardWatch, WatchedForward, own_scores, unwrapped


class CamRegularizer(CamObjective):
    """Cam losses computed from the training forward: no second forward, no second dropout mask.

    Inside ``with regularizer:`` it remembers the layer's activations of the one forward that the task loss needs anyway. Called
    with the scores of that forward it takes one ``torch.autograd.grad`` for the whole batch, makes the cams, and returns
    Σ λ_t · loss_t, to be added to the task loss before the one ``backward()``.

    Where a pooling over the places, or a linear layer over the flattened places, is all that reads the layer, the gradient of
    Grad-CAM is taken behind that, where it is smaller. It comes to the same, except that hooks on tensors in between do not see
    it; with a weighting of one's own (``BatchGradCam(method=function)``) it is always taken at the layer.

    Args:
        grad_cam: the model and its layer; with several layers each term is the mean over them. The model is not registered as a
            submodule: its parameters stay its own. Make it with the model itself, not with what DistributedDataParallel makes of
            it.
        losses: one loss; or several by name, ``{"name": loss}`` or ``{"name": (loss, weight)}``; or a list of losses or pairs,
            which go by the names that they are registered under. A loss is a :class:`~batchcam_captum.losses.CamLoss`. Losses
            that take the same cam of the same score share one gradient.
        weight: λ, a function of :attr:`steps` such as :class:`LinearWarmup`, or ``"auto"``, see :class:`AutoWeight`; for all
            terms that come without a weight of their own. A term with weight 0 is not computed.
        validate: look at values (NaN, the range of labels) at once on every device, which makes the host wait for a GPU.
            Without it what was wrong on a GPU raises at :meth:`check`; on the CPU it always raises at once.

    Raises:
        TypeError: ``grad_cam``, a loss or a weight of another kind.
        ValueError: no loss, a name that cannot be used or comes twice, a weight that is not finite, a loss with an unknown
            method, or one that remembers earlier cams where there are several layers.

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
        grad_cam: BatchGradCam,
        losses: CamLoss | Mapping[str, Term] | Sequence[Term],
        weight: GivenWeight = 1.0,
        *,
        validate: bool = False,
    ) -> None:
        if not isinstance(grad_cam, BatchGradCam):
            raise _no_grad_cam(grad_cam)
        super().__init__(losses, weight, validate=validate, layer_names=grad_cam.layer_names)
        self.grad_cam = grad_cam
        self._watch = ForwardWatch(grad_cam)
        self._recomputation = Recomputation(grad_cam.forward_func)
        self._second_order_works = False

    @classmethod
    def from_loader(
        cls,
        grad_cam: BatchGradCam,
        loader: Iterable[Any],
        num_classes: int,
        *,
        recipe: str | Recipe = DEFAULT_RECIPE,
        validate: bool = False,
        **options: Any,
    ) -> Self:
        """A regularizer by a recipe, whose prototypes are taken from the training images; see :func:`recipe_losses`.

        Args:
            grad_cam: see the class.
            loader: of batches that begin with images (N, C, *spatial) and labels (N,), without random augmentation.
            num_classes: the number of classes, K.
            recipe: ``"foreground_shape"``, ``"foreground"`` or ``"shape"``, or one of your own.
            validate: see the class.
            **options: of :func:`recipe_losses`: ``steps_per_epoch``, ``mean`` and ``std`` of standardised images,
                ``to_channel``, ``size``, …

        Returns:
            The regularizer, with the losses on the model's device, unless ``device`` names another.

        Raises:
            ValueError: see :func:`recipe_losses` and the class.
            TypeError: see :func:`recipe_losses` and the class.

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
        if not isinstance(grad_cam, BatchGradCam):
            raise _no_grad_cam(grad_cam)
        options.setdefault("device", _device_of(grad_cam))
        losses = recipe_losses(loader, num_classes, recipe=recipe, **options)
        return cls(grad_cam, losses, validate=validate)

    def __enter__(self) -> Self:
        if self._watch.is_open:
            raise RuntimeError(
                "CamRegularizer: expected a block of its own for each forward, got a nested `with` of the same regularizer"
            )
        self._watch.open()
        self._recomputation.watch_forward(lambda: self._watch.layer_has_run)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._recomputation.forward_is_over(raised=kind is not None)
        self._watch.close(kind, error, trace)

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
            labels: (N,) class indices, or (N, K) soft labels or several labels a sample.
            images: (N, C, *spatial), for losses that compare with the image.
            masks: (N, 1, *spatial), for losses that compare with a mask.
            task_loss: the scalar that the result is added to, for weights that are set by gradients (``"auto"``); not scaled,
                where a ``GradScaler`` is in use.
            sample_weights: (N,) how much each sample counts, at least 0. Default: all alike.

        Returns:
            A scalar to add to the task loss. Where every weight is 0 it is a plain zero.

        Raises:
            RuntimeError: no forward was captured, or the scores are not of that forward, have no graph, or their graph is freed.
            ValueError: shapes, labels or prototypes that do not fit, scores that are not finite, or no ``task_loss`` for a
                weight that needs it.
            TypeError: labels of a wrong kind.

        Warns:
            UserWarning: all cams of the batch are dead (on a GPU, at :meth:`check`); or a weight depends on the steps, and
                :meth:`step` is never called.
        """
        batch = Batch(labels, images, masks, sample_weights)
        try:
            self._note_call()
            total, self.values = self._compute(scores, batch, task_loss)
        finally:
            self._watch.drop()
        self._note_dead(self.values)
        return total

    def evaluate(
        self,
        images: Tensor | tuple[Tensor, ...],
        labels: Tensor,
        *,
        masks: Tensor | None = None,
        additional_forward_args: tuple[Any, ...] = (),
    ) -> dict[str, Tensor]:
        """The terms on a validation batch, from a forward of their own that leaves everything as it was.

        Args:
            images: (N, C, *spatial), the model's input; a tuple where it takes several, images first.
            labels: (N,) class indices, or (N, K) soft labels or several labels a sample.
            masks: (N, 1, *spatial), for losses that compare with a mask.
            additional_forward_args: passed to the model after the images.

        Returns:
            What :attr:`values` would hold, without a graph, of this process's batch alone, also of terms that a schedule leaves
            out in this step (not of those whose weight is the number 0). The values of the last training call stay in
            :attr:`values`.

        Raises:
            ValueError: see :meth:`forward`.
            TypeError: see :meth:`forward`.
        """
        with torch.inference_mode(False), torch.enable_grad(), self._left_alone():
            active = self._evaluated()
            inputs = tuple(map(recordable, images if isinstance(images, tuple) else (images,)))
            extra = tuple(map(recordable, additional_forward_args))

            def use(seen: Forward) -> dict[str, Tensor]:
                scores = pick_output(seen.output, self.grad_cam.output)
                batch = Batch(recordable(labels), inputs[0], recordable(masks))
                activations = self._single(seen.rows)
                self._check_labels(batch, scores)
                self._check_scores(scores, activations, active)
                forward = WatchedForward(activations, seen.output, shape_of_input(inputs))
                cams_of = self._cams_of(active, scores, forward, batch.labels, create_graph=False)
                return self._weighted(active, cams_of, batch, zero=torch.zeros((), device=scores.device))[1]

            # A wrapper's forward would wait for the other ranks.
            model = unwrapped(self.grad_cam.forward_func)
            return run(use, model, self.grad_cam.layers, inputs, extra, several_gradients=True).result

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        layers = ", ".join(type(layer).__name__ for layer in self.grad_cam.layers)
        return f"layer={layers}, weights={self.weights}"

    def _compute(
        self, scores: Tensor, batch: Batch, task_loss: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if not isinstance(scores, Tensor):
            raise TypeError(
                f"scores: expected a tensor (N, K), got {type(scores).__name__}; pass the part of the model's output that holds "
                f"the scores, such as output['logits'], and make the BatchGradCam with output='logits'"
            )
        active = self._active()
        zero = torch.zeros((), device=scores.device)
        if not active:
            return zero, {}
        forward = self._watch.seen()
        self._check_labels(batch, scores)
        self._check_scores(scores, forward.activations, active)
        own = own_scores(scores, forward)
        norm = None
        if any(isinstance(self.weights[name], AutoWeight) for name in active):
            norm = self._looked_after(gradient_norm(task_loss, scores, own, forward.activations))
        cams_of = self._cams_of(active, own, forward, batch.labels, create_graph=True)
        total, values = self._weighted(active, cams_of, batch, zero=zero, norm=norm)
        self._recomputation.for_backward(total)
        gathered_again(total, self.grad_cam.forward_func)
        return total, values

    def _looked_after(self, norm: GradientNorm) -> GradientNorm:
        def looked_after(term: Tensor | None) -> Tensor:
            with self._for_cams():
                return norm(term)

        return looked_after

    @contextmanager
    def _for_cams(self) -> Iterator[None]:
        """Around a gradient in the middle of the step."""
        with self._recomputation.for_cams(), kept_unsharded(self.grad_cam.forward_func):
            yield

    def _cams_of(
        self,
        active: dict[str, CamLoss],
        scores: Tensor,
        forward: WatchedForward,
        labels: Tensor,
        *,
        create_graph: bool,
    ) -> CamsOf:
        def take(selected: Tensor, ends: Sequence[Tensor | GradientEdge]) -> tuple[Tensor, ...]:
            try:
                with self._for_cams() if create_graph else nullcontext():
                    # Kept: the task loss, or another term's score, still needs the graph.
                    gradients = activation_gradients(
                        selected, ends, create_graph=create_graph, retain_graph=True
                    )
                    if create_graph and not self._second_order_works:
                        check_second_order(gradients, forward.activations)
                        self._second_order_works = True
            except RuntimeError as error:
                because = checkpointing_error(error, selected, forward.activations)
                if because is None:
                    raise
                raise because from error
            return gradients

        return ForwardCams(
            self.grad_cam, forward, scores, labels, active.values(), take, shortcuts=create_graph
        )

    def _single(self, of_layers: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
        for layer, tensors in zip(self.grad_cam.layers, of_layers, strict=True):
            if len(tensors) > 1:
                raise ValueError(
                    f"{type(layer).__name__}: expected a single tensor of activations, got {len(tensors)}; choose a layer with "
                    f"one output"
                )
        return [tensors[0] for tensors in of_layers]

    def _check_scores(
        self, scores: Tensor, activations: Sequence[Tensor], active: dict[str, CamLoss]
    ) -> None:
        samples = activations[0].shape[0]
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
        self._check_values(scores, active)


def _no_grad_cam(given: object) -> TypeError:
    return TypeError(
        f"grad_cam: expected a BatchGradCam, got {type(given).__name__}; SplitRegularizer takes trunk and head"
    )


def _device_of(grad_cam: BatchGradCam) -> torch.device | None:
    """Where the model's first parameter lies; None where that cannot be told."""
    model = grad_cam.forward_func
    parameters = model.parameters() if isinstance(model, torch.nn.Module) else iter(())
    return next((each.device for each in parameters), None)
