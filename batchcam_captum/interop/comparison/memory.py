"""Peak memory of calls on the CPU, in a process of its own for each library.

The resident set counts whatever takes memory, NumPy and oneDNN included, but only where the allocator gives back at once what is
freed does its maximum tell what one call needs, and an allocator is settled when a process starts. And where a call needs more
than there is, the system ends that process and not this one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...loading.models import import_own_files, own_files
from .cases import NOT_MEASURED, OUT_OF_MEMORY, Work, reason_of
from .measure import GIVES_BACK, peak_memory

#: (method, batch size)
Key = tuple[str, int]

_CALLS = 3  # the median of so many counts
_PAYLOAD, _FILES, _RESULTS = "work.pt", "files.json", "results.jsonl"
_PROGRAM = "import sys; from batchcam_captum.interop.comparison.memory import child; child(sys.argv[1])"


def peaks_in_process(work: Work, library: str, keys: Sequence[Key]) -> dict[Key, int | str]:
    """Have a process of its own measure what a library's calls need on the CPU.

    Args:
        work: has to survive pickling, its model above all.
        library: its name.
        keys: the cases; of each method the batch sizes in ascending order.

    Returns:
        For each case the bytes beyond model and images, or a text that says why there are none.
    """
    if sys.platform != "linux":
        return dict.fromkeys(keys, f"{NOT_MEASURED}: the resident memory is read on Linux only")
    found: dict[Key, int | str] = {}
    with tempfile.TemporaryDirectory(prefix="batchcam-memory-") as name:
        folder = Path(name)
        (folder / _FILES).write_text(json.dumps(own_files()), encoding="utf-8")
        while left := [key for key in keys if key not in found]:
            payload = {
                "work": vars(work),
                "library": library,
                "keys": left,
                "threads": torch.get_num_threads(),
            }
            try:
                torch.save(payload, folder / _PAYLOAD)
            except Exception as error:  # whatever an object raises that cannot be pickled
                reason = f"{NOT_MEASURED}: the model cannot be sent to another process ({reason_of(error)})"
                return found | dict.fromkeys(left, reason)
            found |= _measured(folder, left)
    return found


def _measured(folder: Path, keys: Sequence[Key]) -> dict[Key, int | str]:
    """Start the process; the outcome of at least one case."""
    results = folder / _RESULTS
    results.unlink(missing_ok=True)
    environment = os.environ | GIVES_BACK
    environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(folder)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    found: dict[Key, int | str] = {}
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    for line in lines:
        method, size, outcome = json.loads(line)
        found[method, size] = outcome
    ended = next((key for key in keys if key not in found), None)
    if ended is None:
        return found
    method, size = ended
    if done.returncode == -signal.SIGKILL:
        # What is larger would need more.
        larger = [key for key in keys if key[0] == method and key[1] >= size]
        return found | dict.fromkeys(
            larger, f"{OUT_OF_MEMORY}: the system ended the process that measured it"
        )
    last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
    reason = f"{NOT_MEASURED}: {last}"
    # Before the first case, none of the others will fare better.
    return found | (dict.fromkeys(keys, reason) if not found else {ended: reason})


def child(name: str) -> None:
    """What the process does: measure the cases that lie in the folder, and put each outcome there when it is known.

    Args:
        name: of the folder.
    """
    folder = Path(name)
    with suppress(OSError):  # of all processes this one is to be ended first
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    import_own_files(json.loads((folder / _FILES).read_text(encoding="utf-8")))
    payload: dict[str, Any] = torch.load(folder / _PAYLOAD, weights_only=False)
    torch.set_num_threads(payload["threads"])
    work = Work(**payload["work"])
    small = replace(work, images=work.images[:1], targets=work.targets[:1])
    with open(folder / _RESULTS, "a", encoding="utf-8") as results:
        for method, size in payload["keys"]:
            outcome: int | str
            try:
                # The first call of all pays for what stays, such as libraries that are loaded then.
                peak_memory(small.case(payload["library"], method, 1), "cpu", repeats=1)
                outcome = peak_memory(work.case(payload["library"], method, size), "cpu", repeats=_CALLS)
            except Exception as error:
                outcome = reason_of(error)
            print(json.dumps([method, size, outcome]), file=results, flush=True)
