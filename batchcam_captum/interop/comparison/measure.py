"""Time and peak memory of cases side by side, so that only what differs between them shows.

The rules are those of the benchmarks: each case once a round, in an order that rotates and runs backwards every other round;
medians with quartiles; ratios within a round; the device synchronised before a clock is read; Python's garbage collector between
the calls and not within them.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

Call = Callable[[], object]


@dataclass(frozen=True)
class Within:
    """A case whose hooks must not be there while others run: each round enters it, times the call, and leaves it again.

    Entering and leaving is not timed.
    """

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
        """Of at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        q1, middle, q3 = statistics.quantiles(values, n=4, method="inclusive")
        return cls(middle, q1, q3)

    @classmethod
    def exact(cls, value: float) -> Spread:
        """Of what has no spread, such as bytes."""
        return cls(value, value, value)


@dataclass(frozen=True)
class Times:
    """Seconds of each case, one entry a round."""

    seconds: dict[str, list[float]]

    @property
    def rounds(self) -> int:
        """How often each case was timed."""
        return len(next(iter(self.seconds.values()), []))

    def spread(self, case: str) -> Spread | None:
        """Of a case's seconds; None where it was not timed."""
        values = self.seconds.get(case)
        return Spread.of(values) if values else None

    def ratio(self, case: str, reference: str, *, factor: float = 1.0) -> Spread:
        """A case ÷ factor · reference: one ratio a round, of runs that stood side by side, and then their median.

        Args:
            case: name of the numerator.
            reference: name of the denominator.
            factor: of the denominator, such as the number of classes.
        """
        pairs = zip(self.seconds[case], self.seconds[reference], strict=True)
        return Spread.of([mine / (factor * other) for mine, other in pairs])


def synchronize(device: str | torch.device) -> None:
    """Wait for an accelerator; nothing on the CPU."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind != "cpu":
        torch.get_device_module(kind).synchronize()


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
    """Time several cases side by side: each once a round, in an order that rotates, and runs backwards every other round.

    So none always comes first, nor always after the same one.

    Args:
        cases: name -> case.
        device: where they run.
        rounds: how often each case is timed, at most.
        seconds: about how long it may take. The number of rounds follows from the duration of the last warm-up round, before
            anything is measured.
        least: so many rounds whatever they take.
        warm_up: rounds that are not counted, at least one.
        failed: is told of a case that raises, which is then left out, and the others go on; it must not keep the error. By
            default the error is raised.

    Returns:
        The times of the cases that never raised.
    """
    names = list(cases)
    if not names:
        return Times({})
    times: dict[str, list[float]] = {name: [] for name in names}

    def run(name: str) -> float:
        """Time it once; a case that raises is struck off, and counts as no time."""
        if name not in times:
            return 0.0
        try:
            return _timed(cases[name], device)
        except Exception as error:
            if failed is None:
                raise
            failed(name, error)
        # Here the error is gone, and its frames with all that the case had in memory.
        del times[name]
        free(device)
        return 0.0

    # What is there already is kept out of the collections, which would otherwise walk through all that the libraries have loaded.
    # Where the user has frozen something, thawing would thaw that, too.
    may_freeze = gc.get_freeze_count() == 0
    gc.collect()
    if may_freeze:
        gc.freeze()
    try:
        took = 0.0
        for _ in range(max(warm_up, 1)):
            took = sum(run(name) for name in names)
        if seconds is not None and took > 0:
            rounds = max(min(rounds, int(seconds / took)), least)
        gc.collect()
        if may_freeze:
            gc.freeze()
        for turn in range(rounds):
            shift = turn % len(names)
            order = names[shift:] + names[:shift]
            for name in order if turn % 2 == 0 else reversed(order):
                value = run(name)
                if name in times:
                    times[name].append(value)
    finally:
        if may_freeze:
            gc.unfreeze()
    return Times(times)


def _timed(case: Case, device: str | torch.device) -> float:
    with case.enter() if isinstance(case, Within) else nullcontext(case) as call:
        gc.collect()
        enabled = gc.isenabled()
        gc.disable()
        try:
            synchronize(device)
            begin = time.perf_counter()
            call()
            synchronize(device)
            return time.perf_counter() - begin
        finally:
            if enabled:
                gc.enable()


def free(device: str | torch.device) -> None:
    """Give back what a call that failed has left behind."""
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()


def peak_memory(case: Case, device: str | torch.device, *, repeats: int = 3) -> int:
    """Bytes that a case needs at most beyond what was there before it (model, inputs): median of some calls.

    On CUDA it is PyTorch's own count. On the CPU it is the resident set's maximum, which counts everything, whoever allocated
    it; right to about 0.2 MB in a process whose allocator gives back at once what is freed (:data:`GIVES_BACK`), and if a small
    call has gone before.

    Args:
        case: what is measured.
        device: where it runs.
        repeats: calls.

    Raises:
        OSError: on the CPU of a system other than Linux.
    """
    with case.enter() if isinstance(case, Within) else nullcontext(case) as call:
        return int(statistics.median(_peak(call, device) for _ in range(repeats)))


def _peak(call: Call, device: str | torch.device) -> int:
    gc.collect()
    synchronize(device)
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    Path("/proc/self/clear_refs").write_text("5")  # the maximum starts anew; Linux
    before = _resident("VmRSS")
    call()
    return _resident("VmHWM") - before


#: Settings of glibc's allocator for a process that measures memory: what is freed goes back to the kernel at once, so that the
#: resident set is what is in use.
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_TOP_PAD_": "0"}


def _resident(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(
        f"/proc/self/status: expected a line {name}, got none; memory of the CPU is measured on Linux only"
    )
