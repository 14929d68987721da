"""How long does `from batchcam_captum import BatchGradCam` take, next to `import captum.attr`? Each in a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys

from common import Report, Times, parser, start

OURS, CAPTUM, TORCH, FUNCTIONAL = "BatchGradCam", "captum.attr", "torch", "batchcam_captum.functional"
STATEMENTS = {
    CAPTUM: "import captum.attr",
    OURS: "from batchcam_captum import BatchGradCam",
    FUNCTIONAL: "import batchcam_captum.functional",
    TORCH: "import torch",
}
REACH = 1.1


def seconds(statement: str) -> float:
    """Of the statement alone, without the interpreter's own start."""
    code = f"import time; begin = time.perf_counter(); {statement}; print(time.perf_counter() - begin)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    options = start(parser(__doc__, rounds=15))
    names = list(STATEMENTS)
    for name in names:
        seconds(STATEMENTS[name])  # compiled files and the disk's cache
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(options.rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            taken[name].append(seconds(STATEMENTS[name]))
    times = Times(taken)
    report = Report("imports", options, "Without the start of the interpreter; all of them import torch.")
    report.add_case("import", times=times, statements=STATEMENTS)
    report.add_figure("import", f"{OURS} ÷ {CAPTUM}", times.ratio(OURS, CAPTUM), reach=REACH)
    report.add_figure("import", f"{FUNCTIONAL} ÷ {TORCH}", times.ratio(FUNCTIONAL, TORCH), reach=None)
    report.finish()


if __name__ == "__main__":
    main()
