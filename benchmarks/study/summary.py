"""Results of several seeds brought together: mean, spread, and the paired difference to cross-entropy alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .arms import PLAIN
from .settings import Settings, result_of


@dataclass(frozen=True)
class Cell:
    """One arm on one data set."""

    metrics: Mapping[int, Mapping[str, float]]  #: seed -> what was measured
    diverged: tuple[int, ...]  #: seeds whose loss was no number

    def values(self, metric: str) -> dict[int, float]:
        """Seed -> value, of the runs that have it."""
        return {seed: found[metric] for seed, found in sorted(self.metrics.items()) if metric in found}

    def mean(self, metric: str) -> float | None:
        """Over the seeds; None without any."""
        values = self.values(metric).values()
        return statistics.fmean(values) if values else None

    def spread(self, metric: str) -> float | None:
        """Sample standard deviation; None with fewer than two."""
        values = self.values(metric).values()
        return statistics.stdev(values) if len(values) > 1 else None


@dataclass(frozen=True)
class Difference:
    """An arm less another one, seed by seed."""

    mean: float
    seeds: int
    #: Of a two-sided paired t-test; None with fewer than two seeds, or where all differences are equal.
    p: float | None = None


def paired(arm: Cell, other: Cell, metric: str) -> Difference | None:
    """Compare two arms over the seeds that both have; None without any."""
    own, others = arm.values(metric), other.values(metric)
    both = sorted(own.keys() & others.keys())
    if not both:
        return None
    differences = [own[seed] - others[seed] for seed in both]
    p = None
    if len(both) > 1 and statistics.stdev(differences) > 0:
        from scipy.stats import ttest_rel

        p = float(ttest_rel([own[seed] for seed in both], [others[seed] for seed in both]).pvalue)
    return Difference(statistics.fmean(differences), len(both), p)


Cells = dict[tuple[str, str, str], Cell]  # (data, network, arm as text) -> cell


def collected(folder: Path, wanted: Iterable[Settings]) -> Cells:
    """The finished runs of a plan.

    Args:
        folder: of the results.
        wanted: the runs of the plan; other files of the folder are left alone.

    Raises:
        ValueError: a file is no result, or was made by other settings.
    """
    metrics: dict[tuple[str, str, str], dict[int, Mapping[str, float]]] = {}
    diverged: dict[tuple[str, str, str], list[int]] = {}
    for settings in wanted:
        result = result_of(settings, folder)
        if result is None:
            continue
        key = settings.data, settings.network, settings.arm
        if "diverged" in result:
            diverged.setdefault(key, []).append(settings.seed)
            metrics.setdefault(key, {})
        else:
            metrics.setdefault(key, {})[settings.seed] = result["metrics"] | {
                "seconds_per_step": result["seconds_per_step"]
            }
    return {key: Cell(found, tuple(diverged.get(key, ()))) for key, found in metrics.items()}


def cell_of(cells: Cells, data: str, network: str, arm: str = PLAIN) -> Cell:
    """An arm, by default cross-entropy alone, which the others are compared with; empty if it has not been run."""
    return cells.get((data, network, arm), Cell({}, ()))
