"""A real process group of two on gloo, which runs many checks; each rank is a process of its own.

``python -m tests.distributed.group RANK FOLDER MODULE`` runs the checks of a module on one rank. Each check has a group of its
own, so that one that fails does not spoil the next, with a time limit, so that one that hangs fails.
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
#: Seconds for one message, and for all checks of a module.
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


def run_checks(folder, module):
    """Run all checks of a module on every rank; name -> what failed, on which rank ("" if nothing did)."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.distributed.group"]
    ranks = [
        subprocess.Popen([*command, str(rank), str(folder), module], cwd=ROOT, env=environment)
        for rank in range(WORLD)
    ]
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
    codes = [process.returncode for process in ranks]
    return {
        name: "\n".join(
            f"rank {rank}, exit code {codes[rank]}: {of[name]}"
            for rank, of in enumerate(found)
            if of.setdefault(name, "crashed, hung, or not run")
        )
        for name in importlib.import_module(module).CHECKS
    }


def _main(rank, folder, module):
    torch.set_num_threads(1)
    outcomes = {}
    for number, (name, (function, case)) in enumerate(importlib.import_module(module).CHECKS.items()):
        store = dist.FileStore(str(folder / str(number)), WORLD)
        dist.init_process_group(
            "gloo", store=store, rank=rank, world_size=WORLD, timeout=timedelta(seconds=PATIENCE)
        )
        torch.manual_seed(0)
        try:
            function(rank, **case)
            outcomes[name] = ""
        except BaseException:
            outcomes[name] = traceback.format_exc()
        dist.destroy_process_group()
        (folder / f"{rank}.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    _main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
