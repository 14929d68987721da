"""Killed at random moments and called again: is the store, byte for byte, that of a run that was never stopped?

A run is a process of its own that is ended by SIGKILL and then started again to its end. ``--when``

* ``any``: once to three times after a random number of chunks and up to 0.3 s;
* ``workers``: likewise, once or twice, with two workers of the loader, which outlive the killed process for a moment;
* ``phases``: right before one of the things that it does to the disk while it makes the store, or while it notes that it is
  complete, in turns.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any

import torch
from common import Report, Spread, parser, start
from torch.utils.data import DataLoader, TensorDataset

from batchcam_captum.demo.model import SimpleCNN
from batchcam_captum.explain import explain_dataset, open_store
from batchcam_captum.explain.layout import chunk_size

_BATCH = 16
_CHUNK = chunk_size(_BATCH, (1, 1, 1), "float32")
#: Python tells of each before it is done.
_CHANGES = frozenset(("os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod"))
MAKING, FINISHING = "making", "finishing"


@dataclass(frozen=True)
class Kind:
    """What is killed."""

    images: int
    workers: int = 0
    most: int = 1  #: how often a run is killed at most

    @property
    def chunks(self) -> int:
        """Of the store."""
        return ceil(self.images / _CHUNK)


KINDS = {"any": Kind(6000, most=3), "workers": Kind(3000, workers=2, most=2), "phases": Kind(600)}


def child(store: Path, kind: Kind, stop: tuple[str, int] | None) -> dict[str, int]:
    """Explain, as often as this is called.

    Args:
        store: where.
        kind: of what.
        stop: kill this process right before it changes the disk in this phase for so many times, counted from 1.

    Returns:
        How often it has changed the disk in each phase.
    """
    torch.manual_seed(0)
    model = SimpleCNN().eval()
    data = TensorDataset(torch.rand(kind.images, 1, 28, 28), torch.arange(kind.images) % 10)
    found: Counter[str] = Counter()
    own = os.getpid()

    def told(event: str, arguments: tuple[Any, ...]) -> None:
        if (
            not changes(event, arguments)
            or os.getpid() != own
            or store.parent not in Path(arguments[0]).parents
        ):
            return
        phase = MAKING
        if (store / "zarr.json").exists():
            phase = FINISHING if written(store) == kind.chunks else ""
        found[phase] += 1
        if stop == (phase, found[phase]):
            os.kill(own, signal.SIGKILL)

    sys.addaudithook(told)
    explain_dataset(model, "features", DataLoader(data, batch_size=_BATCH, num_workers=kind.workers), store)
    return dict(found)


def changes(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether an audit event is a change of the disk, by a path."""
    if event == "open":
        writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        return bool(writes) and isinstance(arguments[0], str | os.PathLike)
    return event in _CHANGES and isinstance(arguments[0], str | os.PathLike)


def written(store: Path) -> int:
    """How many chunks are marked as written."""
    return len(list(store.glob("status/c.*[0-9]")))


def digest(store: Path) -> str:
    """Of all files but locks, with their names."""
    found = hashlib.sha256()
    for path in sorted(path for path in store.rglob("*") if path.is_file() and "lock" not in path.name):
        found.update(f"{path.relative_to(store)}\0".encode())
        found.update(path.read_bytes())
    return found.hexdigest()


def command(
    store: Path, kind: Kind, options: argparse.Namespace, stop: tuple[str, int] | None = None
) -> list[str]:
    """Of a run."""
    case = json.dumps({"store": str(store), "kind": asdict(kind), "stop": stop})
    return [sys.executable, __file__, "--peak", case, "--threads", str(options.threads)]


def to_its_end(store: Path, kind: Kind, options: argparse.Namespace) -> dict[str, int]:
    """Run what is left; how often the disk was changed in each phase."""
    done = subprocess.run(command(store, kind, options), check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, int] = json.loads(done.stdout)
    return found


def killed_in_time(
    store: Path, kind: Kind, options: argparse.Namespace, moments: list[tuple[int, float]]
) -> list[dict[str, Any]]:
    """Start, and kill at each of the moments.

    Args:
        store: where.
        kind: of what.
        options: of this process.
        moments: after how many chunks are marked as written, and how many seconds later, a run is killed.

    Returns:
        Of each kill the share of the samples that were written, and how many processes outlived it; a run that ended before is
        none.
    """
    kills = []
    for chunks, later in moments:
        process = subprocess.Popen(command(store, kind, options), stdout=subprocess.DEVNULL)
        while process.poll() is None and written(store) < chunks:
            time.sleep(0.002)
        time.sleep(later)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills.append({"written": share(store), "outlived by": outliving(store)})
    return kills


def killed_in_phase(
    store: Path, kind: Kind, options: argparse.Namespace, phase: str, number: int
) -> list[dict[str, Any]]:
    """Start, and have the run kill itself before a change of the disk; see :func:`child` and :func:`killed_in_time`."""
    done = subprocess.run(
        command(store, kind, options, (phase, number)), stdout=subprocess.DEVNULL, check=False
    )
    if done.returncode != -signal.SIGKILL:
        return []
    return [{"written": share(store), "phase": phase, "change": number}]


def share(store: Path) -> float:
    """Of the samples that are written."""
    return float((open_store(store).status[:] > 0).mean()) if (store / "zarr.json").exists() else 0.0


def outliving(store: Path) -> int:
    """How many processes of a run there are: workers do not see at once that it is gone."""
    found = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            found += str(store).encode() in path.read_bytes()
    return found


def main() -> None:
    made = parser(__doc__, rounds=20)
    made.add_argument("--seed", type=int, default=0, help="of the moments")
    made.add_argument("--when", choices=tuple(KINDS), default="any", help="what is killed, and when")
    options = start(made)
    if options.peak:
        case = json.loads(options.peak)
        stop = None if case["stop"] is None else tuple(case["stop"])
        print(json.dumps(child(Path(case["store"]), Kind(**case["kind"]), stop)))
        return
    kind, rounds = KINDS[options.when], 2 if options.quick else options.rounds
    report = Report("explain_kills" if options.when == "any" else f"explain_kills-{options.when}", options)
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, "whole", "store.zarr")
        done = to_its_end(whole, kind, options)
        expected, identical, kills = digest(whole), 0, []
        for number in range(rounds):
            store = Path(folder, str(number), "store.zarr")
            if options.when == "phases":
                phase = (MAKING, FINISHING)[number % 2]
                kills.append(killed_in_phase(store, kind, options, phase, draw.randint(1, done[phase])))
            else:
                times = [
                    (draw.randrange(kind.chunks), draw.uniform(0, 0.3))
                    for _ in range(draw.randint(1, kind.most))
                ]
                kills.append(killed_in_time(store, kind, options, sorted(times)))
            to_its_end(store, kind, options)
            left = sorted(path.name for path in store.parent.iterdir())
            identical += digest(store) == expected and left == ["store.zarr"]
            print(f"{number}: {kills[-1]}", file=sys.stderr)
    case = (
        f"{rounds} runs of {kind.images} images"
        + {
            "any": "",
            "workers": ", two workers",
            "phases": ", killed while making or finishing the store",
        }[options.when]
    )
    report.add_case(
        case,
        kills=sum(map(len, kills)),
        identical=identical,
        chunks=kind.chunks,
        changes=done,
        at_the_kills=kills,
    )
    report.add_figure(case, "runs that differ", Spread.of([float(rounds - identical)]), reach=0)
    report.finish()


if __name__ == "__main__":
    main()
