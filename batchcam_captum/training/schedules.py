"""Schedules of λ: warm-up, cosine, every k steps, or set from gradients.

A schedule is a function of the number of calls of :meth:`CamRegularizer.step`; any function will do. The classes here can be
pickled, copied and compared, and have no state, because the regularizer saves the step. Only :class:`AutoWeight` has a state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from ..distributed import Ranks, total_over_ranks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

#: λ of a term: a number, or a function of the step.
Weight = float | Callable[[int], float]


def _check_steps(name: str, steps: int, least: int = 1) -> None:
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < least:
        raise ValueError(f"{name}: expected an integer of at least {least}, got {steps!r}")


def _check_number(name: str, value: object, remedy: str = "") -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}{remedy}")
    if not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value}")


def _check_inner(weight: object) -> None:
    if isinstance(weight, nn.Module) or weight == "auto":
        kind = "'auto'" if isinstance(weight, str) else type(weight).__name__
        raise TypeError(
            f"weight: expected a number or a function of the step inside a schedule, got {kind}; pass it to the regularizer"
        )
    if not callable(weight):
        _check_number("weight", weight)


def _value(weight: Weight, step: int) -> float:
    return weight(step) if callable(weight) else weight


@dataclass(frozen=True)
class LinearWarmup:
    """Increase λ linearly from ``start`` to ``weight``, then keep it constant.

    Args:
        weight: λ from step ``steps`` on; or another schedule, which is multiplied by the ramp from 0 to 1.
        steps: the length of the ramp, ≥ 1.
        start: λ at step 0, if ``weight`` is a number.

    Raises:
        ValueError: ``steps`` is not positive, a number is not finite, or ``start`` is given with another schedule.
        TypeError: ``weight`` is neither a number nor a function; an :class:`AutoWeight` cannot be inside a schedule.

    Example:
        >>> warmup = LinearWarmup(2.0, steps=4)
        >>> [warmup(step) for step in range(6)]
        [0.0, 0.5, 1.0, 1.5, 2.0, 2.0]
        >>> both = LinearWarmup(Cosine(1.0, steps=100), steps=10)
        >>> both(0), both(10) == Cosine(1.0, steps=100)(10), both(100)
        (0.0, True, 0.0)
    """

    weight: Weight
    steps: int
    start: float = 0.0

    def __post_init__(self) -> None:
        _check_steps("steps", self.steps)
        _check_inner(self.weight)
        _check_number("start", self.start)
        if callable(self.weight) and self.start:
            raise ValueError(f"start: expected 0 with a schedule as weight, got {self.start}")

    def __call__(self, step: int) -> float:
        """Return λ at a step, counted from 0."""
        share = min(step / self.steps, 1.0)
        return self.start * (1 - share) + share * _value(self.weight, step)


@dataclass(frozen=True)
class Cosine:
    """Move λ from ``weight`` to ``final`` along half a cosine, then keep it constant.

    Loshchilov and Hutter 2017, eq. 5, without restarts.

    Args:
        weight: λ at step 0.
        steps: the length of the half cosine, ≥ 1.
        final: λ from step ``steps`` on.

    Raises:
        ValueError: ``steps`` is not positive, or a number is not finite.
        TypeError: ``weight`` is not a number. To combine schedules, wrap this one: ``LinearWarmup(Cosine(…), steps)``.

    Example:
        >>> cosine = Cosine(1.0, steps=4)
        >>> [round(cosine(step), 2) for step in range(6)]
        [1.0, 0.85, 0.5, 0.15, 0.0, 0.0]
    """

    weight: float
    steps: int
    final: float = 0.0

    def __post_init__(self) -> None:
        _check_steps("steps", self.steps)
        remedy = "; wrap it in the other schedule: LinearWarmup(Cosine(…), steps)"
        _check_number("weight", self.weight, remedy if callable(self.weight) else "")
        _check_number("final", self.final)

    def __call__(self, step: int) -> float:
        """Return λ at a step, counted from 0."""
        share = (1 + math.cos(math.pi * min(step / self.steps, 1.0))) / 2
        return self.final + (self.weight - self.final) * share


@dataclass(frozen=True)
class EveryKSteps:
    """Apply λ in one of ``k`` steps, and 0 in the others, which then cost nothing.

    Args:
        weight: λ, or another schedule.
        k: the number of steps from one application to the next, ≥ 1.
        rescale: multiply λ by k, so that the mean of λ over k steps stays the same.

    Raises:
        ValueError: ``k`` is not positive, or λ is not finite.
        TypeError: ``weight`` is neither a number nor a function; an :class:`AutoWeight` cannot be inside a schedule.

    Example:
        >>> schedule = EveryKSteps(1.0, k=3)
        >>> [schedule(step) for step in range(5)]
        [1.0, 0.0, 0.0, 1.0, 0.0]
    """

    weight: Weight
    k: int
    rescale: bool = False

    def __post_init__(self) -> None:
        _check_inner(self.weight)
        _check_steps("k", self.k)

    def __call__(self, step: int) -> float:
        """Return λ at a step, counted from 0."""
        if step % self.k:
            return 0.0
        return _value(self.weight, step) * (self.k if self.rescale else 1)


class AutoWeight(nn.Module):
    r"""Set λ so that the gradient of the term at the layer has a chosen ratio to that of the task.

    .. math:: \lambda = \text{ratio} \cdot \|\partial L_\text{task} / \partial A\| \,/\, \|\partial L_\text{term} / \partial A\|

    λ is updated once in ``every`` calls, which costs a backward pass from the scores to the layer for the task and one per term,
    and is smoothed over the updates. Call the regularizer with ``task_loss=``. Each term has its own λ: if one object is passed
    for several terms, the first keeps it and the others get copies.

    Args:
        ratio: the ratio of the norms, > 0.
        every: the number of calls of the regularizer from one update to the next, ≥ 1.
        momentum: the share of the earlier λ that an update keeps, in [0, 1).
        maximum: the upper bound of λ, for terms whose gradient vanishes.
        sync: take the norms over the batches of all ranks of the process group, if there is one, or of the given group, so that λ
            is the same on all ranks.

    Raises:
        ValueError: an argument is out of its range.
        TypeError: an argument is not a number, or ``sync`` is of another kind.

    Example:
        >>> import torch
        >>> auto = AutoWeight(ratio=0.1, momentum=0.5)
        >>> auto.update(task=torch.tensor(3.0), term=torch.tensor(0.5))
        >>> round(auto.weight.item(), 6)  # the first update is not smoothed
        0.6
        >>> auto.update(task=torch.tensor(3.0), term=torch.tensor(1.0))
        >>> round(auto.weight.item(), 6)  # half way from 0.6 to 0.3
        0.45
    """

    weight: Tensor  #: λ, a scalar on the device

    def __init__(
        self,
        ratio: float = 0.1,
        *,
        every: int = 10,
        momentum: float = 0.9,
        maximum: float = 1000.0,
        sync: bool | ProcessGroup = True,
    ) -> None:
        super().__init__()
        _check_steps("every", every)
        for name, value in (("ratio", ratio), ("maximum", maximum), ("momentum", momentum)):
            _check_number(name, value)
        for name, value in (("ratio", ratio), ("maximum", maximum)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name}: expected a positive number, got {value}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum: expected 0 or more and less than 1, got {momentum}")
        self.ratio, self.every, self.momentum, self.maximum = ratio, every, momentum, maximum
        self._ranks = Ranks(sync)
        self.register_buffer("weight", torch.zeros(()))
        #: The number of calls of the regularizer in training.
        self.num_calls = 0

    @property
    def due(self) -> bool:
        """True if the next call updates λ."""
        return self.num_calls % self.every == 0

    @torch.no_grad()
    def update(self, task: Tensor, term: Tensor) -> None:
        """Update λ from new norms. If one of them is 0 or not finite, λ stays as it is.

        Args:
            task: ‖∂L_task/∂A‖, a scalar.
            term: ‖∂L_term/∂A‖, a scalar.
        """
        task, term = self._over_ranks(task.to(torch.float32), term.to(torch.float32))
        usable = torch.isfinite(task) & torch.isfinite(term) & (task > 0) & (term > 0)
        fresh = (self.ratio * task / term.where(usable, 1)).clamp(max=self.maximum)
        weight = self.weight.to(task.device)
        smoothed = torch.where(weight == 0, fresh, self.momentum * weight + (1 - self.momentum) * fresh)
        self.weight = torch.where(usable, smoothed, weight)

    def _over_ranks(self, task: Tensor, term: Tensor) -> tuple[Tensor, Tensor]:
        """Return the norms over the batches of all ranks.

        The objective is the mean over the W ranks, so its gradient at a rank's activations is 1/W of the rank's own:
        ‖·‖² = Σ_r ‖·‖_r² / W².
        """
        group = self._ranks.group
        if group is None:
            return task, term
        norms = torch.stack([task, term.to(task.device)]).double()  # the square of a small float32 is 0
        task, term = (total_over_ranks(norms.square(), group).sqrt() / group.size()).to(task.dtype).unbind()
        return task, term

    def get_extra_state(self) -> dict[str, int]:
        """Return the number of calls, for ``state_dict()``."""
        return {"num_calls": self.num_calls}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Restore the number of calls from a ``state_dict()``."""
        self.num_calls = state["num_calls"]

    def extra_repr(self) -> str:
        """Describe the options for ``print``."""
        return f"ratio={self.ratio}, every={self.every}, momentum={self.momentum}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = self.weight
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.weight.dtype != torch.float32:  # .half() changes the device at most
            self.weight = before.to(self.weight.device)
        return self
