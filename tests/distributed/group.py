"""A real process group of two on gloo, which runs many checks; each rank is a process of its own.

``python -m tests.distributed.group RANK FOLDER MODULE …`` runs the checks of some modules on one rank. Each check has a group of
its own, so that one that fails does not spoil the next, with a time limit, so that one that hangs fails.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
import traceback
from datetime import timedelta
from itertools import product
from pathlib import Path

import torch
import torch.distributed as dist

WORLD = 2
ROOT = Path(__file__).parents[2]
#: Seconds for one message, and for all checks.
PATIENCE, LIMIT = 30, 240


class Checks(dict):
    """Name -> function of the rank, filled by decorating."""

    def each(self, **cases):
        """Once for every combination: ``@CHECKS.each(distance=["l1", "l2"])``."""

        def register(function):
            for values in product(*cases.values()):
                name = "-".join(
                    [function.__name__, *(getattr(value, "__name__", str(value)) for value in values)]
                )
                self[name] = (function, dict(zip(cases, values, strict=True)))
            return function

        return register


def run_checks(folder, *modules):
    """Run all checks of the modules on every rank; (module, name) -> what failed, on which rank ("" if nothing did)."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "tests.distributed.group"]
    ranks = []
    for rank in range(WORLD):
        with Path(folder, f"{rank}.txt").open("w") as printed:
            arguments = [*command, str(rank), str(folder), *modules]
            ranks.append(
                subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=printed, stderr=printed)
            )
    until = time.monotonic() + LIMIT
    while any(process.poll() is None for process in ranks) and time.monotonic() < until:
        if any(process.poll() for process in ranks):  # it crashed: what the other one waits for will not come
            break
        time.sleep(0.05)
    for process in ranks:
        process.kill()
        process.wait()
    files = [Path(folder) / f"{rank}.json" for rank in range(WORLD)]
    found = [json.loads(file.read_text()) if file.exists() else {} for file in files]
    crashed = [
        f"crashed, hung, or not run; exit code {process.returncode}; it printed {printed[-2000:]}"
        for process, printed in zip(
            ranks, (Path(folder, f"{rank}.txt").read_text() for rank in range(WORLD)), strict=True
        )
    ]
    return {
        key: "\n".join(
            f"rank {rank}: {failed}"
            for rank, of in enumerate(found)
            if (failed := of.get("::".join(key), crashed[rank]))
        )
        for key, *_ in checks_of(modules)
    }


def checks_of(modules):
    """((module, name), function, options) of each."""
    return [
        ((module, name), function, case)
        for module in modules
        for name, (function, case) in importlib.import_module(module).CHECKS.items()
    ]


def _main(rank, folder, modules):
    torch.set_num_threads(1)
    outcomes = {}
    for number, (key, function, case) in enumerate(checks_of(modules)):
        store = dist.FileStore(str(folder / str(number)), WORLD)
        try:
            dist.init_process_group(
                "gloo", store=store, rank=rank, world_size=WORLD, timeout=timedelta(seconds=PATIENCE)
            )
            # A rank that has connected may be done with a check, and gone, before the other has connected to it.
            dist.barrier()
            torch.manual_seed(0)
            function(rank, **case)
            outcomes["::".join(key)] = ""
        except BaseException:
            outcomes["::".join(key)] = traceback.format_exc()
        if dist.is_initialized():
            dist.destroy_process_group()
        (folder / f"{rank}.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    _main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    # All is written. What a check has left behind, a group in a reference cycle say, must not end the process by a signal while
    # the other rank is still at work.
    os._exit(0)
