"""``python -m benchmarks.study.figures``: the figures of docs/study.md, from the committed results."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .page import FOLDER, METRICS, RESULTS
from .plans import CLEAN, DECOYED, OBJECTS, UPPER_BOUND, known, known_arms
from .summary import Cell, Cells, collected

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: What each arm is told: colours that are told apart in grey and by the colour-blind.
_COLOURS = {
    "cross-entropy": "#000000",
    "no annotation": "#0072b2",
    "recipe": "#d55e00",
    "told masks": "#999999",
}
_TOLD = (UPPER_BOUND, OBJECTS, "rrr_cam", "energy")


def dots(cells: Cells, arms: dict[str, str], network: str, metric: str, sets: Sequence[str]) -> Figure:
    """One panel a data set, one row an arm: each seed a small dot, their mean a large one.

    Args:
        cells: the results.
        arms: name -> text of those that are shown.
        network: of the runs.
        metric: that is shown.
        sets: the data sets.
    """
    from matplotlib.figure import Figure

    heading, factor, _, better = METRICS[metric]
    figure = Figure(figsize=(2.6 * len(sets) + 2, 0.28 * len(arms) + 1.3), layout="constrained")
    axes = figure.subplots(1, len(sets), sharey=True, squeeze=False)[0]
    for axis, data in zip(axes, sets, strict=True):
        for row, (name, arm) in enumerate(arms.items()):
            _draw(axis, row, name, cells.get((data, network, arm)), metric, factor)
        plain = cells.get((data, network, arms["cross_entropy"]))
        if plain is not None and (mean := plain.mean(metric)) is not None:
            axis.axvline(mean * factor, color="#cccccc", linewidth=1, zorder=0)
        axis.set_title(data, fontsize=9)
        axis.grid(axis="y", color="#eeeeee")
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=8)
    axes[0].set_yticks(range(len(arms)), list(arms))
    axes[0].invert_yaxis()
    figure.supxlabel(f"{heading} ({better} is better); the line is cross-entropy alone", fontsize=9)
    handles = [axes[0].plot([], [], "o", color=colour, label=name)[0] for name, colour in _COLOURS.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize=8, frameon=False)
    return figure


def _draw(axis: Axes, row: int, name: str, cell: Cell | None, metric: str, factor: float) -> None:
    if cell is None or (mean := cell.mean(metric)) is None:
        return
    kind = {"cross_entropy": "cross-entropy", "recipe": "recipe"}.get(
        name, "told masks" if name in _TOLD else "no annotation"
    )
    values = [value * factor for value in cell.values(metric).values()]
    axis.plot(values, [row] * len(values), "o", color=_COLOURS[kind], markersize=3, alpha=0.5)
    axis.plot([mean * factor], [row], "o", color=_COLOURS[kind], markersize=7)


FIGURES = {"accuracy": "accuracy", "ssim": "ssim", "coherence": "coherence"}


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--results", type=Path, default=RESULTS)
    made.add_argument("--output", type=Path, default=FOLDER)
    options = made.parse_args()
    cells = collected(options.results, known("grid", options.results)[0])
    arms = known_arms(options.results)
    options.output.mkdir(parents=True, exist_ok=True)
    for name, metric in FIGURES.items():
        figure = dots(cells, arms, "simple_cnn", metric, (*CLEAN, *DECOYED))
        figure.savefig(options.output / f"study-{name}.png", dpi=130)


if __name__ == "__main__":
    main()
