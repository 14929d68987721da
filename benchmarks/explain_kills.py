"""Killed at random moments and called again: is the store, byte for byte, that of a run that was never stopped?

A run is a process of its own that is ended by SIGKILL after a random number of chunks and up to 0.3 s, once to three times, and
then started again to its end.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import Report, Spread, parser, start
from torch.utils.data import DataLoader, TensorDataset

from batchcam_captum.demo.model import SimpleCNN
from batchcam_captum.explain import explain_dataset, open_store

_IMAGES, _BATCH = 6000, 16


def child(store: str, threads: int) -> None:
    """Explain, as often as this is called."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = SimpleCNN().eval()
    data = TensorDataset(torch.rand(_IMAGES, 1, 28, 28), torch.arange(_IMAGES) % 10)
    explain_dataset(model, "features", DataLoader(data, batch_size=_BATCH), store)


def digest(store: Path) -> str:
    """Of all files, with their names."""
    found = hashlib.sha256()
    for path in sorted(path for path in store.rglob("*") if path.is_file()):
        found.update(f"{path.relative_to(store)}\0".encode())
        found.update(path.read_bytes())
    return found.hexdigest()


def killed_and_resumed(
    store: Path, options: argparse.Namespace, moments: list[tuple[int, float]]
) -> list[float]:
    """Start, kill at each of the moments, and let the last run end.

    Args:
        store: where.
        options: of this process.
        moments: after how many chunks are marked as written, and how many seconds later, a run is killed.

    Returns:
        The shares of the samples that were written at the kills; a run that ended before is none.
    """
    command = [sys.executable, __file__, "--peak", str(store), "--threads", str(options.threads)]
    shares = []
    for chunks, later in moments:
        process = subprocess.Popen(command)
        while process.poll() is None and len(list((store / "status").glob("c/*"))) < chunks:
            time.sleep(0.002)
        time.sleep(later)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
            shares.append(float((open_store(store).status[:] > 0).mean()) if store.exists() else 0.0)
    subprocess.run(command, check=True)
    return shares


def main() -> None:
    made = parser(__doc__, rounds=20)
    made.add_argument("--seed", type=int, default=0, help="of the moments")
    options = start(made)
    if options.peak:
        child(options.peak, options.threads)
        return
    rounds = 2 if options.quick else options.rounds
    report = Report("explain_kills", options)
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, "whole.zarr")
        killed_and_resumed(whole, options, [])
        chunks = len(list((whole / "status").glob("c/*")))
        expected, identical, shares = digest(whole), 0, []
        for number in range(rounds):
            store = Path(folder, f"{number}.zarr")
            times = sorted(
                (moments.randrange(chunks), moments.uniform(0, 0.3)) for _ in range(moments.randint(1, 3))
            )
            written = killed_and_resumed(store, options, times)
            shares.append(written)
            identical += digest(store) == expected
            print(f"{number}: killed after {[f'{share:.0%}' for share in written]}", file=sys.stderr)
    case = f"{rounds} runs of {_IMAGES} images"
    kills = sum(map(len, shares))
    report.add_case(case, kills=kills, identical=identical, chunks=chunks, written_at_the_kills=shares)
    report.add_figure(case, "runs that differ", Spread.of([float(rounds - identical)]), reach=0)
    report.finish()


if __name__ == "__main__":
    main()
