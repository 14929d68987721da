"""``python -m benchmarks.study PLAN``, from the root of the project."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from ..common import commit, set_up_process
from .choosing import NotYetError
from .plans import PLANS
from .settings import Settings

_RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Run a plan, or list it."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.study",
        description="Run the runs of a plan that are not finished. Call it again to go on after an interruption, or at once for "
        "a second process.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument("plan", choices=PLANS)
    made.add_argument(
        "--data-root", type=Path, required=True, help="the folder of torchvision's MNIST and FashionMNIST"
    )
    made.add_argument("--results", type=Path, default=_RESULTS, help="folder of the results, one JSON a run")
    made.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, …")
    made.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch, on the CPU")
    made.add_argument(
        "--limit", type=float, default=float("inf"), help="seconds; no run begins that would not end by then"
    )
    made.add_argument("--commit", help="of the code, where git cannot tell; default: what git says")
    made.add_argument("--list", action="store_true", help="say which runs are finished and which are missing")
    options = made.parse_args()
    set_up_process(options.threads)

    from .run import list_runs, run_all

    def plan() -> Iterator[Settings]:
        return PLANS[options.plan](options.results)

    try:
        if options.list:
            list_runs(plan, options.results)
            return 0
        missing_runs = run_all(
            plan,
            options.results,
            options.data_root,
            torch.device(options.device),
            limit=options.limit,
            commit=options.commit or commit(),
        )
        print(f"{missing_runs} missing")
        return 0
    except NotYetError as missing:
        print(
            f"study: expected the runs that choices hang on, {missing} is missing; run `weights` first",
            file=sys.stderr,
        )
        return 2
    except (ValueError, OSError) as error:
        print(f"study: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("study: interrupted; the same command goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
