"""The weights and the recipe, chosen by the rules of docs/evidence/protocol.md from validation runs alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from .settings import Settings, result_of

#: How much validation accuracy an arm may lose, on average over the data sets without a shortcut: 0.2 points.
TOLERANCE = 0.002
#: A recipe whose share of dead maps is as large as this is out.
_DEAD = 0.01


class NotYetError(LookupError):
    """A run that a choice hangs on is still missing."""


def accuracy(settings: Settings, folder: Path) -> float:
    """Of a finished run; 0 for one that diverged.

    Raises:
        NotYetError: it has not been run.
    """
    result = result_of(settings, folder)
    if result is None:
        raise NotYetError(settings.name)
    return 0.0 if "diverged" in result else float(result["metrics"]["accuracy"])


def mean_accuracy(runs: Iterable[Settings], folder: Path) -> float:
    """Of several runs; see :func:`accuracy`."""
    return fmean(accuracy(each, folder) for each in runs)


def passes(arm: str, runs: Sequence[Settings], folder: Path) -> bool:
    """Whether an arm keeps the accuracy of cross-entropy alone.

    Args:
        arm: as text.
        runs: those of cross-entropy, on all data sets and seeds of the choice.
        folder: of the results.

    Raises:
        NotYetError: a run is missing.
    """
    own = [replace(each, arm=arm) for each in runs]
    return mean_accuracy(own, folder) >= mean_accuracy(runs, folder) - TOLERANCE


def choose_weight(family: str, weights: Sequence[float], runs: Sequence[Settings], folder: Path) -> float:
    """The largest weight that passes; the smallest where none does.

    Args:
        family: the arm as text without its weight, such as ``"prototype-l1"``.
        weights: to choose from.
        runs: see :func:`passes`.
        folder: of the results.

    Raises:
        NotYetError: a run is missing. The weights are asked for from the largest down, and no further than needed.
    """
    for weight in sorted(weights, reverse=True):
        if passes(f"{family}:{weight:g}", runs, folder):
            return weight
    return min(weights)


def choose_recipe(
    candidates: Iterable[str], clean: Sequence[Settings], shortcut: Sequence[Settings], folder: Path
) -> str:
    """Choose by accuracy with the development shortcut, then by how near the maps are to the prototypes.

    Of the candidates that pass and have no dead maps to speak of, those that are the most accurate with the development
    shortcut, or within the tolerance of that; of these the one with the highest SSIM, over all of the data.

    Args:
        candidates: arms as text; those that were not run with all of the data are out.
        clean: runs of cross-entropy without a shortcut.
        shortcut: the same with the development shortcut.
        folder: of the results.

    Raises:
        ValueError: none is left.
    """
    left = {}
    for arm in candidates:
        own = [replace(each, arm=arm) for each in (*clean, *shortcut)]
        results = [result_of(each, folder) for each in own]
        if None in results or not passes(arm, clean, folder):
            continue
        found = [each.get("metrics") for each in results if each is not None]
        if all(each is not None and each["dead_fraction"] < _DEAD for each in found):
            left[arm] = (mean_accuracy(own[len(clean) :], folder), fmean(each["ssim"] for each in found))
    if not left:
        raise ValueError("recipe: expected a candidate that keeps the accuracy and its maps alive, got none")
    best = max(with_shortcut for with_shortcut, _ in left.values())
    return max((arm for arm in left if left[arm][0] >= best - TOLERANCE), key=lambda arm: left[arm][1])
