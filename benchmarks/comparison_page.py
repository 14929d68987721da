"""Put the tables of the comparison's committed results into docs/comparison.md, between their markers."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tables import table as figure_table
from writing import RESULTS, ROOT, machine, markdown, put

PAGE = ROOT / "docs" / "comparison.md"
BARE = "bare forward"
#: Result -> heading, for the tables that a page shows unfolded.
LIBRARIES = {
    "BatchGradCam": "this package",
    "Captum": "Captum",
    "TorchCAM": "TorchCAM",
    "pytorch-grad-cam, batched": "pytorch-grad-cam",
    "pytorch-grad-cam, image by image": "pytorch-grad-cam, image by image",
}

Record = dict[str, Any]


def sections(name: str, made: Callable[[Record], str], results: Path) -> str:
    """Return a section for each file of a script, the CPU's first; a device without results is named.

    Args:
        name: of the script.
        made: makes the tables of one file.
        results: the folder of the files.
    """
    parts = []
    for kind, device, option in (("cpu", "CPU", ""), ("cuda", "GPU", " DEVICE=cuda")):
        paths = sorted(results.glob(f"{name}-*{kind}.json"))
        if not paths:
            parts.append(f"**On a {device}: not measured yet.** `make comparison{option}` does it.")
        for path in paths:
            record = json.loads(path.read_text(encoding="utf-8"))
            extras = path.stem.removeprefix(name).removesuffix(kind).strip("-").replace("-", " ")
            title = f"On a {device}{', ' if extras else ''}{extras}"
            parts += [f"**{title}.** {from_machine(record)}", made(record)]
    return "\n\n".join(parts)


def from_machine(record: Record) -> str:
    """Say where and with which versions a file's numbers were measured."""
    environment = record["environment"]
    peers = environment["peers"]
    versions = {
        "pytorch-grad-cam": peers["grad-cam"], "TorchCAM": peers["torchcam"], "Captum": environment["captum"],
        "timm": peers["timm"], "torchvision": peers["torchvision"],
    }  # fmt: skip
    said = [machine(environment)]
    if environment.get("driver"):
        said.append(f"driver {environment['driver']}, CUDA {environment['cuda']}")
    said += [f"{name} {version or 'not installed'}" for name, version in versions.items()]
    said.append(f"{environment['date'][:10]}, commit {environment['commit'] or 'unknown'}")
    return f"*{', '.join(said)}.*"


def folded(title: str, *parts: str) -> str:
    """Fold parts away under a title."""
    return "\n\n".join(["<details>", f"<summary>{title}</summary>", *parts, "</details>"])


def small(value: float) -> str:
    """Write a difference: zero, two digits and a power of ten, or three digits after the point."""
    if value in (0, float("inf")):
        return "NaN" if value else "0"
    if value >= 1e-3:
        return f"{value:.3f}"
    digits, power = f"{value:.1e}".split("e")
    return f"{digits}e{int(power)}"


# Agreement


def _entries(record: Record, **wanted: str) -> Iterator[dict[str, Any]]:
    """Yield the numbers of every network, precision, library and method that is wanted."""
    for case in record["cases"]:
        for peer, maps in case["maps"].items():
            for method, entry in maps.items():
                named = {"peer": peer, "method": method, "variant": case["variant"]}
                named["architecture"] = case["architecture"]
                if all(named[key] == value for key, value in wanted.items()):
                    yield named | entry


def _worst(record: Record, **wanted: str) -> str:
    found = list(_entries(record, **wanted))
    values = [entry["max"] for entry in found if "max" in entry]
    return small(max(values)) if values else "fails" if found else ""


def agreement(record: Record) -> str:
    """Return a row per precision; what was missed; and, folded, a row per method and per network."""
    every = list(_entries(record))
    variants, peers, networks, methods = (
        list(dict.fromkeys(entry[key] for entry in every))
        for key in ("variant", "peer", "architecture", "method")
    )
    exact = [variant for variant in variants if variant in ("float64", "float32")]
    columns = [(peer, variant) for peer in peers for variant in exact]

    def overall(variant: str, peer: str) -> str:
        values = [entry["max"] for entry in _entries(record, variant=variant, peer=peer) if "max" in entry]
        median = f" (median {small(statistics.median(values))})" if values else ""
        return _worst(record, variant=variant, peer=peer) + median

    where = {case["architecture"]: case for case in record["cases"]}
    by_network = [
        [
            name,
            f"{where[name]['source']} `{where[name]['model']}`, `{where[name]['layer']}`",
            *(_worst(record, peer=peer, variant=variant, architecture=name) for peer, variant in columns),
        ]
        for name in networks
    ]
    by_method = [
        [f"`{method}`", *(_worst(record, peer=peer, variant=v, method=method) for peer, v in columns)]
        for method in methods
    ]
    heads = [f"{peer}, {variant}" for peer, variant in columns]
    return "\n\n".join(
        [
            f"The largest difference of {len(networks)} networks and {len(methods)} methods:",
            markdown(["", *peers], [[v, *(overall(v, peer) for peer in peers)] for v in variants]),
            _missed(record),
            folded("By method", markdown(["", *heads], by_method)),
            folded("By network", markdown(["", "layer", *heads], by_network)),
        ]
    )


def _missed(record: Record) -> str:
    """Name what missed its limit, with the distance of each library's maps from its own float64 maps."""
    aimed = [figure for figure in record["figures"] if figure["reach"] is not None]
    missed = {}
    for figure in aimed:
        if not figure["reached"]:
            missed[figure["case"], figure["figure"].rpartition(",")[0]] = figure["reach"]
    rows = []
    for entry in _entries(record):
        case = f"{entry['architecture']}, {entry['variant']}"
        reach = missed.get((case, entry["peer"]))
        if reach is not None and entry.get("max", 0) > reach:
            own = entry.get("from_float64", {})
            distances = [small(own[side]) if side in own else "" for side in ("theirs", "ours")]
            rows.append([case, f"{entry['peer']}, `{entry['method']}`", small(entry["max"]), *distances])
    reached = {
        case["variant"]: [f["reach"] for f in aimed if f["case"] == case["case"]] for case in record["cases"]
    }
    limits = ", ".join(f"{variant} {small(min(found))}" for variant, found in reached.items() if found)
    said = f"Limits: {limits}; for Captum at least 1e-5. Missed: {len(missed)} of {len(aimed)}."
    if not rows:
        return said
    heads = [
        "network",
        "library and method",
        "difference",
        "theirs from its float64",
        "ours from its float64",
    ]
    return f"{said}\n\n{folded('What was missed, and how much of it is rounding', markdown(heads, rows))}"


# Pictures


def pictures(record: Record) -> str:
    """Return the largest difference of the pictures' maps."""
    compared = [case for case in record["cases"] if "peer" in case]
    methods = list(dict.fromkeys(method for case in compared for method in case["maps"]))
    rows = [
        [
            f"{case['peer']}, {case['variant']}",
            *(small(case["maps"][method]["max"]) if method in case["maps"] else "" for method in methods),
        ]
        for case in compared
    ]
    return markdown(["largest difference", *(f"`{method}`" for method in methods)], rows)


def steps(record: Record) -> str:
    """Return what differs without a preset."""
    rows = [
        [case["case"], small(case["step"]["max"]), f"{case['step'].get('top20', 1.0):.2f}", case["remedy"]]
        for case in record["cases"]
        if "step" in case
    ]
    return markdown(["what differs", "largest difference", "top-20 % overlap", "what bridges it"], rows)


# Cost


def cost(record: Record) -> str:
    """Return time relative to the bare forward; and, folded, memory and the limits."""
    cases = record["cases"]
    ratios = {(figure["case"], figure["figure"]): figure["value"] for figure in record["figures"]}

    def ratio(case: Record, method: str) -> str:
        if method in case["failed"]:
            return "out of memory" if case["failed"][method] == "out of memory" else "fails"
        value = ratios.get((case["case"], f"{method} ÷ {BARE}"))
        return "not measured" if value is None else f"{value:.2f}"

    def milliseconds(case: Record) -> str:
        bare = case.get("seconds", {}).get(BARE)
        return "" if bare is None else f"{1000 * bare['median']:.1f} ms"

    times = [[c["case"], milliseconds(c), *(ratio(c, method) for method in LIBRARIES)] for c in cases]
    parts = [
        f"Time, as a multiple of the {BARE} of the same batch:",
        markdown(["", BARE, *LIBRARIES.values()], times),
    ]
    measured = [BARE, *LIBRARIES]
    memory = [
        [c["case"], *(f"{c['peak_bytes'][m] / 1e6:.0f}" if m in c["peak_bytes"] else "" for m in measured)]
        for c in cases
        if c["peak_bytes"]
    ]
    if memory:
        table = markdown(["", BARE, *LIBRARIES.values()], memory)
        parts.append(folded("Peak memory beyond the model and its inputs, MB", table))
    aimed = [figure for figure in record["figures"] if figure["reach"] is not None]
    if aimed:
        missed = sum(not figure["reached"] for figure in aimed)
        parts.append(folded(f"Limits; missed: {missed} of {len(aimed)}", figure_table(aimed)))
    reasons = sorted({f"- {method}: {why}" for case in cases for method, why in case["failed"].items()})
    return "\n\n".join([*parts, *(["Not run:", "\n".join(reasons)] if reasons else [])])


#: What is counted -> its heading, and how it is shown, given the arithmetic of a bare forward.
COLUMNS: dict[str, tuple[str, Callable[[float, float], str]]] = {
    "flops": ("arithmetic ÷ bare forward", lambda value, bare: f"{value / bare:.2f}"),
    "forwards": ("forwards", lambda value, _: str(value)),
    "saved_bytes": ("kept for a backward, MB", lambda value, _: f"{value / 1e6:.1f}"),
    "autograd_nodes": ("autograd nodes run", lambda value, _: str(value)),
    "operators": ("operators", lambda value, _: str(value)),
    "kernels": ("kernels", lambda value, _: str(value)),
}


def profile(record: Record) -> str:
    """Return the counts of one call, a table per network and batch size; all but the first are folded."""
    made = []
    for case in record["cases"]:
        counts = case["counts"]
        names = [name for name in COLUMNS if any(name in entry for entry in counts.values())]
        rows = [
            [
                LIBRARIES.get(method, method),
                *(COLUMNS[n][1](entry[n], counts[BARE]["flops"]) if n in entry else "" for n in names),
            ]
            for method, entry in counts.items()
            if method == BARE or method in LIBRARIES
        ]
        made.append(markdown([f"**{case['case']}**", *(COLUMNS[name][0] for name in names)], rows))
    return "\n\n".join([*made[:1], *([folded("Other networks", *made[1:])] if made[1:] else [])])


BLOCKS: dict[str, tuple[str, Callable[[Record], str]]] = {
    "agreement": ("comparison", agreement),
    "pictures": ("comparison_pictures", pictures),
    "steps": ("comparison_pictures", steps),
    "profile": ("comparison_profile", profile),
    "cost": ("comparison_cost", cost),
}


def filled(text: str, results: Path = RESULTS) -> str:
    """Return the page's text with every block brought up to date."""
    blocks = {block: sections(name, made, results) for block, (name, made) in BLOCKS.items()}
    return put(text, blocks, "docs/comparison.md")


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
