"""λ over the steps: constant, warm-up, cosine, every k steps, or set by the gradients.

A schedule is a function of how often :meth:`CamRegularizer.step` was called; any function will do. These can be pickled, copied
and compared, and have nothing to save: the regularizer saves the steps. Only :class:`AutoWeight` has a state.
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

#: λ of a term: a number, a function of the steps, or an :class:`AutoWeight`.
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
            f"weight: expected a number or a function of the steps inside a schedule, got {kind}; give it to the regularizer "
            f"itself"
        )
    if not callable(weight):
        _check_number("weight", weight)


def _value(weight: Weight, step: int) -> float:
    return weight(step) if callable(weight) else weight


@dataclass(frozen=True)
class LinearWarmup:
    """From ``start`` to ``weight`` in equal steps, then constant.

    Args:
        weight: λ from step ``steps`` on; or another schedule, which is multiplied by the ramp from 0 to 1.
        steps: how long the ramp is, ≥ 1.
        start: λ at step 0, where ``weight`` is a number.

    Raises:
        ValueError: ``steps`` is not positive, a number is not finite, or ``start`` is given with another schedule.
        TypeError: a weight of another kind, among them an :class:`AutoWeight`, which stands alone.

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
        """λ at a step, counted from 0."""
        share = min(step / self.steps, 1.0)
        return self.start * (1 - share) + share * _value(self.weight, step)


@dataclass(frozen=True)
class Cosine:
    """From ``weight`` to ``final`` along half a cosine, then constant (Loshchilov and Hutter 2017, eq. 5, without restarts).

    Args:
        weight: λ at step 0.
        steps: how long it takes, ≥ 1.
        final: λ from step ``steps`` on.

    Raises:
        ValueError: ``steps`` is not positive, or a number is not finite.
        TypeError: no number, such as another schedule: a warm-up goes around it, ``LinearWarmup(Cosine(…), steps)``.

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
        remedy = "; another schedule goes around it: LinearWarmup(Cosine(…), steps)"
        _check_number("weight", self.weight, remedy if callable(self.weight) else "")
        _check_number("final", self.final)

    def __call__(self, step: int) -> float:
        """λ at a step, counted from 0."""
        share = (1 + math.cos(math.pi * min(step / self.steps, 1.0))) / 2
        return self.final + (self.weight - self.final) * share


@dataclass(frozen=True)
class EveryKSteps:
    """λ in one step of ``k``, and 0 in the others, which then cost nothing.

    Args:
        weight: λ, or another schedule.
        k: how many steps from one to the next, ≥ 1.
        rescale: multiply by k, so that the term weighs as much over k steps as it would in every one.

    Raises:
        ValueError: ``k`` is not positive, or λ is not finite.
        TypeError: a weight of another kind, among them an :class:`AutoWeight`, which stands alone.

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
        """λ at a step, counted from 0."""
        if step % self.k:
            return 0.0
        return _value(self.weight, step) * (self.k if self.rescale else 1)


class AutoWeight(nn.Module):
    r"""λ set so that the term's gradient at the layer has a chosen ratio to the task's.

    .. math:: \lambda = \text{ratio} \cdot \|\partial L_\text{task} / \partial A\| \,/\, \|\partial L_\text{term} / \partial A\|

    The norms are taken anew every so many calls, which costs a backward from the scores to the layer for the task and one for
    each term; in between λ stays. It is smoothed over the updates. Call the regularizer with ``task_loss=``. Each term has a λ of
    its own, also where one object is given for several: the first keeps it, the others get copies.

    Args:
        ratio: of the norms, > 0.
        every: calls of the regularizer from one update to the next, ≥ 1.
        momentum: how much of the earlier λ an update keeps, 0 ≤ momentum < 1.
        maximum: λ goes no higher, however small the term's gradient becomes.
        sync: whether the norms are those over the batches of all ranks of the process group, if there is one, so that λ is the
            same on each; or over which group.

    Raises:
        ValueError: an argument out of its range.
        TypeError: an argument that is no number, or ``sync`` of another kind.

    Example:
        >>> import torch
        >>> auto = AutoWeight(ratio=0.1, momentum=0.5)
        >>> auto.update(task=torch.tensor(3.0), term=torch.tensor(0.5))
        >>> round(auto.weight.item(), 6)  # the first update counts whole
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
        #: How often λ was asked for in training.
        self.num_calls = 0

    @property
    def due(self) -> bool:
        """Whether the next call takes the norms."""
        return self.num_calls % self.every == 0

    @torch.no_grad()
    def update(self, task: Tensor, term: Tensor) -> None:
        """Take new norms. Where one of them is 0 or not finite λ stays as it is.

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
        """The norms over the batches of all ranks.

        The objective is the mean over the W ranks, so that its gradient at a rank's activations is a W-th of the rank's own:
        ‖·‖² = Σ_r ‖·‖_r² / W².
        """
        group = self._ranks.group
        if group is None:
            return task, term
        norms = torch.stack([task, term.to(task.device)]).double()  # or a square may vanish
        task, term = (total_over_ranks(norms.square(), group).sqrt() / group.size()).to(task.dtype).unbind()
        return task, term

    def get_extra_state(self) -> dict[str, int]:
        """What ``state_dict()`` holds beside λ."""
        return {"num_calls": self.num_calls}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Take it from a ``state_dict()``."""
        self.num_calls = state["num_calls"]

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"ratio={self.ratio}, every={self.every}, momentum={self.momentum}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = self.weight
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.weight.dtype != torch.float32:  # .half(): the device may change, the precision may not
            self.weight = before.to(self.weight.device)
        return self
