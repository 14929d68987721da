"""Put the tables of the comparison's committed results into docs/comparison.md, between their markers."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tables import table as figure_table
from writing import RESULTS, ROOT, machine, markdown, put

PAGE = ROOT / "docs" / "comparison.md"
#: What makes the results.
COMMAND = "make comparison"
BARE = "bare forward"

Record = dict[str, Any]


def records(name: str, kind: str, results: Path = RESULTS) -> dict[str, Record]:
    """The results of a script on one kind of device.

    Args:
        name: of the script.
        kind: ``"cpu"`` or ``"cuda"``.
        results: the folder of the files.

    Returns:
        What the file's name says beyond that (``"tf32"``, ``"channels-last"``, …; empty for the plain run) -> its contents.
    """
    found = {}
    for path in sorted(results.glob(f"{name}-*{kind}.json")):
        extras = path.stem.removeprefix(name).removesuffix(kind).strip("-")
        found[extras] = json.loads(path.read_text(encoding="utf-8"))
    return found


def from_machine(record: Record) -> str:
    """Where and with what a file's numbers were measured."""
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


def sections(name: str, made: Callable[[Record], str], results: Path) -> str:
    """A section for each file of a script: the CPU's, then the GPU's; what is not there is said.

    Args:
        name: of the script.
        made: the tables of a file.
        results: the folder of the files.
    """
    parts = []
    for kind, device, option in (("cpu", "CPU", ""), ("cuda", "GPU", " DEVICE=cuda")):
        found = records(name, kind, results)
        if not found:
            parts.append(f"**On a {device}: not measured yet.** `{COMMAND}{option}` does it.")
        for extras, record in found.items():
            title = f"On a {device}" + (f", {extras.replace('-', ' ')}" if extras else "")
            parts += [f"**{title}.** {from_machine(record)}", made(record)]
    return "\n\n".join(parts)


def small(value: float) -> str:
    """A difference: zero, two digits and a power of ten, or three digits after the point."""
    if value == 0:
        return "0"
    if value == float("inf"):
        return "NaN"
    if value >= 1e-3:
        return f"{value:.3f}"
    digits, power = f"{value:.1e}".split("e")
    return f"{digits}e{int(power)}"


def agreement(record: Record) -> str:
    """Precision by precision, method by method, network by network; then what failed and what was missed."""
    cases = record["cases"]
    variants = list(dict.fromkeys(case["variant"] for case in cases))
    peers = list(dict.fromkeys(peer for case in cases for peer in case["maps"]))
    networks = list(dict.fromkeys(case["architecture"] for case in cases))
    methods = list(
        dict.fromkeys(method for case in cases for maps in case["maps"].values() for method in maps)
    )
    exact = [variant for variant in variants if variant in ("float64", "float32")]

    def entries(**wanted: str) -> list[dict[str, Any]]:
        return [
            entry
            for case in cases
            if all(case[key] == wanted[key] for key in ("variant", "architecture") if key in wanted)
            for peer, maps in case["maps"].items()
            if peer == wanted["peer"]
            for method, entry in maps.items()
            if wanted.get("method", method) == method
        ]

    def worst(**wanted: str) -> str:
        values = [entry["max"] for entry in entries(**wanted) if "max" in entry]
        return small(max(values)) if values else ("fails" if entries(**wanted) else "")

    def rounding(method: str) -> str:
        moved = [entry["rounded"] for entry in entries(peer=peers[0], method=method) if "rounded" in entry]
        return small(max(moved)) if moved else ""

    def overall(variant: str, peer: str) -> str:
        made = [entry for entry in entries(variant=variant, peer=peer) if "max" in entry]
        if not made:
            return worst(variant=variant, peer=peer)
        # A map that is zero in both says nothing.
        maps, same, zero = (
            sum(entry.get(key, 0) for entry in made) for key in ("maps", "identical", "zero_in_both")
        )
        median = statistics.median(entry["max"] for entry in made)
        exactly = f"{same - zero} of {maps - zero} maps to the last bit"
        return f"{worst(variant=variant, peer=peer)} (median {small(median)}); {exactly}"

    missed = [figure for figure in record["figures"] if figure["reached"] is False]
    aimed = [figure for figure in record["figures"] if figure["reach"] is not None]
    parts = [
        f"{len(networks)} networks, {len(methods)} methods. Limits: {_limits(record)}. Missed: {len(missed)} of {len(aimed)} "
        "(a network in one precision against one library, the worst of its methods).",
        "Largest difference of all networks and methods:",
        markdown(["", *peers], [[v, *(overall(v, peer) for peer in peers)] for v in variants]),
        "By method, the largest difference of all networks:",
        markdown(
            ["", *(f"{peer}, {variant}" for peer in peers for variant in exact), "rounding alone"],
            [
                [
                    f"`{method}`",
                    *(worst(peer=p, variant=v, method=method) for p in peers for v in exact),
                    rounding(method),
                ]
                for method in methods
            ],
        ),
        "By network, the largest difference of all methods:",
        markdown(
            ["", "layer", "pixels", *(f"{peer}, {variant}" for peer in peers for variant in exact)],
            [
                [
                    name,
                    *_where(cases, name),
                    *(worst(peer=p, variant=v, architecture=name) for p in peers for v in exact),
                ]
                for name in networks
            ],
        ),
    ]
    parts += _in_words(cases)
    failed = {
        (case["variant"], peer, entry["failed"])
        for case in cases
        for peer, maps in case["maps"].items()
        for entry in maps.values()
        if "failed" in entry
    }
    if failed:
        parts += ["Not run:", "\n".join(f"- {v}: {why}" for v, _, why in sorted(failed))]
    misses = [note.removeprefix("Missed: ") for note in record["notes"] if note.startswith("Missed: ")]
    if misses:
        parts += ["Missed:", "\n".join(f"- {note}" for note in misses)]
    return "\n\n".join(parts)


def _in_words(cases: list[dict[str, Any]]) -> list[str]:
    """What the largest differences come from, where there are any."""
    made = [
        (entry["max"], case["architecture"], case["variant"], peer, method, entry)
        for case in cases
        for peer, maps in case["maps"].items()
        for method, entry in maps.items()
        if "max" in entry
    ]
    said = []
    single = [found for found in made if found[2] == "float32" and found[3] != "Captum"]
    if single:
        outlier = max(single, key=lambda found: found[0])
        others = [found[0] for found in single if found[1] != outlier[1]]
        if others:
            said.append(
                f"In float32 the largest difference from pytorch-grad-cam and TorchCAM is {small(outlier[0])}, in {outlier[1]}; "
                f"without {outlier[1]} it is {small(max(others))}."
            )
    graphs = [(found[5]["differentiable"], *found[1:5]) for found in made if "differentiable" in found[5]]
    for variant in dict.fromkeys(found[2] for found in graphs):
        worst: dict[str, tuple[Any, ...]] = {}
        for found in graphs:
            if found[2] == variant and found[0] > worst.get(found[4], (-1.0,))[0]:
                worst[found[4]] = found
        said.append(
            f"Differentiable maps, summed by torch, {variant}, largest difference from pytorch-grad-cam: "
            + ", ".join(f"`{method}` {small(found[0])} ({found[1]})" for method, found in worst.items())
            + "."
        )
    low = [found for found in made if found[2] == "bfloat16" and found[0] > 0.5]
    if low:
        named = ", ".join(
            f"{name} `{method}` ({peer}: {small(value)})" for value, name, _, peer, method, _ in low
        )
        said.append(
            f"In bfloat16, with its three decimal digits, these maps are noise in either library: {named}. XGrad-CAM divides by "
            "the sum of a channel's activations and Grad-CAM++ by a sum of either sign, which pass through zero."
        )
    return ["\n\n".join(said)] if said else []


def _where(cases: list[dict[str, Any]], name: str) -> tuple[str, str]:
    case = next(case for case in cases if case["architecture"] == name)
    return f"{case['source']} `{case['model']}`, `{case['layer']}`", str(case["size"])


def _limits(record: Record) -> str:
    """Figure by figure what was to be reached, said once each."""
    found: dict[float, None] = {}
    for figure in record["figures"]:
        if figure["reach"] is not None:
            found[figure["reach"]] = None
    return ", ".join(small(reach) for reach in sorted(found))


def pictures(record: Record) -> str:
    """What the network sees, and how far the maps are apart."""
    seen = [case for case in record["cases"] if "predictions" in case]
    compared = [case for case in record["cases"] if "peer" in case]
    rows = [
        [
            f"`{case['case']}`",
            ", ".join(f"{best['name']} {100 * best['probability']:.0f} %" for best in case["predictions"]),
        ]
        for case in seen
    ]
    methods = list(dict.fromkeys(method for case in compared for method in case["maps"]))
    apart = [
        [
            f"{case['peer']}, {case['variant']}",
            *(small(case["maps"][method]["max"]) if method in case["maps"] else "" for method in methods),
        ]
        for case in compared
    ]
    return "\n\n".join(
        [
            markdown(["picture of scikit-image", "what EfficientNet-Lite0 sees"], rows),
            "Largest difference of these pictures' maps:",
            markdown(["", *(f"`{method}`" for method in methods)], apart),
        ]
    )


def steps(record: Record) -> str:
    """What differs without a preset."""
    rows = [
        [
            case["case"], small(case["step"]["max"]), small(case["step"]["mean"]),
            f"{case['step'].get('top20', 1.0):.2f}", case["remedy"],
        ]
        for case in record["cases"]
        if "step" in case
    ]  # fmt: skip
    heading = ["what differs", "largest difference", "mean", "top-20 % overlap", "what bridges it"]
    return markdown(heading, rows)


def cost(record: Record) -> str:
    """Time and memory against the batch size, and the ratios that were to be reached."""
    cases = record["cases"]
    methods = list(dict.fromkeys(m for c in cases for m in [*c.get("seconds", {}), *c["failed"]]))
    ratios = {(figure["case"], figure["figure"]): figure for figure in record["figures"]}

    def ratio(case: dict[str, Any], method: str) -> str:
        if method in case["failed"]:
            reason = case["failed"][method]
            return reason if reason == "out of memory" else "fails"
        if method in case.get("skipped", {}):
            return "not measured"
        figure = ratios.get((case["case"], f"{method} ÷ {BARE}"))
        return "" if figure is None else f"{figure['value']:.2f}"

    times = []
    for case in cases:
        bare = case.get("seconds", {}).get(BARE)
        times.append(
            [
                case["case"],
                "" if bare is None else f"{1000 * bare['median']:.1f} ms",
                *(ratio(case, method) for method in methods if method != BARE),
            ]
        )
    parts = [
        f"Time, as a multiple of the {BARE} of the same batch:",
        markdown(["", BARE, *(method for method in methods if method != BARE)], times),
    ]
    with_memory = [case for case in cases if case["peak_bytes"]]
    if with_memory:
        measured = list(dict.fromkeys(method for case in with_memory for method in case["peak_bytes"]))
        parts += [
            "Peak memory beyond the model and its inputs, MB:",
            markdown(
                ["", *measured],
                [
                    [
                        case["case"],
                        *(
                            f"{case['peak_bytes'][m] / 1e6:.0f}" if m in case["peak_bytes"] else ""
                            for m in measured
                        ),
                    ]
                    for case in with_memory
                ],
            ),
        ]
    aimed = [figure for figure in record["figures"] if figure["reach"] is not None]
    if aimed:
        missed = sum(not figure["reached"] for figure in aimed)
        parts += [f"What was to be reached; missed: {missed} of {len(aimed)}.", figure_table(aimed)]
    reasons = sorted({f"- {method}: {why}" for case in cases for method, why in case["failed"].items()})
    if reasons:
        parts += ["Not run:", "\n".join(reasons)]
    return "\n\n".join(parts)


def profile(record: Record) -> str:
    """Counts of one call, a table a network and batch size."""
    parts = []
    for case in record["cases"]:
        counts = case["counts"]
        names = [name for name in COLUMNS if any(name in entry for entry in counts.values())]
        bare = counts[BARE]["flops"]
        rows = [
            [method, *(COLUMNS[name][1](entry[name], bare) if name in entry else "" for name in names)]
            for method, entry in counts.items()
        ]
        parts.append(markdown([f"**{case['case']}**", *(COLUMNS[name][0] for name in names)], rows))
    return "\n\n".join(parts)


#: What is counted -> its heading, and how it is shown, given the arithmetic of a bare forward.
COLUMNS: dict[str, tuple[str, Callable[[float, float], str]]] = {
    "flops": ("arithmetic, multiple of the bare forward", lambda value, bare: f"{value / bare:.2f}"),
    "forwards": ("forwards", lambda value, _: str(value)),
    "saved_bytes": ("kept for a backward, MB", lambda value, _: f"{value / 1e6:.1f}"),
    "autograd_nodes": ("autograd nodes run", lambda value, _: str(value)),
    "operators": ("operators", lambda value, _: str(value)),
    "kernels": ("kernels launched", lambda value, _: str(value)),
    "copies_to_device": ("copies to the GPU", lambda value, _: str(value)),
    "copies_to_host": ("copies to the host", lambda value, _: str(value)),
    "synchronisations": ("waits for the GPU", lambda value, _: str(value)),
}
BLOCKS: dict[str, tuple[str, Callable[[Record], str]]] = {
    "agreement": ("comparison", agreement),
    "pictures": ("comparison_pictures", pictures),
    "steps": ("comparison_pictures", steps),
    "profile": ("comparison_profile", profile),
    "cost": ("comparison_cost", cost),
}


def filled(text: str, results: Path = RESULTS) -> str:
    """The page's text with every block brought up to date."""
    blocks = {block: sections(name, made, results) for block, (name, made) in BLOCKS.items()}
    return put(text, blocks, "docs/comparison.md")


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
