"""Put tables of committed results into the README and into the page on the demo: ``python -m benchmarks.update_readme``."""

from __future__ import annotations

from functools import partial
from typing import Any

from .dead_maps_table import dead_maps
from .study.arms import PLAIN
from .study.page import RESULTS as RUNS
from .study.page import SETS, about, difference, written
from .study.plans import CLEAN, DECOYED, FURTHER, RECIPE, known
from .study.summary import cell_of, collected
from .writing import ROOT, machine, markdown, put, result

COMMANDS = {
    "digits": "batchcam demo --seeds 0,1,2",
    "fashion-mnist": "batchcam demo --data fashion-mnist --data-root DIR --seeds 0,1,2",
}
#: Library -> its name in the results.
PEERS = {
    "batchcam_captum": "BatchGradCam",
    "Captum": "Captum",
    "pytorch-grad-cam": "pytorch-grad-cam, batched",
    "TorchCAM": "TorchCAM",
}
CASES = {
    "resnet18, batch 64": "ResNet-18, 64 images",
    "vit_small_patch16_224, batch 8": "ViT-S/16, 8 images",
}
#: What no benchmark measures: the sources and the documentation of the versions that the comparison names, and its tests.
WORDS = {
    "a loss on maps trains the head": (
        "`differentiable=True`", '`grad_kwargs={"create_graph": True}`', "no: NumPy", "no: detached",
    ),
    "after a call, in train mode": (
        "nothing changed", "BatchNorm statistics moved", "left in eval mode, `.grad` filled", "hooks until removed",
    ),
}  # fmt: skip


def demo(name: str) -> str:
    """Return the command, settings, machine and table of the demo with a data set."""
    results = result(f"demo-{name}")
    settings = results["settings"]
    return "\n".join(
        [
            f"**{name}**: `{COMMANDS[name]}`; {settings['epochs']} epochs, batches of {settings['batch_size']}, seeds "
            f"{', '.join(map(str, settings['seeds']))}; {machine(results['environment'])}.",
            "",
            results["table"],
        ]
    )


def study() -> str:
    """Return the accuracy of the recipe and of cross-entropy on each data set."""
    runs = known("grid", RUNS)[0]
    cells = collected(RUNS, runs)
    rows = []
    for data in (*CLEAN, *DECOYED, *FURTHER[2:]):  # the page has all
        plain, recipe = (cell_of(cells, data, "simple_cnn", arm) for arm in (PLAIN, RECIPE))
        rows.append(
            [
                SETS[data],
                written(plain, "accuracy"),
                written(recipe, "accuracy"),
                difference(recipe, plain, "accuracy"),
                f"{written(plain, 'ssim')} → {written(recipe, 'ssim')}",
            ]
        )
    heading = [
        "test accuracy, %",
        "cross-entropy",
        "with the recipe",
        "difference",
        "SSIM of map to prototype",
    ]
    shown = [run for run in runs if run.network == "simple_cnn" and run.arm in (PLAIN, RECIPE)]
    where = f"`python -m benchmarks.study grid --data-root DIR`; {about(RUNS, shown).strip('*')}"
    return "\n".join([markdown(heading, rows), "", where])


def step() -> str:
    """Return the time of a training step with the recipe, and of a second plain one, divided by that of a plain one."""
    results = result("recipe_step-cpu")
    figures = {(figure["case"], figure["figure"]): figure for figure in results["figures"]}
    rows = [
        [case, *(_quartiles(figures[case, f"{arm} ÷ plain"]) for arm in ("foreground_shape", "plain, again"))]
        for case in dict.fromkeys(case for case, _ in figures)
        if "64 px" not in case  # the page has all
    ]
    heading = ["time of a training step ÷ plain step, median (quartiles)", "with the recipe", "plain, again"]
    return "\n".join(
        [
            markdown(heading, rows),
            "",
            f"`python benchmarks/recipe_step.py`; {machine(results['environment'])}.",
        ]
    )


def _quartiles(figure: dict[str, Any]) -> str:
    return f"{figure['value']:.2f} ({figure['q1']:.2f} to {figure['q3']:.2f})"


def peers() -> str:
    """Return time, memory and maps of the other libraries, and what no benchmark measures."""
    cost, maps = result("comparison_cost-cpu"), result("comparison-cpu")
    cases = {case["case"]: case for case in cost["cases"]}
    rows = [
        [f"{label}: time ÷ bare forward", *(f"{_ratio(cases[name], peer):.2f}" for peer in PEERS.values())]
        for name, label in CASES.items()
    ]
    name, label = next(iter(CASES.items()))
    memory = (f"{cases[name]['peak_bytes'][peer] / 1e6:,.0f} MB" for peer in PEERS.values())
    rows.append([f"{label}: memory of a call", *memory])
    rows.append(
        [
            "largest difference from our maps, float64",
            "",
            *(_apart(maps, peer) for peer in list(PEERS)[1:]),
        ]
    )
    rows += [[label, *words] for label, words in WORDS.items()]
    versions = cost["environment"]["peers"] | {"Captum": cost["environment"]["captum"]}
    others = ", ".join(f"{peer} {version}" for peer, version in versions.items())
    where = f"`make comparison`; {machine(cost['environment'])}; {others}."
    return "\n".join([markdown(["", *PEERS], rows), "", where])


def _ratio(case: dict[str, Any], peer: str) -> float:
    return float(case["seconds"][peer]["median"] / case["seconds"]["bare forward"]["median"])


def _apart(record: dict[str, Any], peer: str) -> str:
    """Return the largest difference over all networks and methods."""
    found = [case["maps"].get(peer, {}) for case in record["cases"] if case["variant"] == "float64"]
    return f"{max(entry['max'] for maps in found for entry in maps.values()):.1e}".replace("e-0", "e-")


#: File -> its blocks.
FILES = {
    "README.md": {"study": study, "step": step, "peers": peers},
    "docs/explanation/dead_maps.md": {"dead_maps": dead_maps},
    "docs/evidence/demo.md": {name: partial(demo, name) for name in COMMANDS},
}


def filled(text: str, file: str = "README.md") -> str:
    """Return the text of a file with every block brought up to date."""
    return put(text, {name: block() for name, block in FILES[file].items()}, file)


if __name__ == "__main__":
    for file in FILES:
        path = ROOT / file
        path.write_text(filled(path.read_text(encoding="utf-8"), file), encoding="utf-8")
