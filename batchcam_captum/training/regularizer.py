"""Cam losses as a term of the training objective."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from ..attribution import BatchGradCam
from ..attribution.engine import Recording, own_run
from ..attribution.mixing import mixing_watched
from ..attribution.output import pick_output
from ..attribution.recorder import InputShape, LayerRecorder, shape_of_input
from ..attribution.second_order import training_error, unsupported_operator
from ..attribution.state import recordable
from ..attribution.survey import survey
from ..functional import ValueChecks, activation_gradients, select_scores
from ..functional.math_attention import MathAttention
from ..losses import CamLoss
from .terms import Term, Weight, finite_weight, named_terms


class CamRegularizer(nn.Module):
    """Cam losses computed from the training forward: no second forward, no second dropout mask.

    Inside ``with regularizer:`` it remembers the layer's activations of the one forward that the task loss needs anyway. Called
    with the scores of that forward it takes one ``torch.autograd.grad`` for the whole batch, makes the cams, and returns
    Σ λ_t · loss_t, to be added to the task loss before the one ``backward()``.

    Args:
        grad_cam: the model and its layer. The model is not registered as a submodule: its parameters stay its own.
        losses: one loss; or several by name, ``{"name": loss}`` or ``{"name": (loss, weight)}``; or a list of losses or pairs,
            which go by the names that they are registered under. A loss is a :class:`~batchcam_captum.losses.CamLoss`. Losses
            that take the same cam of the same score share one gradient.
        weight: λ, or a function of :attr:`steps`; for all terms that come without a weight of their own. A term with weight 0
            is not computed.
        validate: look at values (NaN, the range of labels) at once on every device, which makes the host wait for a GPU.
            Without it what was wrong on a GPU raises at :meth:`check`; on the CPU it always raises at once.

    Raises:
        TypeError: ``grad_cam``, a loss or a weight of another kind.
        ValueError: no loss, a name that cannot be used or comes twice, a weight that is not finite, or a loss with an unknown
            method.

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
        weight: Weight = 1.0,
        *,
        validate: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(grad_cam, BatchGradCam):
            raise TypeError(f"grad_cam: expected a BatchGradCam, got {type(grad_cam).__name__}")
        if isinstance(grad_cam.layer, list):
            raise TypeError(
                "grad_cam: expected a BatchGradCam of one layer, got one of several; make a regularizer for each"
            )
        self.grad_cam = grad_cam
        self.terms = nn.ModuleDict()
        self.weights: dict[str, Weight] = {}
        for name, loss, own_weight in named_terms(losses, weight):
            self.terms[name] = loss
            self.weights[name] = own_weight
        self.validate = validate
        self.checks = ValueChecks(synchronize=validate)
        #: Of the last call, per term before its weight, and ``"dead_fraction"``, the largest share of dead cams over the maps
        #: in use: detached scalars on the device. Reading one on the host waits for the device; keeping it does not.
        self.values: dict[str, Tensor] = {}
        #: How often :meth:`step` was called.
        self.steps = 0
        self._recorder: LayerRecorder | None = None
        self._attention = MathAttention()
        self._second_order_works = False
        self._input = InputShape()
        self._watched = False
        self._watch: AbstractContextManager[None] | None = None

    def __enter__(self) -> Self:
        if self._recorder is not None and self._recorder.attached:
            raise RuntimeError(
                "CamRegularizer: expected a block of its own for each forward, got a nested `with` of the same regularizer"
            )
        self._drop()
        recorder = LayerRecorder(self.grad_cam.layer, once=True, on_seen=self._attention.start)
        recorder.attach()
        self._recorder = recorder
        model = self.grad_cam.forward_func
        if self.grad_cam.reshape is not None and isinstance(model, nn.Module):
            self._input.attach(model)  # the grid of a layer's tokens follows from the image's
        if not self._watched and survey(self.grad_cam.forward_func).batch_norm_may_mix:
            # Once: the hook that sees every module slows all of them a little.
            self._watched = True
            self._watch = mixing_watched(self.grad_cam.forward_func, [recorder])
            self._watch.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._attention.stop()
        self._input.detach()
        watch, self._watch = self._watch, None
        if kind is not None:
            self._drop()
        elif self._recorder is not None:
            self._recorder.detach()
        if watch is not None:  # last: the warning may be an error
            watch.__exit__(kind, error, trace)

    def forward(
        self, scores: Tensor, labels: Tensor, *, images: Tensor | None = None, masks: Tensor | None = None
    ) -> Tensor:
        """Compute Σ λ_t · loss_t from the forward captured last, and let go of it, also when this raises.

        Args:
            scores: (N, K), what the model returned in that forward, before any softmax, graph attached.
            labels: (N,) class indices, or (N, K) soft labels.
            images: (N, C, *spatial), for losses that compare with the image.
            masks: (N, 1, *spatial), for losses that compare with a mask.

        Returns:
            A scalar to add to the task loss. Where every weight is 0 it is a plain zero.

        Raises:
            RuntimeError: no forward was captured, or the scores are not of that forward, have no graph, or their graph is freed.
            ValueError: shapes, labels or prototypes that do not fit, or scores that are not finite.
            TypeError: labels of a wrong kind.
        """
        recorder, self._recorder = self._recorder, None
        try:
            total, self.values = self._compute(
                recorder,
                scores,
                labels,
                images=images,
                masks=masks,
                input_shape=self._input.shape,
                create_graph=True,
            )
        finally:
            if recorder is not None:
                recorder.release()
        return total

    def read_values(self) -> dict[str, float]:
        """:attr:`values` as numbers, for a log. Waits for the device, and raises what value checks have accumulated on it.

        Raises:
            ValueError: a value did not fit in a batch since the last check.
        """
        self.check()
        return {name: value.item() for name, value in self.values.items()}

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
            labels: (N,) class indices, or (N, K) soft labels.
            masks: (N, 1, *spatial), for losses that compare with a mask.
            additional_forward_args: passed to the model after the images.

        Returns:
            What :attr:`values` would hold, without a graph. The values of the last training call stay in :attr:`values`.

        Raises:
            ValueError: see :meth:`forward`.
            TypeError: see :meth:`forward`.
        """
        shares = {name: loss.dead_fraction for name, loss in self._losses()}
        with torch.inference_mode(False), torch.enable_grad():
            inputs = tuple(map(recordable, images if isinstance(images, tuple) else (images,)))
            extra = tuple(map(recordable, additional_forward_args))
            with own_run(
                self.grad_cam.forward_func,
                [self.grad_cam.layer],
                inputs,
                extra,
                recording=Recording.MODEL,
                once=True,
            ) as ((recorder,), scores):
                _, values = self._compute(
                    recorder,
                    pick_output(scores, self.grad_cam.output),
                    recordable(labels),
                    images=inputs[0],
                    masks=recordable(masks),
                    input_shape=shape_of_input(inputs),
                    create_graph=False,
                )
        for name, loss in self._losses():
            loss.dead_fraction = shares[name]
        return values

    def step(self) -> None:
        """Advance :attr:`steps`, on which weights that are functions depend. Call it where the optimiser steps."""
        self.steps += 1

    def check(self) -> None:
        """Raise what value checks have accumulated on a device; waits for it.

        Raises:
            ValueError: a value did not fit in a batch since the last check.
        """
        self.checks.raise_failed()
        for _, loss in self._losses():
            loss.check()

    def get_extra_state(self) -> dict[str, int]:
        """What ``state_dict()`` holds beside the prototypes."""
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Take :attr:`steps` from a ``state_dict()``."""
        self.steps = state["steps"]

    def __getstate__(self) -> dict[str, Any]:
        """A copy made inside a block watches nothing; what it captured stays with the original, too, see LayerRecorder."""
        return {**self.__dict__, "_watch": None}

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"layer={type(self.grad_cam.layer).__name__}, weights={self.weights}"

    def _drop(self) -> None:
        if self._recorder is not None:
            self._recorder.release()
            self._recorder = None

    def _losses(self) -> Iterator[tuple[str, CamLoss]]:
        for name, loss in self.terms.items():
            yield name, cast(CamLoss, loss)

    def _weight(self, name: str) -> float:
        weight = self.weights[name]
        return finite_weight(name, weight(self.steps)) if callable(weight) else weight

    def _compute(
        self,
        recorder: LayerRecorder | None,
        scores: Tensor,
        labels: Tensor,
        *,
        images: Tensor | None,
        masks: Tensor | None,
        input_shape: tuple[int, ...] | None,
        create_graph: bool,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if not isinstance(scores, Tensor):
            raise TypeError(f"scores: expected a tensor (N, K), got {type(scores).__name__}")
        weights = {name: self._weight(name) for name in self.terms}
        active = {name: loss for name, loss in self._losses() if weights[name] != 0}
        total = torch.zeros((), device=scores.device)
        if not active:
            return total, {}
        activations = self._activations(recorder)
        self._check_scores(scores, activations, active)
        cams: dict[tuple[Hashable, Hashable], Tensor] = {}
        values: dict[str, Tensor] = {}
        dead: list[Tensor] = []
        for name, loss in active.items():
            method = loss.method or self.grad_cam.method
            key = (_identity(method), _identity(loss.score))
            if key not in cams:
                selected = select_scores(scores, labels, loss.score)
                # Kept: the task loss, or another term's score, still needs the graph.
                (gradients,) = activation_gradients(
                    selected, [activations], create_graph=create_graph, retain_graph=True
                )
                if create_graph and not self._second_order_works:  # once: it walks the graph
                    operator = unsupported_operator([gradients], selected, [activations])
                    if operator is not None:
                        raise training_error(operator, type(self.grad_cam.layer).__name__)
                    self._second_order_works = True
                cams[key] = self.grad_cam.cam_of(activations, method=method, input_shape=input_shape)(
                    gradients
                )
            value = loss(cams[key], labels, images=images, masks=masks)
            if value.dim():
                raise ValueError(
                    f"losses: expected a scalar of {name!r}, got {tuple(value.shape)}; use reduction='mean' or 'sum'"
                )
            if self.validate:
                loss.check()
            values[name] = value.detach()
            total = total + weights[name] * value
            if loss.dead_fraction is not None:
                dead.append(loss.dead_fraction)
        if dead:
            values["dead_fraction"] = torch.stack(dead).amax()
        return total, values

    def _activations(self, recorder: LayerRecorder | None) -> Tensor:
        name = type(self.grad_cam.layer).__name__
        if recorder is None:
            raise RuntimeError(
                "CamRegularizer: expected a captured forward, got none; run the model inside `with regularizer:`, and call the "
                "regularizer once for each such block"
            )
        if not recorder.tensors:
            raise RuntimeError(
                f"{name}: expected one run of the layer inside `with regularizer:`, got none; call the model that the layer "
                f"belongs to inside the block (a compiled model runs no hooks)"
            )
        if len(recorder.tensors) > 1 or not recorder.is_single:
            raise RuntimeError(
                f"{name}: expected a single tensor of activations on one device, got several; choose a layer with one output, "
                f"and DistributedDataParallel instead of DataParallel"
            )
        ((activations,),) = recorder.tensors.values()
        return activations

    def _check_scores(self, scores: Tensor, activations: Tensor, active: dict[str, CamLoss]) -> None:
        if not scores.dim() or scores.shape[0] != activations.shape[0]:
            raise ValueError(
                f"scores: expected scores of the {activations.shape[0]} captured samples, got shape {tuple(scores.shape)}; "
                f"pass what the model returned in the captured forward"
            )
        if not scores.requires_grad:
            raise RuntimeError(
                "scores: expected scores with a graph, got scores without one; run the model outside torch.no_grad() and do not "
                "detach; for validation call evaluate(images, labels)"
            )
        for name, loss in active.items():
            if scores.dim() == 2 and loss.num_classes not in (None, scores.shape[1]):
                raise ValueError(
                    f"{name}: expected prototypes of {scores.shape[1]} classes, as many as the model has scores, got "
                    f"{loss.num_classes}; make them with num_classes={scores.shape[1]}"
                )
        self.checks.require(
            torch.isfinite(scores),
            "scores: expected finite scores, got NaN or infinity; lower the learning rate, or the weight of the cam term",
        )


def _identity(choice: object) -> Hashable:
    """What tells one weighting, or one kind of score, from another."""
    return choice if isinstance(choice, str) else id(choice)
