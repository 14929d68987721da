"""Weighted cam losses: what the two regularizers, over hooks and over a head, have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..functional import ValueChecks
from ..losses import CamLoss
from ..warn import warn_user
from .schedules import AutoWeight, Weight
from .terms import GivenWeight, Term, finite_weight, named_terms

#: So many training calls without a step() are more than any accumulation of gradients takes.
_CALLS_WITHOUT_STEP = 1000


NOT_FINITE = "scores: expected finite scores, got NaN or infinity; lower the learning rate, or the weight of the cam term"


class Batch(NamedTuple):
    """What goes to every loss beside the cams."""

    labels: Tensor  #: (N,) or (N, K)
    images: Tensor | None = None  #: (N, C, *spatial)
    masks: Tensor | None = None  #: (N, 1, *spatial)
    sample_weights: Tensor | None = None  #: (N,)


#: The cams of each layer, for a loss: (N, S, *spatial), one channel for each of its scores.
CamsOf = Callable[[CamLoss], list[Tensor]]
#: ‖∂L/∂A‖ over all layers, of a term, or of the task where None is passed.
GradientNorm = Callable[[Tensor | None], Tensor]


class CamObjective(nn.Module):
    """Named cam losses with weights, their values, and the steps that weights depend on.

    Args:
        losses: see :class:`CamRegularizer`.
        weight: see :class:`CamRegularizer`.
        validate: see :class:`CamRegularizer`.
        layer_names: of the layers whose cams each loss is computed of.
    """

    def __init__(
        self,
        losses: CamLoss | Mapping[str, Term] | Sequence[Term],
        weight: GivenWeight,
        *,
        validate: bool,
        layer_names: Sequence[str] = ("",),
    ) -> None:
        super().__init__()
        self.terms = nn.ModuleDict()
        #: λ of each term: a number, a function of :attr:`steps`, or an :class:`AutoWeight`.
        self.weights: dict[str, Weight | AutoWeight] = {}
        self.auto_weights = nn.ModuleDict()
        self.layer_names = list(layer_names)
        for name, loss, own_weight in named_terms(losses, weight):
            if len(self.layer_names) > 1 and loss.keeps_state:
                raise ValueError(
                    f"losses: expected losses without a memory for {len(self.layer_names)} layers, got {name!r}, which "
                    f"remembers earlier cams; make a regularizer, and a loss, for each layer"
                )
            self.terms[name] = loss
            self.weights[name] = own_weight
            if isinstance(own_weight, AutoWeight):
                self.auto_weights[name] = own_weight
        self.validate = validate
        self.checks = ValueChecks(synchronize=validate)
        #: Of the last call, per term before its weight (with several layers also ``"term/layer"``), and ``"dead_fraction"``, the
        #: largest share of dead cams over the maps in use: detached scalars on the device. Reading one on the host waits for
        #: the device; keeping it does not.
        self.values: dict[str, Tensor] = {}
        #: λ of each term in the last call; an :class:`AutoWeight`'s is a tensor on the device.
        self.current_weights: dict[str, float | Tensor] = {}
        #: How often :meth:`step` was called.
        self.steps = 0
        self._calls_since_step = 0
        self._warned: set[str] = set()
        self._all_dead: Tensor | None = None

    def read_values(self) -> dict[str, float]:
        """:attr:`values` as numbers, for a log. Waits for the device, and raises what value checks have accumulated on it.

        Raises:
            ValueError: a value did not fit in a batch since the last check.
        """
        self.check()
        return {name: value.item() for name, value in self.values.items()}

    def read_weights(self) -> dict[str, float]:
        """:attr:`current_weights` as numbers, for a log. Waits for the device where a weight is set by gradients."""
        return {name: float(weight) for name, weight in self.current_weights.items()}

    def step(self) -> None:
        """Advance :attr:`steps`, on which weights that are functions depend. Call it where the optimizer steps."""
        self.steps += 1
        self._calls_since_step = 0

    def check(self) -> None:
        """Raise what value checks have accumulated on a device; waits for it.

        Raises:
            ValueError: a value did not fit in a batch since the last check.

        Warns:
            UserWarning: all cams of a batch since then were dead.
        """
        self.checks.raise_failed()
        for _, loss in self._losses():
            loss.check()
        all_dead, self._all_dead = self._all_dead, None
        if all_dead is not None and bool(all_dead):
            self._warn_of_dead_cams()

    def get_extra_state(self) -> dict[str, int]:
        """What ``state_dict()`` holds beside the prototypes and what losses and weights remember."""
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Take :attr:`steps` from a ``state_dict()``."""
        self.steps = state["steps"]

    def _losses(self) -> Iterator[tuple[str, CamLoss]]:
        for name, loss in self.terms.items():
            yield name, cast(CamLoss, loss)

    def _active(self) -> dict[str, CamLoss]:
        """The terms whose weight is not 0 now; notes the weights in :attr:`current_weights`."""
        active: dict[str, CamLoss] = {}
        self.current_weights = {}
        for name, loss in self._losses():
            weight = self.weights[name]
            if isinstance(weight, AutoWeight):
                self.current_weights[name] = weight.weight
                active[name] = loss
                continue
            now = finite_weight(name, weight(self.steps)) if callable(weight) else weight
            self.current_weights[name] = now
            if now:
                active[name] = loss
        return active

    def _evaluated(self) -> dict[str, CamLoss]:
        """The terms of an evaluation: also those that a schedule leaves out in this very step."""
        self._active()
        return {name: loss for name, loss in self._losses() if self.weights[name] != 0}

    def _note_call(self) -> None:
        """Count a training call, and tell who has forgotten step()."""
        self._calls_since_step += 1
        depends = any(callable(w) and not isinstance(w, AutoWeight) for w in self.weights.values())
        if depends and self._calls_since_step > _CALLS_WITHOUT_STEP:
            self._warn_once(
                "step",
                f"{type(self).__name__}: expected step() after each step of the optimizer, as a weight depends on the steps, got "
                f"{self._calls_since_step} calls without one; call regularizer.step() beside optimizer.step()",
            )

    def _weighted(
        self,
        active: dict[str, CamLoss],
        cams_of: CamsOf,
        batch: Batch,
        *,
        zero: Tensor,
        norm: GradientNorm | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Σ λ_t · loss_t, and the values.

        Args:
            active: from :meth:`_active`.
            cams_of: the cams for a loss.
            batch: what else the losses need.
            zero: where the sum begins.
            norm: for weights that are set by gradients; None leaves them as they are.
        """
        given: dict[str, Any] = {"images": batch.images, "masks": batch.masks}
        if batch.sample_weights is not None:
            given["sample_weights"] = batch.sample_weights
        values: dict[str, Tensor] = {}
        dead: list[Tensor] = []
        total = zero
        for name, loss in active.items():
            of_layers = []
            for cams in cams_of(loss):
                value, dead_fraction = loss.evaluate(cams, batch.labels, **given)
                if value.dim():
                    raise ValueError(
                        f"losses: expected a scalar of {name!r}, got {tuple(value.shape)}; use reduction='mean' or 'sum'"
                    )
                of_layers.append(value)
                if dead_fraction is not None:
                    dead.append(dead_fraction)
            if self.validate:
                loss.check()
            value = of_layers[0] if len(of_layers) == 1 else torch.stack(of_layers).mean()
            values[name] = value.detach()
            if len(of_layers) > 1:
                named = zip(self.layer_names, of_layers, strict=True)
                values |= {f"{name}/{layer}": each.detach() for layer, each in named}
            total = total + self._weight_now(name, value, norm) * value
        if dead:
            values["dead_fraction"] = dead[0] if len(dead) == 1 else torch.stack(dead).amax()
        return total, values

    def _weight_now(self, name: str, value: Tensor, norm: GradientNorm | None) -> float | Tensor:
        weight = self.weights[name]
        if not isinstance(weight, AutoWeight):
            return self.current_weights[name]
        if norm is not None:
            if weight.due:
                weight.update(norm(None), norm(value))
            weight.num_calls += 1
        self.current_weights[name] = weight.weight.detach().clone()
        return self.current_weights[name]

    def _check_labels(self, batch: Batch, place: Tensor) -> None:
        """Look at what could not even be compared with the scores: no tensors, or on another device."""
        for name in ("labels", "sample_weights"):
            given = getattr(batch, name)
            if given is None and name != "labels":
                continue
            if not isinstance(given, Tensor):
                raise TypeError(
                    f"{name}: expected a tensor, got {type(given).__name__}; pass torch.as_tensor({name})"
                )
            if given.device != place.device:
                raise ValueError(
                    f"{name}: expected a tensor on {place.device}, where the scores are, got one on {given.device}; pass "
                    f"{name}.to(scores.device)"
                )

    def _check_values(self, scores: Tensor, active: dict[str, CamLoss]) -> None:
        """Look at the scores: as many as there are prototypes, and finite."""
        for name, loss in active.items():
            if scores.dim() == 2 and loss.num_classes not in (None, scores.shape[1]):
                raise ValueError(
                    f"{name}: expected prototypes of {scores.shape[1]} classes, as many as the model has scores, got "
                    f"{loss.num_classes}; make them with num_classes={scores.shape[1]}"
                )
        self.checks.require(torch.isfinite(scores), NOT_FINITE)

    def _note_dead(self, values: dict[str, Tensor]) -> None:
        """Warn once where all cams of a batch are dead: at once on the CPU, at :meth:`check` elsewhere."""
        if "dead_fraction" not in values or "dead" in self._warned:
            return
        all_dead = values["dead_fraction"] >= 1
        if all_dead.device.type == "cpu" or self.validate:
            if bool(all_dead):
                self._warn_of_dead_cams()
        else:
            self._all_dead = all_dead if self._all_dead is None else self._all_dead | all_dead

    def _warn_of_dead_cams(self) -> None:
        self._warn_once(
            "dead",
            f"{type(self).__name__}: expected cams with positive values, got a batch without any (all maps are dead): nothing at "
            f"the layer speaks for the score that is explained. Losses with revive=True bring them back; otherwise lower the "
            f"weight, let it warm up, or explain another layer",
        )

    def _warn_once(self, key: str, text: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            warn_user(text)

    @contextmanager
    def _left_alone(self) -> Iterator[None]:
        """Losses compute without learning, and without waiting for other processes; :meth:`evaluate` changes nothing."""
        before = {name: loss.training for name, loss in self._losses()}
        weights = dict(self.current_weights)
        try:
            for _, loss in self._losses():
                loss.training = False
            yield
        finally:
            self.current_weights = weights
            for name, loss in self._losses():
                loss.training = before[name]


def identity(choice: object) -> object:
    """What tells one weighting, or one kind of score, from another; whoever compares has to hold them."""
    if isinstance(choice, MethodType):  # made anew whenever it is asked for
        return id(choice.__self__), id(choice.__func__)
    return choice if isinstance(choice, str) else id(choice)
