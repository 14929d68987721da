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
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from batchcam_captum.environment import environment, first_line_of, version_of
from batchcam_captum.interop import timing
from batchcam_captum.interop.timing import Call, Case, Spread, Times, Within, synchronize

#: What the scripts import from here. The package has the timing, as ``batchcam compare`` uses it too.
__all__ = [
    "PEERS",
    "PINNED",
    "RESULTS",
    "Call",
    "Case",
    "Report",
    "Spread",
    "Times",
    "Within",
    "commit",
    "interleaved",
    "parser",
    "peak_in_child",
    "peak_memory",
    "peaks_in_child",
    "set_tf32",
    "set_up_process",
    "start",
    "synchronize",
]

RESULTS = Path(__file__).parent / "results"
#: See "The measuring contract" in docs/evidence/benchmarks.md: blocks are neither given back to the kernel nor faulted in again.
PINNED = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}
PEERS = ("grad-cam", "torchcam", "timm", "torchvision")


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
        "--output", type=Path, help="JSON file; without it NAME-DEVICE.json in --results, with --quick none"
    )
    made.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    made.add_argument(
        "--resume",
        action="store_true",
        help="keep the cases of a run that was cut off, if it was of this commit and device, with these settings",
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
    set_up_process(options.threads, pinned=not (options.peak or options.default_allocator))
    torch.manual_seed(0)
    return options


def set_up_process(threads: int, *, pinned: bool = True) -> None:
    """Set the threads, and pin the allocator by starting again with its settings.

    Args:
        threads: of torch, on the CPU.
        pinned: False leaves the allocator as it is.
    """
    wanted = {"OMP_NUM_THREADS": str(threads)}
    if pinned:
        wanted |= {name: os.environ.get(name, value) for name, value in PINNED.items()}
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        # The C library reads them when the process starts.
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | wanted)
    torch.set_num_threads(threads)


def set_tf32(allowed: bool) -> None:
    """Allow or forbid TF32 for float32 products and convolutions on a GPU; PyTorch's default is convolutions only."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def interleaved(
    cases: Mapping[str, Case],
    options: argparse.Namespace,
    *,
    warm_up: int = 1,
    failed: Callable[[str, Exception], None] | None = None,
) -> Times:
    """Time several cases side by side, see :func:`batchcam_captum.interop.timing.interleaved`.

    Args:
        cases: name -> case.
        options: of :func:`parser`.
        warm_up: rounds that are not counted.
        failed: is told of a case that raises, which is then left out; by default the error is raised.
    """
    seconds = None if options.quick else options.seconds
    return timing.interleaved(
        cases, options.device, rounds=options.rounds, seconds=seconds, warm_up=warm_up, failed=failed
    )


#: Settings of glibc's allocator for a process that measures memory: freed blocks return to the kernel at once.
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_TOP_PAD_": "0"}


def peak_memory(case: Case, device: str | torch.device, *, repeats: int = 3) -> int:
    """Measure the bytes that a call needs beyond what is there before it; the median of some calls.

    On CUDA this is PyTorch's own count. On the CPU it is the maximum of the resident memory, which counts every library's
    memory: right to 0.2 MB in a process with :data:`GIVES_BACK`, after a smaller call.

    Raises:
        OSError: a CPU without ``/proc``.
    """
    if torch.device(device).type == "cuda":
        return timing.peak_memory(case, device, repeats=repeats)
    with case.enter() if isinstance(case, Within) else nullcontext(case) as call:
        return int(statistics.median(_peak_on_cpu(call) for _ in range(repeats)))


def _peak_on_cpu(call: Call) -> int:
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the maximum
    before = _resident("VmRSS")
    call()
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(
        f"/proc/self/status: expected a line {name}, got none; CPU memory is measured on Linux only"
    )


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
    done = subprocess.run(command, env=os.environ | GIVES_BACK, stdout=subprocess.PIPE, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


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
        self._resume()

    def has(self, case: str) -> bool:
        """Whether a run that was cut off has left this case."""
        return any(found["case"] == case for found in self.cases)

    def drop(self, *cases: str) -> None:
        """Forget cases and their figures, before they are measured again."""
        self.cases = [found for found in self.cases if found["case"] not in cases]
        self.figures = [figure for figure in self.figures if figure["case"] not in cases]

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
        path = self._path()
        if path is None:
            return None
        record = {
            "benchmark": self.name,
            "settings": self._settings(),
            "environment": self._environment(),
            "notes": self.notes,
            "cases": self.cases,
            "figures": self.figures,
            "missed": sum(figure["reached"] is False for figure in self.figures),
        }
        # A run that is cut short leaves what it has measured, beside the last whole one.
        partial = path.with_suffix(".partial.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return partial.replace(path) if complete else partial

    def _path(self) -> Path | None:
        """Of the JSON; None where none is wanted."""
        options = self.options
        if options.output is not None or options.quick:
            return options.output
        kind = torch.device(options.device).type
        name = f"{self.name}-default-allocator-{kind}" if options.default_allocator else f"{self.name}-{kind}"
        return Path(options.results) / f"{name}.json"

    def _settings(self) -> dict[str, Any]:
        hidden = ("output", "results", "resume", "check", "peak")
        return {name: value for name, value in vars(self.options).items() if name not in hidden}

    def _resume(self) -> None:
        """Take over what was measured before a run was cut off."""
        path = self._path()
        if not self.options.resume or path is None or not path.with_suffix(".partial.json").exists():
            return
        record = json.loads(path.with_suffix(".partial.json").read_text(encoding="utf-8"))
        here, there = self._environment(), record["environment"]
        same = all(here[key] == there[key] for key in ("commit", "device_name", "torch", "peers"))
        if same and record["settings"] == json.loads(json.dumps(self._settings())):
            self.cases, self.figures = record["cases"], record["figures"]
            print(f"{len(self.cases)} cases were measured before", file=sys.stderr)

    def _environment(self) -> dict[str, Any]:
        found = environment(torch.device(self.options.device))
        found["libc"] = " ".join(platform.libc_ver())
        found["peers"] = {name: version_of(name) for name in PEERS}
        found["date"] = datetime.now(UTC).isoformat(timespec="seconds")
        found["commit"] = commit()
        return found


def commit() -> str | None:
    """Of the code that runs: what the variable BATCHCAM_COMMIT says, or else git; new results do not make it dirty."""
    if os.environ.get("BATCHCAM_COMMIT"):
        return os.environ["BATCHCAM_COMMIT"]
    git = ("git", "-C", str(Path(__file__).parents[1]))
    found = first_line_of(*git, "describe", "--always")
    changed = ("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results", ":!docs")
    return f"{found}-dirty" if found and first_line_of(*git, *changed) else found


def _shown(value: float) -> str:
    """Three digits after the point; of less than that, two that mean something."""
    return f"{value:.3f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}"
