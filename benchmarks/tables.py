"""Put the committed results of the benchmarks into docs/evidence/benchmarks.md, and all figures into a CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from writing import RESULTS, ROOT, machine, markdown, put

PAGE = ROOT / "docs" / "evidence" / "benchmarks.md"
DATA = ROOT / "docs" / "data" / "benchmarks.csv"
#: One block each; the results of a benchmark are NAME-cpu.json and whatever else begins with NAME-.
BENCHMARKS = (
    "attribute", "classes", "layers", "step", "recipe_step", "distributed_step", "compiled_step", "imports", "explain_speed",
    "explain_memory", "explain_kills", "explain_real", "report_size",
)  # fmt: skip


def files(name: str, results: Path = RESULTS) -> list[Path]:
    """Return the results of a benchmark, that of the CPU first."""
    return sorted(results.glob(f"{name}-*.json"), key=lambda path: (path.stem != f"{name}-cpu", path))


def block(name: str, results: Path = RESULTS) -> str:
    """Return what stands between the markers of a benchmark: one section per file."""
    parts = [
        section(path.stem, json.loads(path.read_text(encoding="utf-8"))) for path in files(name, results)
    ]
    if not (results / f"{name}-cpu.json").exists():
        parts.insert(0, f"No result on a CPU yet: `python benchmarks/{name}.py` writes one.")
    return "\n\n".join(parts)


def section(title: str, record: dict[str, Any]) -> str:
    """Return the machine of a result, a table of the figures that have a goal, and the others, folded."""
    goals = [figure for figure in record["figures"] if figure["reach"] is not None]
    others = [figure for figure in record["figures"] if figure["reach"] is None]
    missed = sum(not figure["reached"] for figure in goals)
    environment = record["environment"]
    parts = [
        f"*{title}: {machine(environment)}, {environment['date'][:10]}, commit {environment['commit'] or 'unknown'}. "
        f"Missed: {missed} of {len(goals)}.*"
    ]
    if goals:
        parts.append(table(goals))
    if others:
        parts.append(f":::{{dropdown}} More figures\n{table(others)}\n:::" if goals else table(others))
    return "\n\n".join(parts)


def table(figures: Sequence[dict[str, Any]]) -> str:
    """Return a table of cases and figures, turned so that it has few columns."""
    cells = {(figure["case"], figure["figure"]): cell(figure) for figure in figures}
    cases, names = (list(dict.fromkeys(figure[key] for figure in figures)) for key in ("case", "figure"))
    if len(names) <= max(len(cases), 4):
        return markdown(
            ["", *names], [[case, *(cells.get((case, name), "") for name in names)] for case in cases]
        )
    return markdown(
        ["", *cases], [[name, *(cells.get((case, name), "") for case in cases)] for name in names]
    )


def cell(figure: dict[str, Any]) -> str:
    """Return the median; one that missed its goal is bold, with the goal."""
    value = _number(figure["value"])
    return f"**{value}** (goal: {figure['reach']:g})" if figure["reached"] is False else value


def _number(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def filled(text: str, results: Path = RESULTS) -> str:
    """Return the page with every block brought up to date."""
    return put(text, {name: block(name, results) for name in BENCHMARKS}, PAGE.name)


def figures_csv() -> str:
    """Return every figure of every benchmark with its quartiles and its goal."""
    keys = ("case", "figure", "value", "q1", "q3", "reach", "reached")
    rows = [["result", "case", "figure", "median", "q1", "q3", "goal", "reached"]]
    for path in (path for name in BENCHMARKS for path in files(name)):
        for figure in json.loads(path.read_text(encoding="utf-8"))["figures"]:
            rows.append([path.stem, *(figure[key] for key in keys)])  # noqa: PERF401
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    DATA.write_text(figures_csv(), encoding="utf-8")
