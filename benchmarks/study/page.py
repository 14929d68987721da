"""``python -m benchmarks.study.page``: the tables of docs/study.md from the committed results."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from ..writing import ROOT, machine, markdown, put
from .arms import PLAIN
from .choosing import NotYetError, accuracy
from .data import base_and_shortcut
from .plans import (
    CANDIDATES,
    CLEAN,
    DECOYED,
    FAMILIES,
    FURTHER,
    OBJECTS,
    OTHER_LAYER,
    RECIPE,
    SEARCHED,
    UPPER_BOUND,
    VARIATIONS,
    VARIED,
    VARIED_FROM,
    chosen_arms,
    known,
    known_arms,
    of_choice,
)
from .settings import Settings, finished, result_of
from .summary import Cell, Cells, cell_of, collected, paired

PAGE = ROOT / "docs" / "study.md"
#: Of its figures.
FOLDER = ROOT / "docs" / "images"
RESULTS = Path(__file__).parent / "results"
#: metric -> (heading, factor, digits, which way is better)
METRICS = {
    "accuracy": ("accuracy, %", 100, 2, "higher"),
    "ssim": ("SSIM to prototype", 1, 3, "higher"),
    "l1": ("L1 to prototype", 1, 3, "lower"),
    "cosine": ("cosine to prototype", 1, 3, "higher"),
    "coherence": ("coherence within a class", 1, 3, "higher"),
    "nearest_prototype": ("nearest prototype is the own, %", 100, 1, "higher"),
    "dead_fraction": ("dead, %", 100, 2, "lower"),
    "energy_in_object": ("energy in the object", 1, 3, "higher"),
    "pointing_game": ("pointing game, %", 100, 1, "higher"),
    "energy_in_shortcut": ("energy in the shortcut", 1, 3, "lower"),
    "hires_energy_in_shortcut": ("the same of HiResCAM", 1, 3, "lower"),
    "insertion_auc": ("insertion AUC", 1, 3, "higher"),
    "deletion_auc": ("deletion AUC", 1, 3, "lower"),
    "road": ("ROAD", 1, 3, "higher"),
    "infidelity": ("infidelity, relative", 1, 3, "lower"),
    "max_sensitivity": ("max-sensitivity", 1, 3, "lower"),
    "randomized_ssim": ("SSIM to its map after randomisation", 1, 3, "lower"),
    "randomized_spearman": ("Spearman, likewise", 1, 3, "lower"),
    "randomized_dead": ("dead after randomisation, %", 100, 1, "neither"),
    "seconds_per_step": ("ms a step", 1000, 1, "lower"),
    "hires_energy_in_object": ("the same of HiResCAM", 1, 3, "higher"),
}
_MAPS = (
    "ssim",
    "l1",
    "cosine",
    "coherence",
    "nearest_prototype",
    "dead_fraction",
    "energy_in_object",
    "hires_energy_in_object",
    "pointing_game",
    "seconds_per_step",
)
FAITHFULNESS = (
    "insertion_auc", "deletion_auc", "road", "infidelity", "max_sensitivity", "randomized_ssim", "randomized_spearman",
    "randomized_dead",
)  # fmt: skip
SHORTCUT = ("energy_in_shortcut", "hires_energy_in_shortcut")


def written(cell: Cell, metric: str) -> str:
    """Mean ± standard deviation over the seeds, with what is missing said."""
    _, factor, digits, _ = METRICS[metric]
    mean, spread = cell.mean(metric), cell.spread(metric)
    if mean is None:
        return "diverged" if cell.diverged else "-"
    text = f"{mean * factor:.{digits}f}"
    if spread is not None:
        text += f" ± {spread * factor:.{digits}f}"
    there = len(cell.values(metric))
    if there < len(cell.metrics):
        text += f" ({there} of {len(cell.metrics)} seeds)"
    return text + (f" ({len(cell.diverged)} diverged)" if cell.diverged else "")


def difference(arm: Cell, plain: Cell, metric: str) -> str:
    """The paired difference to cross-entropy alone, with its p value."""
    found = paired(arm, plain, metric)
    if found is None:
        return "-"
    _, factor, digits, _ = METRICS[metric]
    text = f"{found.mean * factor:+.{digits}f}"
    said = []
    if found.p is not None:
        said.append(f"p = {found.p:.2g}" if found.p >= 0.001 else "p < 0.001")
    if found.seeds < len(arm.metrics) + len(arm.diverged):
        said.append(f"{found.seeds} pairs")
    return text + (f" ({', '.join(said)})" if said else "")


def _seeds(cell: Cell) -> str:
    return str(len(cell.metrics) + len(cell.diverged))


def by_arm(cells: Cells, arms: dict[str, str], data: str, network: str, metrics: Sequence[str]) -> str:
    """One data set: a row an arm, a column a metric; of the first the paired difference as well."""
    plain = cell_of(cells, data, network)
    first = metrics[0]
    heading = [
        "arm",
        "seeds",
        METRICS[first][0],
        "less cross-entropy",
        *(METRICS[each][0] for each in metrics[1:]),
    ]
    rows = []
    for name, arm in arms.items():
        cell = cells.get((data, network, arm))
        if cell is None:
            continue
        against = "" if arm == PLAIN else difference(cell, plain, first)
        shown = f"{name}, {arm}" if name == "recipe" else arm
        rows.append(
            [
                _code(shown),
                _seeds(cell),
                written(cell, first),
                against,
                *(written(cell, m) for m in metrics[1:]),
            ]
        )
    return markdown(heading, rows) if rows else "Not run yet."


def _code(text: str) -> str:
    return " ".join(
        f"`{word}`" if any(mark in word for mark in ":_@-") else word
        for word in text.replace(",", " ").split()
    )


def grid(folder: Path, arms: dict[str, str], sets: Sequence[str], network: str, plan: str) -> str:
    """The tables of several data sets."""
    runs, hindrance = known(plan, folder)
    cells = collected(folder, runs)
    parts = [
        _progress(runs, hindrance, folder, network),
        about(folder, [each for each in runs if each.network == network]),
    ]
    for data in sets:
        shortcut = data not in CLEAN
        metrics = ["accuracy", *(SHORTCUT if shortcut else ()), *_MAPS]
        parts += [f"**{data}**", by_arm(cells, arms, data, network, metrics)]
    return "\n\n".join(part for part in parts if part)


def in_short(folder: Path) -> str:
    """The recipe next to cross-entropy, to what it gets without the shortcut, and to an arm that is told masks."""
    cells = collected(folder, known("grid", folder)[0])
    arms = known_arms(folder)
    told, objects = arms.get(UPPER_BOUND, ""), arms.get(OBJECTS, "")
    rows = []
    for data in (*CLEAN, *DECOYED, *FURTHER):
        base, shortcut = base_and_shortcut(data)
        plain, recipe, annotated, at_object, clean = (
            cell_of(cells, name, "simple_cnn", arm)
            for name, arm in ((data, PLAIN), (data, RECIPE), (data, told), (data, objects), (base, PLAIN))
        )
        if not recipe.metrics:
            continue
        rows.append(
            [
                data,
                written(plain, "accuracy"),
                f"**{written(recipe, 'accuracy')}**",
                difference(recipe, plain, "accuracy"),
                written(annotated, "accuracy"),
                written(at_object, "accuracy") if at_object.metrics else "",
                "" if shortcut is None else written(clean, "accuracy"),
                *(
                    f"{written(plain, metric)} → {written(recipe, metric)}"
                    for metric in ("ssim", "coherence")
                ),
                written(recipe, "dead_fraction"),
            ]
        )
    heading = [
        "",
        "cross-entropy, %",
        "recipe, %",
        "difference",
        "told where the shortcut is, %",
        "told where the object is, %",
        "cross-entropy without the shortcut, %",
        "SSIM to prototype",
        "coherence",
        "dead, %",
    ]
    return markdown(heading, rows) if rows else "Not run yet."


def faithfulness(folder: Path, arms: dict[str, str], sets: Sequence[str]) -> str:
    """Whether maps that look better are still the model's own."""
    cells = collected(folder, known("grid", folder)[0])
    parts = []
    for data in sets:
        plain = cell_of(cells, data, "simple_cnn")
        rows = []
        for name, arm in arms.items():
            cell = cells.get((data, "simple_cnn", arm))
            if cell is not None:
                rows.append([_code(name), *(written(cell, metric) for metric in FAITHFULNESS)])
        recipe = cells.get((data, "simple_cnn", arms["recipe"]))
        if recipe is not None:
            rows.append(
                [
                    "recipe less cross-entropy",
                    *(difference(recipe, plain, metric) for metric in FAITHFULNESS),
                ]
            )
        heading = ["arm", *(f"{METRICS[m][0]} ({METRICS[m][3]} is better)" for m in FAITHFULNESS)]
        parts += [f"**{data}**", markdown(heading, rows) if rows else "Not run yet."]
    return "\n\n".join(parts)


def weights(folder: Path) -> str:
    """How the weights of the arms were chosen."""
    arms = chosen_arms(folder)
    rows = []
    for family, choices in FAMILIES.items():
        tried = []
        for weight in sorted(choices, reverse=True):
            values = []
            for data in CLEAN:
                settings = of_choice(data, f"{family}:{weight:g}")
                values.append(f"{accuracy(settings, folder):.2%}" if finished(settings, folder) else None)
            if all(values):
                tried.append(f"{weight:g}: {' / '.join(values)}")
        rows.append([f"`{family}`", "; ".join(tried), arms[family].rpartition(":")[2]])
    plain = " / ".join(f"{accuracy(of_choice(data, 'cross_entropy'), folder):.2%}" for data in CLEAN)
    machines = about(folder, known("weights", folder)[0])
    return f"{machines}\n\nCross-entropy alone: {plain}.\n\n" + markdown(
        ["arm", "validation accuracy, MNIST / Fashion-MNIST", "chosen λ"], rows
    )


def search(folder: Path) -> str:
    """The candidates of the recipe, and the winner with one thing changed at a time."""
    return "\n\n".join(
        (
            about(folder, known("search", folder)[0]),
            _validated(folder, SEARCHED, [(arm, of_choice("", arm)) for arm in (PLAIN, *CANDIDATES)]),
            "What the third round had found best, with one thing changed at a time:",
            _validated(
                folder,
                VARIED,
                [
                    *((arm, of_choice("", arm)) for arm in (VARIED_FROM, *VARIATIONS)),
                    (
                        f"{VARIED_FROM} at {OTHER_LAYER}",
                        replace(of_choice("", VARIED_FROM), layer=OTHER_LAYER),
                    ),
                ],
            ),
        )
    )


def _validated(folder: Path, sets: Sequence[str], candidates: Iterable[tuple[str, Settings]]) -> str:
    rows = []
    for name, settings in candidates:
        row = [f"**`{name}`**" if name == RECIPE else f"`{name}`"]
        for data in sets:
            result = result_of(replace(settings, data=data), folder)
            if result is None:
                row.append("not run")
                continue
            found = result.get("metrics")
            row.append(
                "diverged"
                if found is None
                else f"{found['accuracy']:.2%}; {found['ssim']:.2f}; {found['coherence']:.2f}; {found['dead_fraction']:.1%}"
            )
        rows.append(row)
    return markdown(["", *sets], rows)


def about(folder: Path, runs: Iterable[Settings]) -> str:
    """Machines and commits of the finished runs."""
    found: dict[str, dict[str, None]] = {}
    for settings in runs:
        result = result_of(settings, folder)
        if result is not None:
            found.setdefault(machine(result["environment"]), {})[result["commit"] or "unknown"] = None
    said = (f"{where}, commit {', '.join(commits)}" for where, commits in found.items())
    return f"*{'; '.join(said)}.*" if found else ""


def _progress(runs: Sequence[Settings], hindrance: str | None, folder: Path, network: str) -> str:
    own = [each for each in runs if each.network == network]
    missing = sum(not finished(each, folder) for each in own)
    said = [f"{missing} of {len(own)} runs are not there yet."] if missing else []
    if hindrance is not None:
        said.append(
            f"Not planned yet are those that depend on the choice of the weights, where {_code(hindrance)} is missing."
        )
    return " ".join(said)


def filled(text: str, folder: Path = RESULTS) -> str:
    """The page with its tables."""
    blocks: dict[str, Callable[[], str]] = {
        "in-short": lambda: in_short(folder),
        "search": lambda: search(folder),
        "weights": lambda: weights(folder),
        "grid": lambda: grid(folder, known_arms(folder), (*CLEAN, *DECOYED), "simple_cnn", "grid"),
        "faithfulness": lambda: faithfulness(folder, known_arms(folder), (*CLEAN, *DECOYED)),
        "further": lambda: grid(folder, known_arms(folder), FURTHER, "simple_cnn", "grid"),
        "resnet18": lambda: grid(folder, known_arms(folder), ("mnist", "decoy-mnist"), "resnet18", "large"),
        "reduced": lambda: grid(folder, known_arms(folder), ("decoy-mnist",), "resnet18", "reduced"),
        "convnextv2_tiny": lambda: grid(
            folder, known_arms(folder), ("mnist", "decoy-mnist"), "convnextv2_tiny", "large"
        ),
    }
    made = {}
    for name, block in blocks.items():
        try:
            made[name] = block()
        except NotYetError as missing:
            made[name] = f"Not run yet: {missing}."
    return put(text, made, PAGE.name)


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--results", type=Path, default=RESULTS)
    options = made.parse_args()
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), options.results), encoding="utf-8")


if __name__ == "__main__":
    main()
