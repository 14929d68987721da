"""Weighted cam losses: their names, weights and values, and the steps that the weights depend on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Self, cast

import torch
from torch import Tensor, nn

from ..functional import ValueChecks
from ..losses import CamLoss
from ..warn import warn_user
from .cams import TermCams
from .gradient_norms import GradientNorms
from .schedules import AutoWeight, Weight
from .terms import GivenWeight, Term, finite_weight, named_terms

#: More training calls without a step() than any accumulation of gradients takes.
_CALLS_WITHOUT_STEP = 1000

_NOT_FINITE = "scores: expected finite scores, got NaN or infinity; lower the learning rate, or the weight of the cam term"


class Batch(NamedTuple):
    """What every loss gets beside the cams."""

    labels: Tensor  #: (N,) or (N, K)
    images: Tensor | None = None  #: (N, C, *spatial)
    masks: Tensor | None = None  #: (N, 1, *spatial)
    sample_weights: Tensor | None = None  #: (N,)

    def check(self, scores: Tensor) -> None:
        """Check that labels and sample weights are tensors on the device of the scores.

        Raises:
            TypeError: no tensor.
            ValueError: on another device.
        """
        for name, given in (("labels", self.labels), ("sample_weights", self.sample_weights)):
            if given is None and name != "labels":
                continue
            if not isinstance(given, Tensor):
                raise TypeError(
                    f"{name}: expected a tensor, got {type(given).__name__}; pass torch.as_tensor({name})"
                )
            if given.device != scores.device:
                raise ValueError(
                    f"{name}: expected a tensor on {scores.device}, where the scores are, got one on {given.device}; pass "
                    f"{name}.to(scores.device)"
                )


class CamObjective(nn.Module):
    """Named cam losses with weights: what :class:`CamRegularizer` does with cams, wherever they come from.

    Args:
        losses: one loss, or several, as :class:`CamRegularizer` takes them.
        weight: λ of the terms that come without a weight.
        validate: check values at once on every device.
        layer_names: of the layers whose cams each loss is computed of.
        on_device: keep λ, and what is wrong with values, in buffers that a compiled step can read and write.
    """

    #: (T,) λ of each term at the present step, in the order of the terms; empty without ``on_device``.
    weights_now: Tensor
    #: (1 + T,) whether a compiled step since the last check found something wrong with the scores, and with each term's values.
    failed_now: Tensor

    def __init__(
        self,
        losses: CamLoss | Mapping[str, Term] | Sequence[Term],
        weight: GivenWeight,
        *,
        validate: bool,
        layer_names: Sequence[str],
        on_device: bool = False,
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
                    f"remembers earlier cams; make one regularizer, and one loss, for each layer"
                )
            self.terms[name] = loss
            self.weights[name] = own_weight
            if isinstance(own_weight, AutoWeight):
                self.auto_weights[name] = own_weight
        self.validate = validate
        self.checks = ValueChecks(synchronize=validate)
        #: Of the last call: each term before its weight (with several layers also ``"term/layer"``), and ``"dead_fraction"``,
        #: the largest share of dead cams over the maps in use. Detached scalars on the device: reading one on the host waits
        #: for the device, keeping it does not.
        self.values: dict[str, Tensor] = {}
        #: λ of each term in the last call, and with a trunk and a head in the next one; an :class:`AutoWeight`'s is a tensor on
        #: the device.
        self.current_weights: dict[str, float | Tensor] = {}
        #: How often :meth:`step` was called.
        self.steps = 0
        self._calls_since_step = 0
        self._warned: set[str] = set()
        self._all_dead: Tensor | None = None
        self._active: tuple[str, ...] = ()
        self._on_device = on_device
        if on_device:
            self.register_buffer("weights_now", torch.zeros(len(self.terms)), persistent=False)
            failed = torch.zeros(1 + len(self.terms), dtype=torch.bool)
            self.register_buffer("failed_now", failed, persistent=False)
            self._update_weights()

    def read_values(self) -> dict[str, float]:
        """Return :attr:`values` as numbers, for a log. Waits for the device.

        Raises:
            ValueError: a value did not fit in a batch since the last check.
        """
        self.check()
        return {name: value.item() for name, value in self.values.items()}

    def read_weights(self) -> dict[str, float]:
        """Return :attr:`current_weights` as numbers, for a log. Waits for the device if a weight is set by gradients."""
        return {name: float(weight) for name, weight in self.current_weights.items()}

    def step(self) -> None:
        """Advance :attr:`steps`, on which weights that are functions depend. Call it where the optimizer steps."""
        self.steps += 1
        self._calls_since_step = 0
        if self._on_device:
            self._update_weights()

    def check(self) -> None:
        """Raise what value checks have accumulated on a device. Waits for the device.

        Raises:
            ValueError: a value did not fit in a batch since the last check.

        Warns:
            UserWarning: all cams of a batch since then were dead; of compiled steps the last one is looked at.
        """
        self.checks.raise_failed()
        for loss in self._losses().values():
            loss.check()
        if self._on_device:
            self._raise_failed_now()
        self._note_dead(self.values, wait=True)

    def _raise_failed_now(self) -> None:
        scores_failed, *failed = self.failed_now.tolist()
        self.failed_now.zero_()
        wrong = [_NOT_FINITE] if scores_failed else []
        wrong += [
            f"{name}: expected labels in range with a prototype each, and values that fit, got others in a compiled step; run "
            f"the batch without torch.compile to see which"
            for name, flag in zip(self.terms, failed, strict=True)
            if flag
        ]
        if wrong:
            raise ValueError("; ".join(wrong) + " (in a batch since the last check)")

    def get_extra_state(self) -> dict[str, int]:
        """Return what ``state_dict()`` holds beside prototypes, memories and weights."""
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Take :attr:`steps` from a ``state_dict()``."""
        self.steps = state["steps"]
        if self._on_device:
            self._update_weights()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self._on_device:
            # .half() may change the device, and must not change the precision.
            self.weights_now = self.weights_now.to(torch.float32)
            self._update_weights()
        return self

    def _losses(self) -> dict[str, CamLoss]:
        return {name: cast(CamLoss, loss) for name, loss in self.terms.items()}

    @torch.no_grad()
    def _update_weights(self) -> None:
        """Compute λ of each term at the present step."""
        self.current_weights = {}
        for name, weight in self.weights.items():
            if isinstance(weight, AutoWeight):
                self.current_weights[name] = weight.weight
            else:
                now = finite_weight(name, weight(self.steps)) if callable(weight) else weight
                self.current_weights[name] = now
        # Names, since a compiled step would be compiled anew for each value that it looks at.
        self._active = tuple(
            name for name, weight in self.current_weights.items() if isinstance(weight, Tensor) or weight != 0
        )
        if self._on_device and not self.weights_now.is_meta:
            # A new tensor: a compiled step still needs its own for the backward.
            numbers = [float(weight) for weight in self.current_weights.values()]
            self.weights_now = torch.tensor(numbers, device=self.weights_now.device)

    def _active_losses(self) -> dict[str, CamLoss]:
        """Return the terms whose λ is not 0 at the present step."""
        losses = self._losses()
        return {name: losses[name] for name in self._active}

    def _begin_call(self) -> None:
        """Take the weights of the present step, and warn if step() is never called."""
        self._update_weights()
        self._calls_since_step += 1
        scheduled = any(callable(w) and not isinstance(w, AutoWeight) for w in self.weights.values())
        if scheduled and self._calls_since_step > _CALLS_WITHOUT_STEP:
            self._warn_once(
                "step",
                f"{type(self).__name__}: expected step() after each step of the optimizer, as a weight depends on the steps, got "
                f"{self._calls_since_step} calls without one; call regularizer.step() beside optimizer.step()",
            )

    def _weighted_sum(
        self, active: dict[str, CamLoss], cams: TermCams, batch: Batch, norms: GradientNorms | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return Σ λ_t · loss_t, and the values.

        Args:
            active: the terms.
            cams: of all of them.
            batch: what else the losses need.
            norms: for weights that are set by gradients; None leaves them as they are.
        """
        total = torch.zeros((), device=batch.labels.device)
        values: dict[str, Tensor] = {}
        dead: list[Tensor] = []
        for name, loss in active.items():
            found = [loss.evaluate(cam, **batch._asdict()) for cam in cams.of(loss)]
            of_layers = [each.value for each in found]
            if of_layers[0].dim():
                raise ValueError(
                    f"losses: expected a scalar of {name!r}, got {tuple(of_layers[0].shape)}; use reduction='mean' or 'sum'"
                )
            dead += [each.dead_fraction for each in found if each.dead_fraction is not None]
            if self.validate:
                loss.check()
            value = of_layers[0] if len(of_layers) == 1 else torch.stack(of_layers).mean()
            values[name] = value.detach()
            if len(of_layers) > 1:
                named = zip(self.layer_names, of_layers, strict=True)
                values |= {f"{name}/{layer}": each.detach() for layer, each in named}
            total = total + self._weight_of(name, value, norms) * value
        if dead:
            values["dead_fraction"] = dead[0] if len(dead) == 1 else torch.stack(dead).amax()
        return total, values

    def _weight_of(self, name: str, value: Tensor, norms: GradientNorms | None) -> float | Tensor:
        weight = self.weights[name]
        if self._on_device:
            return self.weights_now[list(self.terms).index(name)].to(value.device)
        if not isinstance(weight, AutoWeight):
            return self.current_weights[name]
        if norms is not None:
            if weight.due:
                weight.update(norms.of_task(), norms.of_term(value))
            weight.num_calls += 1
        self.current_weights[name] = weight.weight.detach().clone()
        return self.current_weights[name]

    def _check_scores(self, scores: Tensor, active: dict[str, CamLoss]) -> None:
        """Check that the scores are finite, and as many as there are prototypes."""
        for name, loss in active.items():
            if scores.dim() == 2 and loss.num_classes not in (None, scores.shape[1]):
                raise ValueError(
                    f"{name}: expected prototypes of {scores.shape[1]} classes, as many as the model has scores, got "
                    f"{loss.num_classes}; make them with num_classes={scores.shape[1]}"
                )
        self.checks.require(torch.isfinite(scores), _NOT_FINITE)

    @contextmanager
    def _failures_noted(self, active: dict[str, CamLoss], device: torch.device) -> Iterator[None]:
        """Collect what a compiled step finds wrong with values in a buffer; without compilation it raises by itself."""
        if not torch.compiler.is_compiling() or self.failed_now.device != device:
            yield
            return
        looking = {0: self.checks}
        looking |= {1 + list(self.terms).index(name): loss.checks for name, loss in active.items()}
        for checks in looking.values():
            checks.outcomes = []
        yield
        for position, checks in looking.items():
            outcomes, checks.outcomes = checks.outcomes, None
            if outcomes:
                self.failed_now[position].logical_or_(~torch.stack(outcomes).all())

    def _note_dead(self, values: dict[str, Tensor], *, wait: bool = False) -> None:
        """Warn once if all cams of a batch are dead: at once on the CPU, at :meth:`check` elsewhere."""
        if "dead" in self._warned:
            return
        if "dead_fraction" in values:
            all_dead = values["dead_fraction"] >= 1
            self._all_dead = all_dead if self._all_dead is None else self._all_dead | all_dead
        if self._all_dead is None or not (wait or self.validate or self._all_dead.device.type == "cpu"):
            return
        all_dead, self._all_dead = self._all_dead, None
        if bool(all_dead):
            self._warn_once(
                "dead",
                f"{type(self).__name__}: expected cams with positive values, got a batch without any (all maps are dead): "
                f"nothing at the layer speaks for the score that is explained. Losses with revive=True bring them back; "
                f"otherwise lower the weight, let it warm up, or explain another layer",
            )

    def _warn_once(self, key: str, text: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            warn_user(text)

    @contextmanager
    def _evaluating(self) -> Iterator[dict[str, CamLoss]]:
        """Yield the terms to evaluate, also those that a schedule leaves out in this step.

        Meanwhile losses neither learn nor wait for other processes; afterwards everything is as it was.
        """
        losses = self._losses()
        training = {name: loss.training for name, loss in losses.items()}
        weights, active = self.current_weights, self._active
        try:
            if not self._on_device:
                self._update_weights()
            for loss in losses.values():
                loss.training = False
            yield {name: loss for name, loss in losses.items() if self.weights[name] != 0}
        finally:
            self.current_weights, self._active = weights, active
            for name, loss in losses.items():
                loss.training = training[name]
