"""``python -m benchmarks.study.page``: the tables of docs/study.md and the CSV files beside it, from the committed results."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ..writing import ROOT, machine, markdown, put
from .arms import PLAIN
from .choosing import NotYetError
from .data import base_and_shortcut
from .plans import CLEAN, DECOYED, FURTHER, OBJECTS, RECIPE, UPPER_BOUND, known, known_arms
from .settings import Settings, result_of
from .summary import Cell, cell_of, collected, paired

PAGE = ROOT / "docs" / "study.md"
#: Of the page's figures, and of the files that it offers.
FOLDER, DATA = ROOT / "docs" / "images", ROOT / "docs" / "data"
RESULTS = Path(__file__).parent / "results"
#: metric -> (heading, factor, digits, which way is better)
METRICS = {
    "accuracy": ("accuracy, %", 100, 2, "higher"),
    "ssim": ("SSIM to prototype", 1, 3, "higher"),
    "l1": ("L1 to prototype", 1, 3, "lower"),
    "cosine": ("cosine to prototype", 1, 3, "higher"),
    "coherence": ("coherence within a class", 1, 3, "higher"),
    "nearest_prototype": ("nearest prototype is that of the class, %", 100, 1, "higher"),
    "dead_fraction": ("dead cams, %", 100, 2, "lower"),
    "energy_in_object": ("energy in the object", 1, 3, "higher"),
    "hires_energy_in_object": ("energy in the object, HiResCAM", 1, 3, "higher"),
    "pointing_game": ("pointing game, %", 100, 1, "higher"),
    "energy_in_shortcut": ("energy in the shortcut", 1, 3, "lower"),
    "hires_energy_in_shortcut": ("energy in the shortcut, HiResCAM", 1, 3, "lower"),
    "insertion_auc": ("insertion AUC", 1, 3, "higher"),
    "deletion_auc": ("deletion AUC", 1, 3, "lower"),
    "road": ("ROAD", 1, 3, "higher"),
    "infidelity": ("infidelity, relative", 1, 3, "lower"),
    "max_sensitivity": ("max-sensitivity", 1, 3, "lower"),
    "randomized_ssim": ("SSIM to the map with random weights", 1, 3, "lower"),
    "randomized_spearman": ("rank correlation with it", 1, 3, "lower"),
    "randomized_dead": ("dead cams with random weights, %", 100, 1, "neither"),
    "seconds_per_step": ("ms per step", 1000, 1, "lower"),
}
FAITHFULNESS = (
    "insertion_auc", "deletion_auc", "road", "infidelity", "max_sensitivity", "randomized_ssim", "randomized_spearman",
    "randomized_dead",
)  # fmt: skip
SHORTCUT = ("energy_in_shortcut", "hires_energy_in_shortcut")
#: Data sets in words.
SETS = {
    "mnist": "MNIST",
    "fashion-mnist": "Fashion-MNIST",
    "decoy-mnist": "Decoy-MNIST (RRR)",
    "decoy-fashion-mnist": "Decoy-Fashion-MNIST (RRR)",
    "decoy-cdep-mnist": "Decoy-MNIST (CDEP)",
    "decoy-cdep-fashion-mnist": "Decoy-Fashion-MNIST (CDEP)",
    "decoy-fixed-mnist": "decoy always in one place",
    "color-mnist": "color on the digit itself",
}


def written(cell: Cell, metric: str) -> str:
    """Return mean ± standard deviation over the seeds, and say what is missing."""
    _, factor, digits, _ = METRICS[metric]
    mean, spread = cell.mean(metric), cell.spread(metric)
    if mean is None:
        return "diverged" if cell.diverged else "-"
    text = f"{mean * factor:.{digits}f}"
    if spread is not None:
        text += f" ± {spread * factor:.{digits}f}"
    count = len(cell.values(metric))
    if count < len(cell.metrics):
        text += f" ({count} of {len(cell.metrics)} seeds)"
    return text + (f" ({len(cell.diverged)} diverged)" if cell.diverged else "")


def difference(arm: Cell, plain: Cell, metric: str) -> str:
    """Return the paired difference to cross-entropy alone, with its p value."""
    found = paired(arm, plain, metric)
    if found is None:
        return "-"
    _, factor, digits, _ = METRICS[metric]
    remarks = []
    if found.p is not None:
        remarks.append(f"p = {found.p:.2g}" if found.p >= 0.001 else "p < 0.001")
    if found.seeds < len(arm.metrics) + len(arm.diverged):
        remarks.append(f"{found.seeds} pairs")
    return f"{found.mean * factor:+.{digits}f}" + (f" ({', '.join(remarks)})" if remarks else "")


def about(folder: Path, runs: Iterable[Settings]) -> str:
    """Return machines and commits of the finished runs."""
    found: dict[str, dict[str, None]] = {}
    for settings in runs:
        result = result_of(settings, folder)
        if result is not None:
            found.setdefault(machine(result["environment"]), {})[result["commit"] or "unknown"] = None
    texts = (f"{where}, commit {', '.join(commits)}" for where, commits in found.items())
    return f"*{'; '.join(texts)}.*" if found else ""


def in_short(folder: Path) -> str:
    """Compare the recipe with cross-entropy, with an arm that is told masks, and with training without the shortcut."""
    runs, arms = known("grid", folder)[0], known_arms(folder)
    cells = collected(folder, runs)
    rows = []
    for data in (*CLEAN, *DECOYED, *FURTHER):
        base, shortcut = base_and_shortcut(data)
        plain, recipe = (cell_of(cells, data, "simple_cnn", arm) for arm in (PLAIN, RECIPE))
        told = cell_of(cells, data, "simple_cnn", arms.get(OBJECTS, ""))
        clean = "" if shortcut is None else written(cell_of(cells, base, "simple_cnn"), "accuracy")
        rows.append(
            [
                SETS[data],
                written(plain, "accuracy"),
                f"**{written(recipe, 'accuracy')}**",
                difference(recipe, plain, "accuracy"),
                written(told, "accuracy") if told.metrics else "",
                clean,
            ]
        )
    heading = [
        "test accuracy, %",
        "cross-entropy",
        "recipe",
        "difference",
        "told the object's mask",
        "no shortcut at all",
    ]
    shown = [
        run for run in runs if run.network == "simple_cnn" and run.arm in (PLAIN, RECIPE, arms.get(OBJECTS))
    ]
    return f"{markdown(heading, rows)}\n\n{about(folder, shown)}"


def every_arm(folder: Path) -> str:
    """Return the accuracy of every arm on the four data sets that all arms were run on."""
    cells = collected(folder, known("grid", folder)[0])
    rows = []
    for name, arm in known_arms(folder).items():
        found = [cell_of(cells, data, "simple_cnn", arm) for data in (*CLEAN, *DECOYED)]
        told = "masks" if name in (UPPER_BOUND, OBJECTS, "rrr_cam", "energy") else ""
        rows.append(
            [
                f"`{arm}`" + (" (recipe)" if name == "recipe" else ""),
                told,
                *(written(cell, "accuracy") for cell in found),
            ]
        )
    return markdown(["arm", "told", *(SETS[data] for data in (*CLEAN, *DECOYED))], rows)


def maps(folder: Path) -> str:
    """Return how the maps of the recipe look and how faithful they are, next to those of cross-entropy."""
    cells = collected(folder, known("grid", folder)[0])
    rows = []
    for metric in ("ssim", "coherence", "dead_fraction", *FAITHFULNESS[:-1]):
        heading, _, _, better = METRICS[metric]
        row = [f"{heading}, {better} is better"]
        for data in CLEAN:
            plain, recipe = (cell_of(cells, data, "simple_cnn", arm) for arm in (PLAIN, RECIPE))
            found = paired(recipe, plain, metric)
            p = (
                ""
                if found is None or found.p is None
                else f"{found.p:.2g}"
                if found.p >= 0.001
                else "< 0.001"
            )
            row += [f"{written(plain, metric)} → {written(recipe, metric)}", p]
        rows.append(row)
    return markdown(["cross-entropy → recipe", "MNIST", "p", "Fashion-MNIST", "p"], rows)


def reduced(folder: Path) -> str:
    """Return accuracy and energy of a ResNet-18 trained on 5,000 images of Decoy-MNIST."""
    runs, arms = known("reduced", folder)[0], known_arms(folder)
    cells = collected(folder, runs)
    plain = cell_of(cells, "decoy-mnist", "resnet18")
    rows = []
    for label, arm in {
        "cross-entropy": PLAIN,
        "recipe": RECIPE,
        "told where the shortcut is": arms.get(UPPER_BOUND, ""),
    }.items():
        cell = cell_of(cells, "decoy-mnist", "resnet18", arm)
        shown = [written(cell, metric) for metric in ("energy_in_object", "energy_in_shortcut")]
        rows.append(
            [
                label,
                written(cell, "accuracy"),
                "" if arm == PLAIN else difference(cell, plain, "accuracy"),
                *shown,
            ]
        )
    heading = [
        "Decoy-MNIST (RRR)",
        "accuracy, %",
        "difference",
        "energy in the object",
        "energy in the shortcut",
    ]
    return f"{markdown(heading, rows)}\n\n{about(folder, runs)}"


def _csv(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def results_csv(folder: Path) -> str:
    """Return every arm on every data set and network: mean and standard deviation of every metric over the seeds."""
    heading = ["plan", "network", "data", "arm", "seeds", "diverged", "accuracy_difference", "accuracy_p"]
    rows: list[list[object]] = [
        [*heading, *(name for metric in METRICS for name in (metric, f"{metric}_std"))]
    ]
    for plan in ("grid", "large", "reduced"):
        cells = collected(folder, known(plan, folder)[0])
        for (data, network, arm), cell in sorted(cells.items()):
            found = None if arm == PLAIN else paired(cell, cell_of(cells, data, network), "accuracy")
            numbers = [value for metric in METRICS for value in (cell.mean(metric), cell.spread(metric))]
            compared = [None, None] if found is None else [found.mean, found.p]
            rows.append(
                [plan, network, data, arm, len(cell.metrics) + len(cell.diverged), len(cell.diverged)]
                + [value if value is None else f"{value:.6g}" for value in (*compared, *numbers)]
            )
    return _csv(rows)


def validation_csv(folder: Path) -> str:
    """Return every validation run, from which the recipe and the weights were chosen."""
    names = ("accuracy", "ssim", "coherence", "dead_fraction")
    rows: list[list[object]] = [["plan", "data", "arm", "layer", "commit", *names]]
    for plan in ("search", "weights"):
        for settings in known(plan, folder)[0]:
            result = result_of(settings, folder)
            if result is not None:
                found = [
                    f"{result['metrics'][name]:.6g}" if "metrics" in result else "diverged" for name in names
                ]
                rows.append(
                    [plan, settings.data, settings.arm, settings.layer, result["commit"] or "unknown", *found]
                )
    return _csv(rows)


FILES: dict[str, Callable[[Path], str]] = {"study.csv": results_csv, "study-validation.csv": validation_csv}
BLOCKS: dict[str, Callable[[Path], str]] = {
    "in-short": in_short,
    "every-arm": every_arm,
    "maps": maps,
    "reduced": reduced,
}


def filled(text: str, folder: Path = RESULTS) -> str:
    """Return the page with its tables."""
    made = {}
    for name, block in BLOCKS.items():
        try:
            made[name] = block(folder)
        except NotYetError as missing:
            made[name] = f"Not run yet: {missing}."
    return put(text, made, PAGE.name)


def main() -> None:
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    DATA.mkdir(exist_ok=True)
    for name, make in FILES.items():
        (DATA / name).write_text(make(RESULTS), encoding="utf-8")


if __name__ == "__main__":
    main()
