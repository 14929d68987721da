"""What the benchmarks share: the command line, interleaved timing, peak memory, and the JSON that they write.

A benchmark is a script of this shape::

    options = common.start(common.parser("What does X cost?", rounds=30))
    times = common.interleaved({"bare forward": bare, "X": mine}, options)
    report = common.Report("x", options)
    report.add_case("resnet18, batch 16", times=times)
    report.add_figure("resnet18, batch 16", "X ÷ bare forward", times.ratio("X", "bare forward"), reach=1.05)
    report.finish()
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from batchcam_captum.environment import environment

RESULTS = Path(__file__).parent / "results"
#: See "The measuring contract" in README.md: blocks are neither given back to the kernel nor faulted in again.
PINNED = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}
#: The opposite, for measuring memory: what is freed goes back at once, so that the resident set is what is in use.
UNPINNED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_TOP_PAD_": "0"}
PEERS = ("grad-cam", "torchcam", "timm", "torchvision")

Call = Callable[[], object]


@dataclass(frozen=True)
class Within:
    """A case whose hooks must not be there while others run: each round enters it, times the call, and leaves it again.

    Entering and leaving is not timed.
    """

    enter: Callable[[], AbstractContextManager[Call]]


Case = Call | Within


def parser(question: str, *, rounds: int, seconds: float = 60.0) -> argparse.ArgumentParser:
    """The options that every benchmark has.

    Args:
        question: what the script answers.
        rounds: how often each case is timed at most.
        seconds: about how long one comparison may take; large cells get fewer rounds, at least five.
    """
    made = argparse.ArgumentParser(
        description=question, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    made.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, …")
    made.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch, on the CPU")
    made.add_argument("--rounds", type=int, default=rounds, help="how often each case is timed at most")
    made.add_argument("--seconds", type=float, default=seconds, help="about how long one comparison may take")
    made.add_argument(
        "--output", type=Path, help="JSON file; without it results/NAME-DEVICE.json, with --quick none"
    )
    made.add_argument(
        "--quick", action="store_true", help="the smallest case and two rounds: does the script run?"
    )
    made.add_argument("--check", action="store_true", help="exit with 1 if a figure is missed")
    made.add_argument(
        "--default-allocator",
        action="store_true",
        help="leave the C allocator as it is: what users meet, but page faults move the ratios from run to run",
    )
    made.add_argument(
        "--peak", help=argparse.SUPPRESS
    )  # a child that measures the memory of one case, as JSON
    return made


def start(made: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the options, pin the allocator by starting again with its settings, and set threads and seed."""
    options = made.parse_args()
    if options.quick:
        options.rounds, options.seconds = 2, 0.0
    wanted = {"OMP_NUM_THREADS": str(options.threads)}
    if not (options.peak or options.default_allocator):
        wanted |= {name: os.environ.get(name, value) for name, value in PINNED.items()}
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        # The C library reads them when the process starts.
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | wanted)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    return options


def synchronize(device: str | torch.device) -> None:
    """Wait for a GPU; nothing on the CPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


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
        return len(next(iter(self.seconds.values())))

    def ratio(self, case: str, reference: str, *, factor: float = 1.0) -> Spread:
        """A case ÷ factor · reference: one ratio a round, of runs that stood side by side, and then their median.

        Args:
            case: name of the numerator.
            reference: name of the denominator.
            factor: of the denominator, such as the number of classes.
        """
        pairs = zip(self.seconds[case], self.seconds[reference], strict=True)
        return Spread.of([mine / (factor * other) for mine, other in pairs])


def interleaved(cases: Mapping[str, Case], options: argparse.Namespace, *, warm_up: int = 1) -> Times:
    """Time several cases side by side: each once a round, in an order that rotates, and runs backwards every other round.

    So none always comes first, nor always after the same one.

    The number of rounds follows from the duration of the last warm-up round, before anything is measured. Python's garbage
    collector runs between the calls and not within them, as in :mod:`timeit`.

    Args:
        cases: name -> case.
        options: of :func:`parser`.
        warm_up: rounds that are not counted.
    """
    names = list(cases)
    took = 0.0
    for _ in range(max(warm_up, 1)):
        took = sum(_timed(case, options.device) for case in cases.values())
    rounds = options.rounds
    if not options.quick:
        rounds = max(min(rounds, int(options.seconds / took)), 5)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.freeze()  # or every collection would walk through all that the libraries have loaded
    try:
        for turn in range(rounds):
            shift = turn % len(names)
            order = names[shift:] + names[:shift]
            for name in order if turn % 2 == 0 else reversed(order):
                seconds[name].append(_timed(cases[name], options.device))
    finally:
        gc.unfreeze()
    return Times(seconds)


def _timed(case: Case, device: str) -> float:
    with case.enter() if isinstance(case, Within) else nullcontext(case) as call:
        gc.collect()
        gc.disable()
        try:
            synchronize(device)
            begin = time.perf_counter()
            call()
            synchronize(device)
            return time.perf_counter() - begin
        finally:
            gc.enable()


def peak_memory(case: Case, device: str, *, repeats: int = 3) -> int:
    """Bytes that a case needs at most beyond what was there before it (model, inputs): median of some calls.

    On the CPU it is the resident set's maximum, which counts everything, whoever allocated it; right to about 0.2 MB if the
    process was started by :func:`peak_in_child` and a small call has gone before.

    Args:
        case: what is measured.
        device: where it runs.
        repeats: calls.
    """
    with case.enter() if isinstance(case, Within) else nullcontext(case) as call:
        return int(statistics.median(_peak(call, device) for _ in range(repeats)))


def _peak(call: Call, device: str) -> int:
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


def peak_in_child(options: argparse.Namespace, case: Mapping[str, Any]) -> int:
    """Have a process of its own, whose allocator is not pinned, measure the memory of one case.

    The child is this script with ``--peak``, whose value is the case as JSON; it prints the result of :func:`peak_memory`.

    Args:
        options: of this process.
        case: what the script needs to know.
    """
    return peaks_in_child(options, case)[-1]


def peaks_in_child(options: argparse.Namespace, case: Mapping[str, Any]) -> list[int]:
    """Like :func:`peak_in_child`, of a child that prints several numbers, one a line.

    Args:
        options: of this process.
        case: what the script needs to know.
    """
    command = [sys.executable, sys.argv[0], "--peak", json.dumps(case), "--threads", str(options.threads)]
    done = subprocess.run(command, env=os.environ | UNPINNED, stdout=subprocess.PIPE, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


def _resident(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status: expected a line {name}, got none; memory is measured on Linux only")


class Report:
    """Collects cases and figures, prints them as they come, and writes them as JSON.

    Args:
        name: of the benchmark; names the file.
        options: of :func:`parser`.
        notes: sentences on what the numbers mean, kept with them.
    """

    def __init__(self, name: str, options: argparse.Namespace, *notes: str) -> None:
        self.name, self.options, self.notes = name, options, list(notes)
        self.cases: list[dict[str, Any]] = []
        self.figures: list[dict[str, Any]] = []

    def add_case(self, name: str, *, times: Times | None = None, **facts: Any) -> None:
        """Note what was measured.

        Args:
            name: of the case, such as ``"resnet18, batch 16"``.
            times: its seconds.
            facts: whatever else belongs to it.
        """
        case: dict[str, Any] = {"case": name, **facts}
        if times is not None:
            case["rounds"] = times.rounds
            case["seconds"] = {name: vars(Spread.of(values)) for name, values in times.seconds.items()}
        self._write(complete=False)  # the case before, with its figures
        self.cases.append(case)
        print(f"{name}:", file=sys.stderr)
        for label, spread in case.get("seconds", {}).items():
            print(f"    {label:<28} {1000 * spread['median']:10.2f} ms", file=sys.stderr)

    def add_figure(self, case: str, figure: str, value: Spread, *, reach: float | None) -> None:
        """Note a ratio and how it stands to what it is to reach.

        Args:
            case: which case it belongs to.
            figure: its name, such as ``"attribute ÷ bare forward"``.
            value: the ratio.
            reach: at most this; None: for information.
        """
        reached = None if reach is None else value.median <= reach
        self.figures.append(
            {"case": case, "figure": figure, "value": value.median, "q1": value.q1, "q3": value.q3}
            | {"reach": reach, "reached": reached}
        )
        verdict = "" if reach is None else f"  ≤ {reach:g}: {'reached' if reached else 'MISSED'}"
        print(
            f"    {figure:<44} {_shown(value.median):>8} [{_shown(value.q1)}, {_shown(value.q3)}]{verdict}",
            file=sys.stderr,
        )

    def finish(self) -> None:
        """Write the JSON, and leave with 1 where ``--check`` is given and a figure is missed."""
        path = self._write(complete=True)
        missed = sum(figure["reached"] is False for figure in self.figures)
        print(f"{missed} of {len(self.figures)} figures missed; written to {path}", file=sys.stderr)
        sys.exit(1 if missed and self.options.check else 0)

    def _write(self, *, complete: bool) -> Path | None:
        """The JSON as far as it goes; None where none is wanted."""
        options = self.options
        if options.quick and options.output is None:
            return None
        kind = torch.device(options.device).type
        name = f"{self.name}-default-allocator-{kind}" if options.default_allocator else f"{self.name}-{kind}"
        hidden = ("output", "check", "peak")
        record = {
            "benchmark": self.name,
            "settings": {name: value for name, value in vars(options).items() if name not in hidden},
            "environment": self._environment(),
            "notes": self.notes,
            "cases": self.cases,
            "figures": self.figures,
            "missed": sum(figure["reached"] is False for figure in self.figures),
        }
        # A run that is cut short leaves what it has measured, beside the last whole one.
        path = options.output or RESULTS / f"{name}.json"
        partial = path.with_suffix(".partial.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return partial.replace(path) if complete else partial

    def _environment(self) -> dict[str, Any]:
        device = torch.device(self.options.device)
        found = environment(device)
        if device.type == "cuda":
            capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
            found |= {
                "cuda": torch.version.cuda,
                "cudnn": torch.backends.cudnn.version(),
                "capability": capability,
            }
            found["driver"] = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
            found["tf32"] = {
                "convolutions": torch.backends.cudnn.allow_tf32,
                "products": torch.backends.cuda.matmul.allow_tf32,
            }
        found["libc"] = " ".join(platform.libc_ver())
        found["peers"] = {name: _version(name) for name in PEERS}
        found["date"] = datetime.now(UTC).isoformat(timespec="seconds")
        found["commit"] = _output("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty")
        return found


def _shown(value: float) -> str:
    """Three digits after the point; of less than that, two that mean something."""
    return f"{value:.3f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    """The first line that a command prints; None where it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.partition("\n")[0].strip() or None
