"""The table of `dead_maps.py` for the page on dead maps."""

from __future__ import annotations

from statistics import mean, stdev
from typing import Any

from .writing import machine, markdown, result

COMMAND = "python benchmarks/dead_maps.py --threads 1 --data-root DIR"


def dead_maps() -> str:
    """What it was measured with, and a row an objective and data set."""
    record = result("dead_maps-cpu")
    settings = record["settings"]
    heading = ["", "dead, %", "dead, %, of each seed", "accuracy, %", "L1 to prototype", "L1 of a black map"]
    rows = [
        [
            case["case"],
            _spread(case["runs"], "dead_fraction", 100, 1),
            ", ".join(f"{100 * run['dead_fraction']:.1f}" for run in case["runs"]),
            _spread(case["runs"], "accuracy", 100, 1),
            _spread(case["runs"], "l1", 1, 3),
            f"{case['black_l1']:.3f}",
        ]
        for case in record["cases"]
    ]
    about = (
        f"`{COMMAND}`; prototype losses with λ = {settings['weight']:g}, about {settings['steps']} steps of "
        f"{settings['batch_size']} images, {settings['images']:,} training images of MNIST, seeds "
        f"{', '.join(map(str, settings['seeds']))}, mean ± standard deviation; {machine(record['environment'])}."
    )
    return "\n".join([markdown(heading, rows), "", about])


def _spread(runs: list[dict[str, Any]], key: str, factor: float, digits: int) -> str:
    values = [factor * run[key] for run in runs]
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}"
