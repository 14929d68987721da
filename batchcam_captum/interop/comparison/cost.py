"""What each library takes at each batch size: time side by side, and peak memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..peers import OURS
from .cases import NOT_MEASURED, OUT_OF_MEMORY, Work, reason_of
from .measure import free, interleaved, peak_memory
from .memory import Key, peaks_in_process
from .result import Cost, Skipped

_CALLS = 3  # the median of so many counts of memory
_LEAST = 5  # rounds, however long they take; fewer only where fewer are asked for


@dataclass(frozen=True)
class Costs:
    """What was measured, and what could not be."""

    costs: list[Cost]
    skipped: list[Skipped]


def measured(
    work: Work,
    libraries: Mapping[str, Sequence[str]],
    sizes: Sequence[int],
    repeats: int,
    seconds: float,
    memory: bool,
    tick: Callable[[str], None],
) -> Costs:
    """Measure every library that can do a method, at every batch size.

    Args:
        work: what is called.
        libraries: method -> the libraries that can do it.
        sizes: batch sizes, ascending.
        repeats: rounds of the timing at most.
        seconds: about how long the timing of one method and batch size may take.
        memory: measure the peak memory as well.
        tick: is called with what comes next.

    Returns:
        One entry a method, batch size and library, with what could be measured; and the reasons for what could not.
    """
    skipped: list[Skipped] = []
    peaks = _peaks(work, libraries, sizes, tick) if memory else {}
    costs: list[Cost] = []
    for method, names in libraries.items():
        for size in sizes:
            tick(f"time, {method}, batch {size}")
            of_size = {library: peaks.get((library, method, size)) for library in names}
            found = _timed(work, method, size, of_size, repeats, seconds)
            costs += found.costs
            skipped += found.skipped
    return Costs(costs, skipped)


def _timed(
    work: Work, method: str, size: int, peaks: Mapping[str, int | str | None], repeats: int, seconds: float
) -> Costs:
    """The libraries of one method side by side, and what was found out about their memory."""
    reasons = {library: peak for library, peak in peaks.items() if isinstance(peak, str)}
    skipped = [Skipped(method, library, reason, size) for library, reason in reasons.items()]
    # A batch that was too large for the count of memory would take this process with it.
    cases = {
        library: work.case(library, method, size)
        for library in peaks
        if not reasons.get(library, "").startswith(OUT_OF_MEMORY)
    }

    def note(library: str, error: Exception) -> None:
        skipped.append(Skipped(method, library, reason_of(error), size))

    times = interleaved(
        cases,
        work.images.device,
        rounds=repeats,
        seconds=seconds,
        least=min(_LEAST, repeats),
        failed=note,
    )
    costs = []
    for library, peak in peaks.items():
        beside = {library, OURS.name} <= times.seconds.keys()
        costs.append(
            Cost(
                method,
                library,
                size,
                seconds=times.spread(library),
                ratio_to_ours=times.ratio(library, OURS.name) if beside else None,
                rounds=len(times.seconds.get(library, [])),
                peak_bytes=peak if isinstance(peak, int) else None,
            )
        )
    return Costs(costs, skipped)


def _peaks(
    work: Work,
    libraries: Mapping[str, Sequence[str]],
    sizes: Sequence[int],
    tick: Callable[[str], None],
) -> dict[tuple[str, str, int], int | str]:
    """(library, method, batch size) -> bytes, or why there are none."""
    found: dict[tuple[str, str, int], int | str] = {}
    device = work.images.device
    names = dict.fromkeys(name for of_method in libraries.values() for name in of_method)
    for library in names:
        keys: list[Key] = [
            (method, size) for method, able in libraries.items() if library in able for size in sizes
        ]
        tick(f"memory, {library}")
        if device.type == "cpu":
            outcomes = peaks_in_process(work, library, keys)
        elif device.type == "cuda":
            outcomes = {key: _on_device(work, library, *key) for key in keys}
        else:
            outcomes = dict.fromkeys(keys, f"{NOT_MEASURED}: {device.type} does not count its peak memory")
        found |= {(library, *key): outcome for key, outcome in outcomes.items()}
    return found


def _on_device(work: Work, library: str, method: str, size: int) -> int | str:
    device = work.images.device
    try:
        # The first call pays for what stays, such as workspaces.
        peak_memory(work.case(library, method, 1), device, repeats=1)
        return peak_memory(work.case(library, method, size), device, repeats=_CALLS)
    except Exception as error:
        outcome = reason_of(error)
    free(device)
    return outcome
