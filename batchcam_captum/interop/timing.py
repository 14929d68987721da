"""Time and peak memory of calls side by side, by the rules of the benchmarks' measuring contract.

Each case runs once per round, in an order that rotates and is reversed every other round; ratios are taken within a round; the
device is synchronized around each call; Python's garbage collector runs between the rounds only.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

Call = Callable[[], object]


@dataclass(frozen=True)
class Within:
    """A case with a context of its own, such as another library's hooks: entered and left around each call, untimed."""

    enter: Callable[[], AbstractContextManager[Call]]


Case = Call | Within


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles."""

    median: float
    q1: float
    q3: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Summarize at least one value."""
        if len(values) == 1:
            return cls.exact(values[0])
        q1, middle, q3 = statistics.quantiles(values, n=4, method="inclusive")
        return cls(middle, q1, q3)

    @classmethod
    def exact(cls, value: float) -> Spread:
        """Wrap a value without spread, such as a number of bytes."""
        return cls(value, value, value)


@dataclass(frozen=True)
class Times:
    """The seconds of each case, one entry per round."""

    seconds: dict[str, list[float]]

    @property
    def rounds(self) -> int:
        """The number of times that each case was timed."""
        return len(next(iter(self.seconds.values()), []))

    def spread(self, case: str) -> Spread | None:
        """Summarize a case's seconds; None if it was not timed."""
        values = self.seconds.get(case)
        return Spread.of(values) if values else None

    def ratio(self, case: str, reference: str, *, factor: float = 1.0) -> Spread:
        """Summarize case ÷ (factor · reference), with one ratio per round.

        Args:
            case: name of the numerator.
            reference: name of the denominator.
            factor: multiplies the denominator, such as the number of classes.
        """
        pairs = zip(self.seconds[case], self.seconds[reference], strict=True)
        return Spread.of([mine / (factor * other) for mine, other in pairs])


def synchronize(device: str | torch.device) -> None:
    """Wait for an accelerator; do nothing on the CPU."""
    if torch.device(device).type != "cpu":
        torch.get_device_module(torch.device(device)).synchronize()


def interleaved(
    cases: Mapping[str, Case],
    device: str | torch.device,
    *,
    rounds: int,
    seconds: float | None = None,
    least: int = 5,
    warm_up: int = 1,
    failed: Callable[[str, Exception], None] | None = None,
) -> Times:
    """Time several cases side by side.

    Args:
        cases: name -> case.
        device: where they run.
        rounds: the maximum number of timed rounds.
        seconds: the approximate limit of the whole measurement. The number of rounds follows from the last warm-up round.
        least: the minimum number of rounds, whatever they take.
        warm_up: rounds that are not counted, at least one.
        failed: called with a case that raises and its error; the case is left out and the others go on. By default the error
            is raised.

    Returns:
        The times of the cases that never raised.
    """
    times: dict[str, list[float]] = {name: [] for name in cases}

    def run(name: str) -> float | None:
        try:
            return _timed(cases[name], device)
        except Exception as error:
            if failed is None:
                raise
            failed(name, error)
        # Outside of the handler, which keeps the tensors of the failed call alive.
        del times[name]
        free(device)
        return None

    collects, frozen = gc.isenabled(), gc.get_freeze_count() > 0
    gc.collect()
    gc.disable()
    if not frozen:  # keeps what the libraries have loaded out of the collections, which are slow otherwise
        gc.freeze()
    try:
        took = 0.0
        for _ in range(max(warm_up, 1)):
            took = sum(run(name) or 0.0 for name in list(times))
        if seconds is not None and took > 0:
            rounds = max(min(rounds, int(seconds / took)), least)
        for turn in range(rounds):
            gc.collect()
            names = list(times)
            shift = turn % max(len(names), 1)
            order = names[shift:] + names[:shift]
            for name in order if turn % 2 == 0 else reversed(order):
                elapsed = run(name)
                if elapsed is not None:
                    times[name].append(elapsed)
    finally:
        if not frozen:
            gc.unfreeze()
        if collects:
            gc.enable()
    return Times(times)


def _timed(case: Case, device: str | torch.device) -> float:
    with case.enter() if isinstance(case, Within) else nullcontext(case) as call:
        synchronize(device)
        begin = time.perf_counter()
        call()
        synchronize(device)
        return time.perf_counter() - begin


def free(device: str | torch.device) -> None:
    """Release the memory of a call that failed."""
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()


def peak_memory(case: Case, device: str | torch.device, *, repeats: int = 3) -> int:
    """Measure the bytes that a call allocates on a CUDA device at most; the median of some calls, after one that warms up."""
    with case.enter() if isinstance(case, Within) else nullcontext(case) as call:
        return int(statistics.median([_peak(call, device) for _ in range(1 + repeats)][1:]))


def _peak(call: Call, device: str | torch.device) -> int:
    gc.collect()
    synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
