"""A comparison as JSON, as Markdown, and as a picture."""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ...files import folders_taken_back, written_together
from ..peers import OURS
from .cases import NOT_MEASURED
from .measure import Spread
from .result import Comparison, Cost, Skipped, encodable, titled

_NAME = "comparison"
_PICTURE = re.compile(rf"{_NAME}(-([2-9]|[1-9]\d+))?\.png", re.ASCII)
#: What Markdown does not show as it stands.
_SPECIAL = "\\`*_{}[]<>()#!|~$&"
_ESCAPED = re.compile(rf"\\([{re.escape(_SPECIAL)}])")
_NONE, _TIMES = "-", "\N{MULTIPLICATION SIGN}"

#: (key of the summary, heading)
_AGREEMENT = (
    ("max_difference", "max difference"),
    ("mean_difference", "mean difference"),
    ("ssim_min", "SSIM, min"),
    ("pearson_min", "Pearson, min"),
    ("spearman_min", "Spearman, min"),
    ("top_overlap_min", "top 20 %, min"),
)

#: Bytes of memory that the tables tell apart, and make a ratio of; the count is right to about half of that.
_SMALLEST = 2**19

_HOW_AGREEMENT = (
    "Ours is what this library gives through that library's preset, its own epsilons included. Differences: of maps in "
    "[0, 1] (unit), or relative to the pair's largest absolute value (raw). SSIM: Gaussian window of at most 11 with sigma 1.5. "
    "Top 20 %: intersection over union of the highest places, ties shared. Min: of the worst image; a correlation is undefined "
    "where a map is constant. Identical: to the last bit."
)
_HOW_TIME = (
    "Time: medians (quartiles), every library once a round, in rotating order, after a warm-up. Each library returns what it "
    "returns by itself: pytorch-grad-cam NumPy maps of the images' size, TorchCAM scaled maps of the layer's size, Captum and "
    "this library raw maps of the layer's size. Ratios are to this library, taken within a round; below 1 is faster."
)
_HOW_MEMORY = {
    "cpu": "Memory: what a call needs beyond model and images, by the resident memory's maximum in a process of its own "
    "for each library, whose allocator gives back at once what is freed; median of three calls.",
    "cuda": "Memory: what a call needs beyond model and images, by PyTorch's own count of what is allocated; median of three "
    "calls.",
}


def write(comparison: Comparison, folder: str | os.PathLike[str]) -> list[str]:
    """See :meth:`Comparison.write`."""
    from .figures import figures

    folder = Path(folder)
    drawn = figures(comparison)
    pictures = [f"{_NAME}{'' if page == 0 else f'-{page + 1}'}.png" for page in range(len(drawn))]
    text = markdown(comparison)
    for name, (description, _) in zip(pictures, drawn, strict=True):
        text += f"\n![{escaped(description)}]({name})\n"
    # Standard JSON: NaN and infinity have no place in it.
    record = json.dumps(_plain(comparison.as_dict()), indent=1, ensure_ascii=False, allow_nan=False)
    with folders_taken_back(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with written_together(folder) as new:
            (new / f"{_NAME}.json").write_text(record + "\n", encoding="utf-8")
            (new / f"{_NAME}.md").write_text(text, encoding="utf-8")
            with warnings.catch_warnings():
                # Of the names of files: an empty box stands for what the font lacks.
                warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
                for name, (description, figure) in zip(pictures, drawn, strict=True):
                    metadata = {"Title": "Comparison of maps", "Description": encodable(description)}
                    figure.savefig(new / name, dpi=120, metadata=metadata)
        # Pictures of an earlier comparison, with more methods than this one, belong to no report any more.
        for path in folder.iterdir():
            if _PICTURE.fullmatch(path.name) and path.name not in pictures and not path.is_dir():
                path.unlink()
    return [f"{_NAME}.json", f"{_NAME}.md", *pictures]


def markdown(comparison: Comparison) -> str:
    """See :meth:`Comparison.markdown`."""
    settings, machine = comparison.settings, comparison.environment
    versions = ", ".join(
        f"{escaped(library)} {escaped(version)}"
        for library, version in comparison.versions.items()
        if version
    )
    lines = [
        f"# {escaped(titled(settings))}, layer {escaped(settings['layer'])}",
        "",
        f"{_count(len(comparison.paths), 'image')}, {_TIMES.join(map(str, settings['image_shape']))}, targets "
        f"{settings['targets']}; {settings['dtype']} on {escaped(machine['device'])} ({escaped(machine['device_name'])}, "
        f"{_count(machine['threads'], 'thread')}); {settings['mode']} mode. {OURS.name} {machine['batchcam_captum']}, torch "
        f"{machine['torch']}, Python {machine['python']}; {versions or 'no other library'}.{_weights_and_images(settings)}",
        "",
        *(f"Remark: {escaped(remark)}." for remark in comparison.remarks),
        *([""] if comparison.remarks else []),
        "## Agreement",
        "",
    ]
    if comparison.pairs:
        heads = ("method", "library", "scale", *(head for _, head in _AGREEMENT), "identical", "notes")
        lines += [*_table(heads, map(_agreement_row, comparison.pairs)), "", _HOW_AGREEMENT, ""]
    else:
        lines += ["Nothing could be compared.", ""]
    for method in dict.fromkeys(cost.method for cost in comparison.costs):
        lines += _cost_tables(method, [cost for cost in comparison.costs if cost.method == method])
    if comparison.costs:
        lines += ["## How it was measured", "", f"{_HOW_TIME} {_allocator(machine)}", ""]
        if any(cost.peak_bytes is not None for cost in comparison.costs):
            lines += [_HOW_MEMORY[machine["device"].partition(":")[0]], ""]
    lines += _not_done(comparison)
    return "\n".join(lines).rstrip() + "\n"


def text(comparison: Comparison) -> str:
    """See :meth:`Comparison.text`."""
    return _ESCAPED.sub(r"\1", markdown(comparison))


def _weights_and_images(settings: dict[str, Any]) -> str:
    """Sentences on what the numbers depend on, where it is known."""
    found = ""
    if settings.get("weights"):
        found += f" Weights: {escaped(settings['weights'])}."
    taken = settings.get("preprocessing")
    if taken:
        of_channels = (
            f"{name} {', '.join(f'{value:g}' for value in taken[name])}" for name in ("mean", "std")
        )
        found += (
            f" Images: resized ({escaped(taken['interpolation'])}), the centre cut out ({taken['crop']:g} of the side) to "
            f"{_TIMES.join(map(str, taken['size']))}; {'; '.join(of_channels)}."
        )
    return found


def _allocator(machine: dict[str, Any]) -> str:
    """How the allocator of the process was set, on which times on the CPU depend."""
    settings = " ".join(f"{name}={value}" for name, value in machine.get("allocator", {}).items())
    if not settings:
        return "The C allocator was as it comes: on the CPU its page faults move such ratios from run to run."
    return f"The C allocator was set: {escaped(settings)}."


def _agreement_row(pair: Any) -> list[str]:
    summary = pair.agreement.summary()
    notes = [
        f"{summary[key]} {text}"
        for key, text in (
            ("constant", "without correlation"),
            ("zero_in_both", "zero in both"),
            ("zero_in_one", "zero in one"),
            ("not_finite", "not finite"),
        )
        if summary[key]
    ]
    return [
        escaped(pair.method),
        escaped(pair.library),
        pair.agreement.scale,
        *(_number(summary[key], exact=not key.endswith("difference")) for key, _ in _AGREEMENT),
        f"{summary['identical']} of {summary['maps']}",
        ", ".join(notes) or _NONE,
    ]


def _cost_tables(method: str, costs: Sequence[Cost]) -> list[str]:
    sizes = list(dict.fromkeys(cost.batch_size for cost in costs))
    libraries = list(dict.fromkeys(cost.library for cost in costs))
    found = {(cost.library, cost.batch_size): cost for cost in costs}
    ours = {size: found.get((OURS.name, size)) for size in sizes}

    def time(cost: Cost | None) -> str:
        if cost is None or cost.seconds is None:
            return _NONE
        ratio = cost.ratio_to_ours
        shown = "" if ratio is None or cost.library == OURS.name else f", {_spread(ratio, 1, _TIMES)}"
        return _spread(cost.seconds, 1000, " ms") + shown

    def memory(cost: Cost | None) -> str:
        if cost is None or cost.peak_bytes is None:
            return _NONE
        if cost.peak_bytes < _SMALLEST:
            return f"below {_SMALLEST / 2**20:g} MiB"
        mine = ours[cost.batch_size]
        shown = ""
        if cost.library != OURS.name and mine and mine.peak_bytes and mine.peak_bytes >= _SMALLEST:
            shown = f", {cost.peak_bytes / mine.peak_bytes:.2f}{_TIMES}"
        return f"{cost.peak_bytes / 2**20:.1f} MiB{shown}"

    heads = ("library", *(f"batch {size}" for size in sizes))
    lines = [f"## Time of {escaped(method)}", ""]
    lines += _table(
        heads, ([escaped(lib), *(time(found.get((lib, size))) for size in sizes)] for lib in libraries)
    )
    lines.append("")
    if any(cost.peak_bytes is not None for cost in costs):
        lines += [f"## Peak memory of {escaped(method)}", ""]
        lines += _table(
            heads, ([escaped(lib), *(memory(found.get((lib, size))) for size in sizes)] for lib in libraries)
        )
        lines.append("")
    return lines


def _not_done(comparison: Comparison) -> list[str]:
    """A line a library, in the order of their names; why memory was not measured, once for all that have the same reason."""
    unmeasured: dict[str, list[str]] = {}
    of_library: dict[str, dict[str, list[Skipped]]] = {name: {} for name in comparison.left_out}
    for entry in comparison.skipped:
        if entry.reason.startswith(NOT_MEASURED):
            unmeasured.setdefault(entry.reason, []).append(entry.library)
        else:
            of_library.setdefault(entry.library, {}).setdefault(entry.reason, []).append(entry)
    lines = []
    for library, reasons in sorted(of_library.items(), key=lambda item: item[0].lower()):
        if reasons:
            told = (f"{_where(entries)}: {escaped(reason)}" for reason, entries in reasons.items())
            lines.append(f"- {escaped(library)}, {'; '.join(told)}")
        else:
            lines.append(f"- {escaped(library)} is not installed.")
    for reason, libraries in unmeasured.items():
        names = ", ".join(map(escaped, sorted(set(libraries), key=str.lower)))
        lines.append(f"- Peak memory of {names}: {escaped(reason)}")
    lines += [
        f"- {escaped(path)} could not be read: {escaped(reason)}"
        for path, reason in comparison.failed.items()
    ]
    return ["## Left out", "", *lines, ""] if lines else []


def _where(entries: Iterable[Skipped]) -> str:
    """The methods, and their batch sizes if it is about these."""
    sizes: dict[str, list[str]] = {}
    for entry in entries:
        of_method = sizes.setdefault(entry.method, [])
        if entry.batch_size is not None:
            of_method.append(str(entry.batch_size))
    return ", ".join(
        escaped(method) + (f", batch {', '.join(batches)}" if batches else "")
        for method, batches in sizes.items()
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)]


def _number(value: float | None, *, exact: bool) -> str:
    if value is None:
        return _NONE
    if not exact:
        return "0" if value == 0 else f"{value:.1e}"
    # Not rounded up to what it has not reached.
    return "1" if value == 1 else f"{math.floor(value * 1e6) / 1e6:.6f}"


def _spread(spread: Spread, factor: float, unit: str) -> str:
    median, q1, q3 = (factor * value for value in (spread.median, spread.q1, spread.q3))
    return f"{median:.3g}{unit} ({q1:.3g} to {q3:.3g})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def escaped(text: object) -> str:
    """Text that Markdown shows as it is, on one line, also in a table: names of models, layers and files may hold anything."""
    line = " ".join(encodable(str(text)).split())
    return "".join(f"\\{sign}" if sign in _SPECIAL else sign for sign in line)


def _plain(value: Any) -> Any:
    """None for numbers that JSON does not have, and text for what is no plain value."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return encodable(value)
    return value if value is None or isinstance(value, int | bool) else str(value)
