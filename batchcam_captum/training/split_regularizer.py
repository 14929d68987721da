"""Cam losses of a model in two parts, for training steps that are compiled whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from ..attribution.split import Split
from ..attribution.state import recordable, state_kept
from ..attribution.survey import survey
from ..functional import CamMethod, Score, apply_method, get_method
from ..functional.head import several_head_gradients
from ..losses import CamLoss
from .objective import NOT_FINITE, Batch, CamObjective, CamsOf, identity
from .schedules import AutoWeight
from .terms import GivenWeight, Term


class SplitOutput(NamedTuple):
    """See :class:`SplitRegularizer`."""

    scores: Tensor  #: (N, K), as the head returned them
    loss: Tensor  #: Σ λ_t · loss_t, a scalar to add to the task loss


class SplitRegularizer(CamObjective):
    """Cam losses from the head-callable route: no hooks, so that ``torch.compile(fullgraph=True)`` takes a whole training step.

    It runs the model itself, trunk and then head, and returns the scores beside the loss::

        regularizer = SplitRegularizer(split_model(model), BatchCamLoss(prototypes), weight=1.0)


        @torch.compile(fullgraph=True)
        def objective(images, labels):
            scores, cam_loss = regularizer(images, labels)
            return F.cross_entropy(scores, labels) + cam_loss


        objective(images, labels).backward()

    Losses, weights, schedules, :attr:`values` and the state are those of :class:`CamRegularizer`; λ lies in a buffer, so a
    schedule compiles nothing anew, unless it goes to 0 or comes back from it. Move the regularizer to the model's device. What a
    compiled step finds wrong with values, on any device, raises at :meth:`check`.

    Under DistributedDataParallel wrap a module whose ``forward`` is the objective above, and which has the model as a submodule:
    a trunk and a head that are called on their own are not synchronised.

    Args:
        split: trunk and head, from :func:`~batchcam_captum.split_model` or two callables of your own. They are not registered as
            submodules.
        losses: see :class:`CamRegularizer`.
        weight: see :class:`CamRegularizer`; not ``"auto"``.
        method: how activations and gradients become a map, see :class:`~batchcam_captum.BatchGradCam`; for losses that have no
            method of their own.
        reshape: applied to the activations and the gradients first, where they are not (N, C, *spatial).
        validate: see :class:`CamRegularizer`.

    Raises:
        TypeError: ``split``, a loss or a weight of another kind, among them ``"auto"``.
        ValueError: see :class:`CamRegularizer`.

    Example:
        >>> import torch
        >>> from batchcam_captum import BatchCamLoss, split_model
        >>> from batchcam_captum.training import SplitRegularizer
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 6 * 6, 10)
        ... )
        >>> regularizer = SplitRegularizer(split_model(model, "1"), BatchCamLoss(torch.rand(10, 1, 8, 8)))
        >>> scores, cam_loss = regularizer(torch.rand(16, 1, 8, 8), torch.arange(16) % 10)
        >>> scores.shape, cam_loss.shape
        (torch.Size([16, 10]), torch.Size([]))
    """

    #: (T,) λ of each term at the present step, in the terms' order.
    weights_now: Tensor
    #: (1 + T,) whether a compiled step since the last check found something wrong with the scores, and with each term's values.
    failed_now: Tensor

    def __init__(
        self,
        split: Split | tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]],
        losses: CamLoss | Mapping[str, Term] | Sequence[Term],
        weight: GivenWeight = 1.0,
        *,
        method: str | CamMethod = "grad_cam",
        reshape: Callable[[Tensor], Tensor] | None = None,
        validate: bool = False,
    ) -> None:
        if not isinstance(split, tuple) or len(split) != 2 or not all(map(callable, split)):
            raise TypeError(
                f"split: expected a trunk and a head, as split_model(model) makes them, got {type(split).__name__}"
            )
        super().__init__(losses, weight, validate=validate)
        for name, each in self.weights.items():
            if isinstance(each, AutoWeight):
                raise TypeError(
                    f"weight: expected a number or a function of the steps for {name!r}, got 'auto', which takes gradients of "
                    f"its own in the middle of a step and does not compile; use CamRegularizer for it"
                )
        self._parts = (split[0], split[1])  # a tuple registers nothing
        self.method = get_method(method)
        self.reshape = reshape
        self.register_buffer("weights_now", torch.zeros(len(self.terms)), persistent=False)
        self.register_buffer(
            "failed_now", torch.zeros(1 + len(self.terms), dtype=torch.bool), persistent=False
        )
        self._active_now: tuple[str, ...] = ()
        self._take_weights()

    @property
    def trunk(self) -> Callable[[Tensor], Tensor]:
        """Images -> activations."""
        return self._parts[0]

    @property
    def head(self) -> Callable[[Tensor], Tensor]:
        """Activations -> scores."""
        return self._parts[1]

    def forward(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        masks: Tensor | None = None,
        sample_weights: Tensor | None = None,
    ) -> SplitOutput:
        """Run trunk and head once.

        Args:
            images: (N, C, *spatial), the trunk's input.
            labels: see :meth:`CamRegularizer.forward`.
            masks: see :meth:`CamRegularizer.forward`.
            sample_weights: see :meth:`CamRegularizer.forward`.

        Returns:
            The scores, and the weighted sum of the terms; where every weight is 0 that is a plain zero.

        Raises:
            ValueError: see :func:`~batchcam_captum.functional.head_cams` and :meth:`CamRegularizer.forward`.
            TypeError: see :func:`~batchcam_captum.functional.head_cams`.
            RuntimeError: see :func:`~batchcam_captum.functional.head_cams`.
        """
        if not torch.is_grad_enabled():
            raise RuntimeError(
                "SplitRegularizer: expected a training step that records a graph, got one under torch.no_grad(); leave that, or "
                "for validation call evaluate(images, labels)"
            )
        compiling = torch.compiler.is_compiling()
        if not compiling:
            self._note_call()
        output, self.values = self._run(images, Batch(labels, images, masks, sample_weights))
        if not compiling:
            self._note_dead(self.values)
        return output

    def evaluate(self, images: Tensor, labels: Tensor, *, masks: Tensor | None = None) -> dict[str, Tensor]:
        """The terms on a validation batch; leaves everything as it was.

        Args:
            images: (N, C, *spatial).
            labels: see :meth:`CamRegularizer.forward`.
            masks: see :meth:`CamRegularizer.forward`.

        Returns:
            What :attr:`values` would hold, without a graph.

        Raises:
            ValueError: see :meth:`forward`.
            TypeError: see :meth:`forward`.
        """
        modules = [part for part in self._parts if isinstance(part, nn.Module)]
        # A function may run modules that cannot be seen: as a layer that is not found it asks for care.
        unseen = [nn.Identity()] * (len(self._parts) - len(modules))
        parts = nn.ModuleList(modules)
        with torch.inference_mode(False), torch.no_grad(), self._left_alone():
            images, labels, masks = recordable(images), recordable(labels), recordable(masks)
            active_now, self._active_now = self._active_now, tuple(self._evaluated())
            try:
                with state_kept(survey(parts), unseen, [images]):
                    _, values = self._run(images, Batch(labels, images, masks))
            finally:
                self._active_now = active_now
        return values

    def step(self) -> None:
        """See :meth:`CamRegularizer.step`."""
        super().step()
        self._take_weights()

    def check(self) -> None:
        """See :meth:`CamRegularizer.check`; for compiled steps as well.

        Raises:
            ValueError: a value did not fit in a batch since the last check.

        Warns:
            UserWarning: all cams of a batch since then were dead; of compiled steps the last is looked at.
        """
        failed = self.failed_now.tolist()
        self.failed_now.zero_()
        super().check()
        wrong = [NOT_FINITE] * failed[0] + [
            f"{name}: expected labels in range with a prototype each, and values that fit, got others in a compiled step; run "
            f"the batch without torch.compile to see which"
            for name, flag in zip(self.terms, failed[1:], strict=True)
            if flag
        ]
        if wrong:
            raise ValueError("; ".join(wrong) + " (in a batch since the last check)")
        self._note_dead(self.values)

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Take :attr:`steps` from a ``state_dict()``."""
        super().set_extra_state(state)
        self._take_weights()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # .half(): the device may change, the precision may not.
        self.weights_now = self.weights_now.to(torch.float32)
        self._take_weights()
        return self

    @torch.no_grad()
    def _take_weights(self) -> None:
        self._active_now = tuple(self._active())
        if not self.weights_now.is_meta:
            # A new tensor: a compiled step still needs that of its own for the backward.
            numbers = [float(weight) for weight in self.current_weights.values()]
            self.weights_now = torch.tensor(numbers, device=self.weights_now.device)

    def _run(self, images: Tensor, batch: Batch) -> tuple[SplitOutput, dict[str, Tensor]]:
        activations = self.trunk(images)
        active = {name: loss for name, loss in self._losses() if name in self._active_now}
        if not active:
            scores = self.head(activations)
            return SplitOutput(scores, torch.zeros((), device=scores.device)), {}
        self._check_labels(batch, activations)
        scores_of = {name: loss.scores for name, loss in active.items()}  # held, see identity
        kinds: list[Score] = []
        for of_loss in scores_of.values():
            kinds += [score for score in of_loss if identity(score) not in map(identity, kinds)]
        (gradients, scores), update = several_head_gradients(self.head, activations, batch.labels, kinds)
        with self._outcomes_noted(active, scores.device):
            self._check_values(scores, active)
            by_kind = dict(zip(map(identity, kinds), gradients, strict=True))
            cams_of = self._cams_of(
                activations, by_kind, {active[name]: of for name, of in scores_of.items()}
            )
            zero = torch.zeros((), device=scores.device)
            total, values = self._weighted(active, cams_of, batch, zero=zero)
        update()  # last: a loss may raise
        return SplitOutput(scores, total), values

    @contextmanager
    def _outcomes_noted(self, active: dict[str, CamLoss], device: torch.device) -> Iterator[None]:
        """What is looked at in a compiled step goes into a buffer; without compilation it raises by itself."""
        if not torch.compiler.is_compiling() or self.failed_now.device != device:
            yield
            return
        looking = [self.checks, *(loss.checks for loss in active.values())]
        for checks in looking:
            checks.outcomes = []
        yield
        failed = self.failed_now
        for position, checks in zip(
            [0, *(1 + list(self.terms).index(name) for name in active)], looking, strict=True
        ):
            outcomes, checks.outcomes = checks.outcomes, None
            if outcomes:
                failed[position].logical_or_(~torch.stack(outcomes).all())

    def _weight_now(self, name: str, value: Tensor, norm: object) -> Tensor:
        return self.weights_now[list(self.terms).index(name)].to(value.device)

    def _cams_of(
        self,
        activations: Tensor,
        gradients: dict[object, Tensor],
        scores_of: dict[CamLoss, tuple[Score, ...]],
    ) -> CamsOf:
        reshape = self.reshape or (lambda tensor: tensor)
        cams: dict[object, Tensor] = {}

        def cams_of(loss: CamLoss) -> list[Tensor]:
            method = loss.method or self.method
            of_scores = []
            for score in scores_of[loss]:
                key = (identity(method), identity(score))
                if key not in cams:
                    cams[key] = apply_method(method, reshape(activations), reshape(gradients[key[1]]))
                of_scores.append(cams[key])
            return [of_scores[0] if len(of_scores) == 1 else torch.cat(of_scores, 1)]

        return cams_of
