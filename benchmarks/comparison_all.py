"""The whole comparison, piece by piece: every script with the options that a device is worth, each with a result of its own.

A piece that was finished at this commit is not run again, one that was cut off goes on where it was, and none begins whose
estimate no longer fits into ``--limit``: call it again until it says that nothing is left.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from common import commit

FOLDER = Path(__file__).parent
PARTS = ("agreement", "cost", "profile", "pictures")


@dataclass(frozen=True)
class Piece:
    """One call of a script."""

    part: str
    script: str
    options: tuple[str, ...] = ()
    estimate: int = 60  #: seconds; guessed for a GPU that computes little and waits for Python much
    suffix: str = ""  #: of its file

    def file(self, results: Path, kind: str) -> Path:
        """Where its result will be."""
        return results / f"{self.script}{self.suffix}-{kind}.json"


ON_CPU = (
    Piece("agreement", "comparison", estimate=480),
    Piece("pictures", "comparison_pictures"),
    Piece("profile", "comparison_profile", estimate=120),
    Piece("cost", "comparison_cost", estimate=900),
)
_TWO = ("--models", "resnet50", "vit_small_patch16_224", "--batches", "1", "64", "256")
_ONE = ("--models", "resnet50", "--batches", "1", "64")
ON_GPU = (
    Piece("agreement", "comparison", estimate=420),
    Piece("pictures", "comparison_pictures", estimate=45),
    Piece("profile", "comparison_profile", estimate=90),
    Piece("cost", "comparison_cost", estimate=180),
    Piece("cost", "comparison_cost", ("--tf32", *_TWO), 75, "-tf32"),
    Piece("cost", "comparison_cost", ("--dtype", "bfloat16", *_TWO), 75, "-bfloat16"),
    Piece("cost", "comparison_cost", ("--channels-last", *_TWO), 75, "-channels-last"),
    Piece("cost", "comparison_cost", ("--compiled", *_ONE), 120, "-compiled"),
    Piece(
        "cost",
        "comparison_cost",
        ("--tf32", "--channels-last", "--compiled", *_ONE),
        120,
        "-tf32-channels-last-compiled",
    ),
    Piece(
        "cost",
        "comparison_cost",
        ("--dtype", "bfloat16", "--channels-last", "--compiled", *_ONE),
        120,
        "-bfloat16-channels-last-compiled",
    ),
    Piece("profile", "comparison_profile", ("--dtype", "bfloat16"), 90, "-bfloat16"),
    Piece("profile", "comparison_profile", ("--compiled", "--models", "resnet50"), 90, "-compiled"),
)


def main() -> None:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    made.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, …")
    made.add_argument("--part", choices=PARTS, nargs="+", default=list(PARTS))
    made.add_argument("--seconds", type=float, help="about how long one timed cell may take; 3 on a GPU")
    made.add_argument("--limit", type=float, help="seconds for all of this call")
    made.add_argument("--results", type=Path, default=FOLDER / "results", help="folder of the JSON files")
    made.add_argument("--commit", help="where there is no history; else BATCHCAM_COMMIT or git's")
    made.add_argument("--again", action="store_true", help="run what is finished, too")
    made.add_argument("--list", action="store_true", help="say what would be run, and do nothing")
    options = made.parse_args()
    kind = options.device.partition(":")[0]
    pieces = [piece for piece in (ON_CPU if kind == "cpu" else ON_GPU) if piece.part in options.part]
    here = options.commit or commit()
    environment = os.environ | ({"BATCHCAM_COMMIT": here} if here else {})
    print(
        f"about {sum(piece.estimate for piece in pieces) / 60:.0f} minutes in all, estimated", file=sys.stderr
    )
    begin, left = time.monotonic(), []
    for piece in pieces:
        file = piece.file(options.results, kind)
        if not options.again and finished(file, here):
            print(f"{file.name}: finished before", file=sys.stderr)
            continue
        remaining = None if options.limit is None else options.limit - (time.monotonic() - begin)
        fits = remaining is None or (remaining > 0 and (piece.estimate <= remaining or not left))
        if options.list or not fits or not run(piece, options, environment, remaining):
            left.append(file.name)
    print("left: " + (", ".join(left) or "nothing"), file=sys.stderr)
    sys.exit(1 if left and not options.list else 0)


def finished(file: Path, here: str | None) -> bool:
    """Whether a whole result of this commit is there."""
    if not file.exists() or here is None:
        return False
    found: str | None = json.loads(file.read_text(encoding="utf-8"))["environment"]["commit"]
    return found == here


def run(
    piece: Piece, options: argparse.Namespace, environment: dict[str, str], remaining: float | None
) -> bool:
    """Whether the piece came to its end; cut off when the time is over, it leaves what it had beside its file."""
    command = [sys.executable, str(FOLDER / f"{piece.script}.py"), "--device", options.device, *piece.options]
    command += ["--results", str(options.results), "--resume"]
    seconds = options.seconds or (3.0 if options.device.startswith("cuda") else None)
    if piece.part == "cost" and seconds is not None:
        command += ["--seconds", str(seconds)]
    print("$ " + " ".join(command), file=sys.stderr, flush=True)
    try:
        return subprocess.run(command, env=environment, timeout=remaining, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


if __name__ == "__main__":
    main()
