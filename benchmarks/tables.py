"""Put the tables of the benchmarks' committed results into docs/evidence/benchmarks.md, between their markers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from writing import RESULTS, machine, put

PAGE = RESULTS.parents[1] / "docs" / "evidence" / "benchmarks.md"
#: One block each; the results of a benchmark are NAME-cpu.json and whatever else begins with NAME-.
BENCHMARKS = (
    "attribute",
    "classes",
    "layers",
    "step",
    "recipe_step",
    "distributed_step",
    "compiled_step",
    "imports",
    "explain_speed",
    "explain_memory",
    "explain_kills",
    "explain_real",
    "report_size",
)


def block(name: str, results: Path = RESULTS) -> str:
    """What stands between the markers of a benchmark: a section for each of its files, the CPU's first.

    Args:
        name: of the benchmark.
        results: the folder of the files.
    """
    first = results / f"{name}-cpu.json"
    parts = []
    if not first.exists():
        parts.append(f"No result on a CPU yet: `python benchmarks/{name}.py` writes one.")
    others = sorted(set(results.glob(f"{name}-*.json")) - {first})
    parts += [
        section(path.stem, json.loads(path.read_text(encoding="utf-8")))
        for path in [first] * first.exists() + others
    ]
    return "\n\n".join(parts)


def section(title: str, record: dict[str, Any]) -> str:
    """A file's machine, its figures that have something to reach, and the others.

    Args:
        title: the file's name.
        record: what it holds.
    """
    aimed = [figure for figure in record["figures"] if figure["reach"] is not None]
    free = [figure for figure in record["figures"] if figure["reach"] is None]
    missed = sum(not figure["reached"] for figure in aimed)
    environment = record["environment"]
    lines = [
        f"**{title}**: {machine(environment)}, {environment['date'][:10]}, commit {environment['commit'] or 'unknown'}. "
        f"Missed: {missed} of {len(aimed)}."
    ]
    lines += [table(figures) for figures in (aimed, free) if figures]
    return "\n\n".join(lines)


def table(figures: Sequence[dict[str, Any]]) -> str:
    """One row a case, one column a figure; what is missed is bold, with what it was to reach.

    Args:
        figures: at least one.
    """
    cells = {(figure["case"], figure["figure"]): cell(figure) for figure in figures}
    names = list(dict.fromkeys(figure["figure"] for figure in figures))
    rows = [["", *names], ["---"] * (len(names) + 1)]
    rows += [
        [case, *(cells.get((case, name), "") for name in names)]
        for case in dict.fromkeys(figure["case"] for figure in figures)
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def cell(figure: dict[str, Any]) -> str:
    """The median, its quartiles where it has some, and the verdict."""
    value, q1, q3 = (_number(figure[key]) for key in ("value", "q1", "q3"))
    spread = "" if q1 == q3 else f" ({q1} to {q3})"
    if figure["reach"] is None:
        return value + spread
    if figure["reached"]:
        return f"{value}{spread}, ≤ {figure['reach']:g}"
    return f"**{value}**{spread}, **not ≤ {figure['reach']:g}**"


def _number(value: float) -> str:
    """Three digits after the point as long as they mean something."""
    return f"{value:.3f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def filled(text: str, results: Path = RESULTS) -> str:
    """The page's text with every block brought up to date."""
    return put(text, {name: block(name, results) for name in BENCHMARKS}, PAGE.name)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
