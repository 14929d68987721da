"""Does a run that is killed at any moment, and resumed, end in the same store, bit for bit?

Each round starts `explain_dataset` in a process of its own, kills it one to three times after a random number of chunks and up to
0.3 s, resumes it to its end, and compares all files with those of a run that was never stopped. Nothing else may be left beside
the store.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import Report, Spread, parser, start
from torch.utils.data import DataLoader, TensorDataset

from batchcam_captum.demo.model import SimpleCNN
from batchcam_captum.explain import explain_dataset

_IMAGES, _BATCH, _WORKERS, _CHUNKS = 2_000, 16, 2, 8
#: Of the environment of a run: the store that it writes.
_STORE = "EXPLAIN_KILLS_STORE"


def child(store: str) -> None:
    """Explain random images; the run that is killed."""
    torch.manual_seed(0)
    model = SimpleCNN().eval()
    data = TensorDataset(torch.rand(_IMAGES, 1, 28, 28), torch.arange(_IMAGES) % 10)
    explain_dataset(model, "features", DataLoader(data, batch_size=_BATCH, num_workers=_WORKERS), store)


def begin(store: Path) -> subprocess.Popen[bytes]:
    """Start a run."""
    return subprocess.Popen([sys.executable, __file__], env=os.environ | {_STORE: str(store)})


def written(store: Path) -> int:
    """Return how many chunks are written."""
    return len(list(store.glob("status/c.*[0-9]")))


def files(store: Path) -> dict[str, bytes]:
    """Return name -> content of all files but locks."""
    found = (path for path in store.rglob("*") if path.is_file() and "lock" not in path.name)
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in found}


def killed(store: Path, draw: random.Random) -> list[int]:
    """Start a run and kill it, once to three times; return how many chunks there were."""
    kills = []
    for chunks in sorted(draw.randrange(_CHUNKS) for _ in range(draw.randint(1, 3))):
        with begin(store) as process:
            while process.poll() is None and written(store) < chunks:
                time.sleep(0.002)
            time.sleep(draw.uniform(0, 0.3))
            process.kill()
        kills.append(written(store))
    return kills


def main() -> None:
    if store := os.environ.get(_STORE):
        child(store)
        return
    made = parser(__doc__, rounds=20)
    made.add_argument("--seed", type=int, default=0, help="of the moments")
    options = start(made)
    rounds = 2 if options.quick else options.rounds
    draw = random.Random(options.seed)
    report = Report("explain_kills", options, "Runs read with workers, which outlive them for a moment.")
    case = f"{rounds} runs of {_IMAGES} images, {_WORKERS} workers"
    identical, kills = 0, []
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, "whole", "store.zarr")
        assert begin(whole).wait() == 0
        expected: dict[str, Any] = files(whole)
        for number in range(rounds):
            store = Path(folder, str(number), "store.zarr")
            kills.append(killed(store, draw))
            assert begin(store).wait() == 0
            identical += files(store) == expected and os.listdir(store.parent) == ["store.zarr"]
    report.add_case(
        case, kills=sum(map(len, kills)), identical=identical, chunks=_CHUNKS, chunks_at_each_kill=kills
    )
    report.add_figure(case, "runs that differ", Spread.of([float(rounds - identical)]), reach=0)
    report.finish()


if __name__ == "__main__":
    main()
