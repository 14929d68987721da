"""Compare this package's maps with those of pytorch-grad-cam, Captum and TorchCAM, and what they cost."""

from __future__ import annotations

import copy
import json
import math
import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..attribution import BatchGradCam
from ..attribution.layers import layer_name
from ..attribution.reshape import Reshape, find_reshape
from ..environment import environment
from ..functional import CamMethod, ssim
from ..functional.overlay import gray_or_color
from ..optional import load
from .peers import OURS, PEERS, Peer, ReshapeCall
from .timing import Case, Spread, Within, interleaved, peak_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.figure import Figure

_TOGETHER = 16  # images per forward, for the maps
_SECONDS = 30.0  # the timing of one method and batch size takes about this long
_ROWS = 8  # images per method in the figure
_TOP = 0.2  # the share of a map's positions that count as its top
_TIMES = "\N{MULTIPLICATION SIGN}"
#: The names of the files that a comparison writes.
FILES = ("comparison.json", "comparison.md", "comparison.png")


@dataclass(frozen=True)
class Pair:
    """The maps of one method by one peer, and this package's maps in that peer's form."""

    method: str
    library: str
    scale: Literal["unit", "raw"]
    ours: Tensor = field(repr=False)  #: (N, 1, *spatial), on the CPU
    theirs: Tensor = field(repr=False)  #: the same shape, on the CPU
    agreement: list[dict[str, Any]] = field(repr=False)  #: one entry per image, see :func:`agreement`


@dataclass(frozen=True)
class Cost:
    """The cost of one call on a batch; None if it was not measured."""

    method: str
    library: str
    batch_size: int
    seconds: Spread | None
    ratio_to_ours: Spread | None  #: of the seconds, within a round
    rounds: int
    peak_bytes: int | None  #: beyond the model and the images


@dataclass(frozen=True)
class Skipped:
    """What was not compared or measured, and why."""

    method: str
    library: str
    reason: str
    batch_size: int | None = None  #: None: the maps


@dataclass
class Comparison:
    """The result of :func:`compare`."""

    settings: dict[str, Any]
    environment: dict[str, Any]  #: the machine and versions; in ``libraries`` None if one is not installed
    images: list[dict[str, Any]]  #: ``path`` and ``target`` of each image
    #: The first images, (_, H, W, 3) in [0, 1]; None if they are not two-dimensional.
    pictures: Tensor | None = field(repr=False)
    pairs: list[Pair]
    costs: list[Cost]
    skipped: list[Skipped]
    remarks: list[str]  #: what a reader of the numbers has to know, such as maps that are zero
    unreadable: dict[str, str] = field(default_factory=dict)  #: images that could not be read -> why

    def as_dict(self) -> dict[str, Any]:
        """Return everything but the tensors as plain values."""
        return {
            "settings": self.settings,
            "environment": self.environment,
            "images": self.images,
            "images_not_read": [{"path": path, "reason": reason} for path, reason in self.unreadable.items()],
            "agreement": [
                {
                    "method": pair.method,
                    "library": pair.library,
                    "scale": pair.scale,
                    "map_size": list(pair.theirs.shape[2:]),
                    "summary": summary(pair.agreement),
                    "maps": pair.agreement,
                }
                for pair in self.pairs
            ],
            "costs": [asdict(cost) for cost in self.costs],
            "skipped": [asdict(entry) for entry in self.skipped],
            "remarks": self.remarks,
        }

    def text(self) -> str:
        """Return the report for a terminal."""
        return _report(self, _printable)

    def markdown(self) -> str:
        """Return the report as Markdown, without its picture."""
        return _report(self, _escaped)

    def write(self, folder: str | os.PathLike[str]) -> list[str]:
        """Write ``comparison.json``, ``comparison.md`` and, for maps of images, ``comparison.png``.

        Files of these names are replaced; nothing else in the folder is touched.

        Args:
            folder: created if it does not exist.

        Returns:
            The names of the written files.

        Raises:
            OSError: the folder cannot be created or written to.
            ModuleNotFoundError: matplotlib is not installed.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        record, page, picture = FILES
        figure, markdown = draw(self), self.markdown()
        if figure is not None:
            figure.savefig(folder / picture, dpi=120)
            markdown += (
                f"\n![Maps of each library beside those of {OURS.name}, and their difference]({picture})\n"
            )
        (folder / page).write_text(markdown, encoding="utf-8")
        text = json.dumps(_plain(self.as_dict()), indent=1, allow_nan=False)
        (folder / record).write_text(text + "\n", encoding="utf-8")
        return [record, page, *([] if figure is None else [picture])]


def compare(
    model: nn.Module,
    layer: nn.Module | str,
    images: Tensor,
    *,
    methods: Sequence[str] = ("grad_cam",),
    targets: Sequence[int] | Tensor | None = None,
    libraries: Sequence[str] | None = None,
    batch_sizes: Sequence[int] = (),
    reshape: Reshape = None,
    repeats: int = 20,
    paths: Sequence[str] | None = None,
    pictures: Tensor | None = None,
    progress: bool = False,
) -> Comparison:
    """Compare the maps of this package with those of other libraries, and measure time and peak memory.

    Everything runs on a copy of the model in eval mode, on the model's device and in its dtype. A library that cannot do a
    method, or raises, is noted with the reason, and the others go on.

    Args:
        model: returns scores (N, K).
        layer: a module of it, or its dotted name.
        images: (N, C, *spatial), as the model expects them.
        methods: ``"grad_cam"``, ``"grad_cam_plus_plus"``, ``"xgrad_cam"``, ``"hires_cam"``, ``"layer_cam"``,
            ``"grad_cam_elementwise"``.
        targets: N classes from 0 to K − 1, one per image. Default: the predicted ones.
        libraries: ``"pytorch-grad-cam"``, ``"Captum"``, ``"TorchCAM"``. Default: all that are installed.
        batch_sizes: measure time and memory with batches of these sizes, made of the images. Default: no measurement.
        reshape: for layers that do not return (N, C, *spatial), as in :class:`~batchcam_captum.attribution.BatchGradCam`.
        repeats: the maximum number of timed rounds.
        paths: names of the images, for the report.
        pictures: (N, H, W, 3) in [0, 1], for the figure. Default: the images, each scaled from its minimum to its maximum.
        progress: show a progress bar on a terminal.

    Raises:
        ValueError: an argument that does not fit, a model that cannot be copied, or one that does not return scores (N, K).
        TypeError: images that are no tensor.
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"images: expected a tensor (N, C, *spatial), got {type(images).__name__}")
    if images.dim() < 3 or not len(images) or not images.is_floating_point():
        raise ValueError(
            f"images: expected at least one, floating-point, (N, C, *spatial), got {tuple(images.shape)} {images.dtype}"
        )
    names = [f"image {index}" for index in range(len(images))] if paths is None else list(map(str, paths))
    for argument, given in (("paths", names), ("pictures", images if pictures is None else pictures)):
        if len(given) != len(images):
            raise ValueError(f"{argument}: expected one for each of {len(images)} images, got {len(given)}")
    methods = check_names("methods", methods, OURS.classes)
    libraries = check_names("libraries", list(PEERS) if libraries is None else libraries, PEERS)
    if repeats < 1:
        raise ValueError(f"repeats: expected at least 1, got {repeats}")
    if any(size < 1 for size in batch_sizes):
        raise ValueError(f"batch_sizes: expected integers of at least 1, got {list(batch_sizes)}")
    versions = {library: PEERS[library].version for library in libraries}
    installed = [library for library in libraries if versions[library] is not None]
    with torch.inference_mode(False), torch.enable_grad(), _random_state_kept():
        setup, remarks = _set_up(model, layer, images, targets, reshape)
        pairs, skipped = _maps(setup, methods, installed, progress)
        costs, failures = _costs(setup, pairs, sorted(set(batch_sizes)), repeats, progress)
    settings = {
        "model": type(model).__name__,
        "layer": setup.layer,
        "methods": methods,
        "targets": "predicted" if targets is None else "given",
        "image_shape": list(images.shape[1:]),
        "dtype": str(setup.images.dtype).removeprefix("torch."),
        "reshape": reshape if reshape is None or isinstance(reshape, str) else "a function",
        "batch_sizes": sorted(set(batch_sizes)),
        "repeats": repeats,
    }
    return Comparison(
        settings=settings,
        environment=environment(setup.images.device) | {"libraries": versions},
        images=[{"path": path, "target": target} for path, target in zip(names, setup.targets, strict=True)],
        pictures=_pictures(images, pictures),
        pairs=pairs,
        costs=costs,
        skipped=[*skipped, *failures],
        remarks=[*remarks, *_dead(pairs)],
    )


# What is called


@dataclass(frozen=True)
class _Setup:
    model: nn.Module
    layer: str
    images: Tensor
    targets: list[int]
    reshape: ReshapeCall | None

    def opened(self, library: Peer, method: str) -> AbstractContextManager[Any]:
        return library.opened(self.model, self.layer, method, self.reshape)

    def pieces(self) -> Iterable[tuple[Tensor, list[int]]]:
        for start in range(0, len(self.images), _TOGETHER):
            yield self.images[start : start + _TOGETHER], self.targets[start : start + _TOGETHER]

    def ours(self, method: CamMethod) -> Tensor:
        """Return this package's raw maps, on the CPU."""
        grad_cam = BatchGradCam(self.model, self.layer, method=method, reshape=self.reshape)
        torch.manual_seed(0)  # for models that draw numbers in eval mode
        maps = [grad_cam.attribute(images, target=targets).cpu() for images, targets in self.pieces()]
        if maps[0].dim() < 3:
            raise ValueError(
                f"layer: expected maps (N, 1, *spatial), got {tuple(maps[0].shape)}; choose an earlier layer"
            )
        return torch.cat(maps)

    def theirs(self, peer: Peer, method: str) -> Tensor:
        with self.opened(peer, method) as call:
            torch.manual_seed(0)
            return torch.cat([call(images, targets).cpu() for images, targets in self.pieces()])

    def case(self, library: Peer, method: str, size: int) -> Case:
        """Return a call on a batch of this size."""
        rows = torch.arange(size) % len(self.images)
        images = self.images[rows.to(self.images.device)]
        targets = [self.targets[row] for row in rows.tolist()]
        if self.images.dim() == 4 and not self.images.is_contiguous():  # indexing does not keep channels_last
            images = images.contiguous(memory_format=torch.channels_last)

        @contextmanager
        def enter() -> Iterator[Callable[[], object]]:
            with self.opened(library, method) as call:
                yield lambda: call(images, targets)

        return Within(enter)


def _set_up(
    model: nn.Module,
    layer: nn.Module | str,
    images: Tensor,
    targets: Sequence[int] | Tensor | None,
    reshape: Reshape,
) -> tuple[_Setup, list[str]]:
    """Copy the model, and find targets and reshape in a first forward; return remarks on its scores as well."""
    name = layer_name(model, layer)
    model = _copied(model)
    floats = (entry for entry in (*model.parameters(), *model.buffers()) if entry.is_floating_point())
    anchor = next(floats, images)
    images = images.detach().clone().to(anchor.device, anchor.dtype)
    scores, output = _first_forward(model, name, images)
    broken = int((~scores.isfinite().all(1)).sum())
    remarks = [
        f"the scores of {broken} of {len(images)} images are NaN or infinite, so their maps mean nothing; check the weights, the "
        f"images and the dtype"
    ]
    setup = _Setup(
        model, name, images, _targets(targets, scores), _reshape(reshape, model, name, images, output)
    )
    return setup, remarks if broken else []


def _copied(model: nn.Module) -> nn.Module:
    try:
        model = copy.deepcopy(model).eval()
    except Exception as error:
        raise ValueError(f"model: expected one that copy.deepcopy can copy, got: {error}") from error
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())  # the other libraries need it
    return model


def _first_forward(model: nn.Module, layer: str, images: Tensor) -> tuple[Tensor, Any]:
    """Return the scores of all images, and the layer's output for the last ones."""
    outputs: list[Any] = [None]
    handle = model.get_submodule(layer).register_forward_hook(
        lambda _module, _inputs, output: outputs.append(output)
    )
    found: list[Tensor] = []
    with torch.no_grad():
        torch.manual_seed(0)
        for piece in images.split(_TOGETHER):
            scores: Any = model(piece)
            if not isinstance(scores, Tensor) or scores.dim() != 2 or len(scores) != len(piece):
                got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
                raise ValueError(
                    f"model: expected scores ({len(piece)}, K) for {len(piece)} images, got {got}; wrap the model in one that "
                    f"returns them"
                )
            found.append(scores)
    handle.remove()
    return torch.cat(found), outputs[-1]


def _targets(targets: Sequence[int] | Tensor | None, scores: Tensor) -> list[int]:
    chosen: Any = scores.argmax(1).tolist() if targets is None else torch.as_tensor(targets).tolist()
    samples, classes = scores.shape
    fits = isinstance(chosen, list) and len(chosen) == samples
    if not fits or not all(isinstance(index, int) and 0 <= index < classes for index in chosen):
        raise ValueError(
            f"targets: expected {samples} classes from 0 to {classes - 1}, one per image, got {chosen}"
        )
    return list(chosen)


def _reshape(
    reshape: Reshape, model: nn.Module, layer: str, images: Tensor, output: Any
) -> ReshapeCall | None:
    """Return a function that the other libraries take as well; None if nothing has to be rearranged."""
    if not isinstance(reshape, str):
        return reshape
    if not isinstance(output, Tensor):
        raise ValueError(f"reshape: expected {layer!r} to return one tensor; choose another layer")
    found = find_reshape(
        reshape,
        output,
        forward_func=model,
        layer=model.get_submodule(layer),
        input_size=tuple(images.shape[2:]),
        samples=len(output),
    )
    return None if found(output) is output else found


def _maps(
    setup: _Setup, methods: Sequence[str], libraries: Sequence[str], progress: bool
) -> tuple[list[Pair], list[Skipped]]:
    """Return each library's maps beside this package's in its form."""
    pairs: list[Pair] = []
    skipped: list[Skipped] = []
    for method in tqdm(methods, "maps", disable=None if progress else True, leave=False):
        for library in libraries:
            peer = PEERS[library]
            if method not in peer.classes:
                skipped.append(Skipped(method, library, f"{library} does not offer it"))
                continue
            try:
                theirs = setup.theirs(peer, method)
                ours = peer.preset(setup.ours(peer.cam_method(method)), setup.images.shape[2:]).cpu()
                numbers = agreement(ours, theirs, scale=peer.scale)
                pairs.append(Pair(method, library, peer.scale, ours, theirs, numbers))
            except Exception as error:
                skipped.append(Skipped(method, library, reason_of(error)))
            setup.model.zero_grad()
    return pairs, skipped


def _costs(
    setup: _Setup, pairs: Sequence[Pair], sizes: Sequence[int], repeats: int, progress: bool
) -> tuple[list[Cost], list[Skipped]]:
    """Measure every library that has maps of a method, at every batch size."""
    device = setup.images.device
    costs: list[Cost] = []
    skipped: list[Skipped] = []
    able: dict[str, list[Peer]] = {}
    for pair in pairs:
        able.setdefault(pair.method, [OURS]).append(PEERS[pair.library])
    work = [(method, size) for method in able for size in sizes]
    for method, size in tqdm(work, "time", disable=None if progress else True, leave=False):
        cases = {library.name: setup.case(library, method, size) for library in able[method]}
        failed: dict[str, str] = {}
        times = interleaved(
            cases,
            device,
            rounds=repeats,
            seconds=_SECONDS,
            least=min(5, repeats),
            failed=lambda name, error, failed=failed: failed.update({name: reason_of(error)}),  # type: ignore[misc]
        )
        skipped += [Skipped(method, name, reason, size) for name, reason in failed.items()]
        for name in times.seconds:
            peak = peak_memory(cases[name], device) if device.type == "cuda" else None
            ratio = times.ratio(name, OURS.name) if OURS.name in times.seconds else None
            costs.append(Cost(method, name, size, times.spread(name), ratio, times.rounds, peak))
        setup.model.zero_grad()
    return costs, skipped


def _pictures(images: Tensor, given: Tensor | None) -> Tensor | None:
    """Return the first images for the figure; by default each is scaled from its minimum to its maximum."""
    if images.dim() != 4:
        return None
    pictures = gray_or_color(images[:_ROWS].float()).movedim(1, -1) if given is None else given[:_ROWS]
    return pictures.detach().cpu().float().clamp(0, 1)


def _dead(pairs: Sequence[Pair]) -> list[str]:
    """Remark on maps that agree only because both are zero."""
    found = []
    for pair in pairs:
        count = sum(numbers["zero_ours"] and numbers["zero_theirs"] for numbers in pair.agreement)
        if count:
            found.append(
                f"{pair.method}, {pair.library}: both maps are zero everywhere for {count} of {len(pair.agreement)} images; "
                f"another layer or target may have one"
            )
    return found


@contextmanager
def _random_state_kept() -> Iterator[None]:
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=list(devices)):
        yield


def check_names(argument: str, names: Sequence[str], known: Iterable[str]) -> list[str]:
    """Return the names, each once, or raise a ``ValueError`` that lists the known ones."""
    names = [names] if isinstance(names, str) else list(dict.fromkeys(names))
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(
            f"{argument}: expected some of {', '.join(map(repr, known))}, got {', '.join(map(repr, unknown)) or 'none'}"
        )
    return names


def reason_of(error: BaseException) -> str:
    """Describe an error in one line; running out of memory in three words, on every device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error):
        return "out of memory"
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


# Agreement


def agreement(ours: Tensor, theirs: Tensor, *, scale: Literal["unit", "raw"]) -> list[dict[str, Any]]:
    """Compare two batches of maps, pair by pair, in float64.

    Args:
        ours: (N, 1, *spatial).
        theirs: the same shape.
        scale: ``"unit"``: maps in [0, 1]. ``"raw"``: signed maps; each pair is divided by its largest absolute value.

    Returns:
        One entry per pair: ``max_difference`` and ``mean_difference`` (absolute), ``ssim``, ``pearson``, ``spearman``,
        ``top_overlap`` (intersection over union of the highest 20 % of the positions, ties shared), ``identical``,
        ``zero_ours``, ``zero_theirs``, ``finite``. Numbers are None if a map is NaN or infinite, and correlations also if a map
        is constant.

    Raises:
        ValueError: the shapes differ, or are not (N, 1, *spatial).

    Example:
        >>> ours = torch.tensor([[[[0.0, 0.5], [0.25, 1.0]]]])
        >>> theirs = torch.tensor([[[[0.0, 0.25], [0.5, 1.0]]]])
        >>> [found] = agreement(ours, theirs, scale="unit")
        >>> found["max_difference"], round(found["spearman"], 3), found["top_overlap"]
        (0.25, 0.8, 1.0)
    """
    if ours.shape != theirs.shape or ours.dim() < 3 or ours.shape[1] != 1:
        raise ValueError(
            f"ours: expected maps (N, 1, *spatial) of the shape of theirs, got {tuple(ours.shape)} and {tuple(theirs.shape)}; "
            f"resize them first"
        )
    return [_pair(a, b, scale) for a, b in zip(ours, theirs, strict=True)]


def _pair(ours: Tensor, theirs: Tensor, scale: str) -> dict[str, Any]:
    ours, theirs = (maps.detach().to("cpu", torch.float64) for maps in (ours, theirs))
    found: dict[str, Any] = {
        "max_difference": None, "mean_difference": None, "ssim": None, "pearson": None, "spearman": None, "top_overlap": None,
        "identical": torch.equal(ours.nan_to_num(), theirs.nan_to_num()) and torch.equal(ours.isnan(), theirs.isnan()),
        "zero_ours": not ours.any(), "zero_theirs": not theirs.any(),
        "finite": bool(ours.isfinite().all() and theirs.isfinite().all()),
    }  # fmt: skip
    if not found["finite"]:
        return found
    peak = float(torch.stack([ours, theirs]).abs().max())
    if scale == "raw" and peak > 0:
        ours, theirs = ours / peak, theirs / peak
    difference = (ours - theirs).abs()
    flat = ours.flatten(), theirs.flatten()
    return found | {
        "max_difference": float(difference.max()),
        "mean_difference": float(difference.mean()),
        "ssim": float(ssim(ours[None], theirs[None], data_range=1.0 if scale == "unit" else 2.0)),
        "pearson": _correlation(*flat),
        "spearman": _correlation(*map(_ranks, flat)),
        "top_overlap": _overlap(*map(_top, flat)),
    }


def _correlation(first: Tensor, second: Tensor) -> float | None:
    if torch.equal(first, second) and first.min() < first.max():
        return 1.0
    value = float(torch.corrcoef(torch.stack([first, second]))[0, 1])
    return value if math.isfinite(value) else None


def _ranks(values: Tensor) -> Tensor:
    """Return ranks from 1; equal values share their mean rank."""
    ordered = values.sort().values
    below, up_to = torch.searchsorted(ordered, values), torch.searchsorted(ordered, values, right=True)
    return (below + up_to + 1).double() / 2


def _top(values: Tensor) -> Tensor:
    """Weight each position by how much it belongs to the top: 1, 0, or a share if it equals the last one."""
    count = math.ceil(_TOP * len(values) - 1e-9)
    last = values.topk(count).values[-1]
    above, level = (values > last).double(), (values == last).double()
    return above + level * (count - above.sum()) / level.sum()


def _overlap(first: Tensor, second: Tensor) -> float:
    tops = torch.stack([first, second])
    return float(tops.amin(0).sum() / tops.amax(0).sum())


def summary(maps: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Summarize :func:`agreement`: the largest and the mean difference, the worst image's likeness, and counts of maps.

    Args:
        maps: entries of :func:`agreement`.

    Returns:
        Plain numbers; None if no map has one.
    """

    def over(name: str, reduce: Callable[[list[float]], float]) -> float | None:
        values = [entry[name] for entry in maps if entry[name] is not None]
        return reduce(values) if values else None

    return {
        "max_difference": over("max_difference", max),
        "mean_difference": over("mean_difference", statistics.fmean),
        **{f"{name}_min": over(name, min) for name in ("ssim", "pearson", "spearman", "top_overlap")},
        "maps": len(maps),
        "identical": sum(entry["identical"] for entry in maps),
        "zero_in_both": sum(entry["zero_ours"] and entry["zero_theirs"] for entry in maps),
        "zero_in_one": sum(entry["zero_ours"] != entry["zero_theirs"] for entry in maps),
        "constant": sum(entry["finite"] and entry["pearson"] is None for entry in maps),
        "not_finite": sum(not entry["finite"] for entry in maps),
    }


# The report

#: Key of the summary -> heading.
_COLUMNS = {
    "max_difference": "max difference",
    "mean_difference": "mean difference",
    "ssim_min": "SSIM, min",
    "pearson_min": "Pearson, min",
    "spearman_min": "Spearman, min",
    "top_overlap_min": "top 20 %, min",
}
_NOTES = {
    "constant": "without correlation",
    "zero_in_both": "zero in both",
    "zero_in_one": "zero in one",
    "not_finite": "not finite",
}
_HOW = (
    "Differences are absolute on maps in [0, 1] (unit), or relative to the pair's largest absolute value (raw). Min: the worst "
    "image. Identical: to the last bit."
)
_HOW_COST = (
    "Medians (quartiles) of rounds in rotating order, after a warm-up; ratios to this package, below 1 is faster. "
    "pytorch-grad-cam returns NumPy maps at the images' size, the others tensors at the layer's size. Memory: the peak of a call "
    "beyond the model and the images, on CUDA only."
)


def _report(comparison: Comparison, escape: Callable[[object], str]) -> str:
    settings, machine = comparison.settings, comparison.environment
    versions = [f"{name} {version}" for name, version in machine["libraries"].items() if version]
    shape = _TIMES.join(map(str, settings["image_shape"]))
    lines = [
        f"# {escape(settings['model'])}, layer {escape(settings['layer'])}",
        "",
        f"{len(comparison.images)} images, {shape}, targets {settings['targets']}, {settings['dtype']} on "
        f"{escape(machine['device'])} ({escape(machine['device_name'])}, {machine['threads']} threads). {escape(OURS.name)} "
        f"{machine['batchcam_captum']}, torch {machine['torch']}, {escape(', '.join(versions)) or 'no other library'}.",
        "",
        *(f"Remark: {escape(remark)}." for remark in comparison.remarks),
        *([""] if comparison.remarks else []),
        "## Agreement",
        "",
    ]
    if comparison.pairs:
        heads = ["method", "library", "scale", *_COLUMNS.values(), "identical", "notes"]
        lines += [*_table(heads, (_agreement_row(pair, escape) for pair in comparison.pairs)), "", _HOW, ""]
    else:
        lines += ["Nothing could be compared.", ""]
    for method in dict.fromkeys(cost.method for cost in comparison.costs):
        costs = [cost for cost in comparison.costs if cost.method == method]
        lines += [f"## Cost of {escape(method)}", "", *_cost_table(costs, escape), ""]
    if comparison.costs:
        lines += [_HOW_COST, ""]
    left_out = [f"{name} is not installed" for name, version in machine["libraries"].items() if not version]
    left_out += [
        f"{entry.library}, {entry.method}{'' if entry.batch_size is None else f', batch {entry.batch_size}'}: {entry.reason}"
        for entry in comparison.skipped
    ]
    left_out += [f"{path} could not be read: {reason}" for path, reason in comparison.unreadable.items()]
    if left_out:
        lines += ["## Left out", "", *(f"- {escape(entry)}" for entry in left_out)]
    return "\n".join(lines).rstrip() + "\n"


def _agreement_row(pair: Pair, escape: Callable[[object], str]) -> list[str]:
    found = summary(pair.agreement)
    notes = [f"{found[key]} {text}" for key, text in _NOTES.items() if found[key]]
    numbers = [_number(found[key], likeness=not key.endswith("difference")) for key in _COLUMNS]
    same = f"{found['identical']} of {found['maps']}"
    return [escape(pair.method), pair.library, pair.scale, *numbers, same, ", ".join(notes) or "-"]


def _cost_table(costs: Sequence[Cost], escape: Callable[[object], str]) -> list[str]:
    sizes = list(dict.fromkeys(cost.batch_size for cost in costs))
    cells = {(cost.library, cost.batch_size): cost for cost in costs}

    def cell(library: str, size: int) -> str:
        cost = cells.get((library, size))
        if cost is None or cost.seconds is None:
            return "-"
        text = _spread(cost.seconds, 1000, " ms")
        if cost.ratio_to_ours is not None and library != OURS.name:
            text += f", {_spread(cost.ratio_to_ours, 1, _TIMES)}"
        return text if cost.peak_bytes is None else f"{text}, {cost.peak_bytes / 2**20:.1f} MiB"

    libraries = dict.fromkeys(cost.library for cost in costs)
    rows = ([escape(library), *(cell(library, size) for size in sizes)] for library in libraries)
    return _table(["library", *(f"batch {size}" for size in sizes)], rows)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)]


def _number(value: float | None, *, likeness: bool) -> str:
    if value is None:
        return "-"
    if not likeness:
        return "0" if value == 0 else f"{value:.1e}"
    return "1" if value == 1 else f"{math.floor(value * 1e6) / 1e6:.6f}"  # never rounded up to 1


def _spread(spread: Spread, factor: float, unit: str) -> str:
    median, q1, q3 = (factor * value for value in (spread.median, spread.q1, spread.q3))
    return f"{median:.3g}{unit} ({q1:.3g} to {q3:.3g})"


def _printable(text: object) -> str:
    """Return one line without control characters and undecodable bytes, which file names may hold."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in str(text))


def _escaped(text: object) -> str:
    """Return one line that Markdown shows as it stands, also in a table."""
    return "".join(f"\\{sign}" if sign in "\\`*_{}[]<>()#!|~$&" else sign for sign in _printable(text))


def _plain(value: Any) -> Any:
    """Return values of JSON; None for NaN and infinity."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, int | bool) else _printable(value)


# The picture


def draw(comparison: Comparison) -> Figure | None:
    """Draw each library's maps beside this package's, and their absolute difference, without touching pyplot.

    Up to 24 rows: for each method the first images. Columns: the image; for each library this package's map in that library's
    form, the library's map, and the difference, whose maximum stands above it.

    Returns:
        The figure; None if there is no pair of two-dimensional maps, or the images are not two-dimensional.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    load("matplotlib", purpose="drawing a comparison")
    from matplotlib.figure import Figure

    pairs = {(pair.method, pair.library): pair for pair in comparison.pairs if pair.theirs.dim() == 4}
    libraries = list(dict.fromkeys(library for _, library in pairs))
    methods = list(dict.fromkeys(method for method, _ in pairs))
    if comparison.pictures is None or not methods:
        return None
    shown = min(len(comparison.pictures), max(24 // len(methods), 1))
    columns = 1 + 3 * len(libraries)
    height, width = comparison.pictures.shape[1:3]
    tall = min(max(height / width, 0.5), 2.0)
    size = (1.45 * columns + 1.7, (1.45 * tall + 0.25) * shown * len(methods) + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(_verbatim(f"{comparison.settings['model']}, {comparison.settings['layer']}"), fontsize=9)
    axes = figure.subplots(shown * len(methods), columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
        axis.set_box_aspect(tall)
    for index, cells in enumerate(axes):
        method, row = methods[index // shown], index % shown
        name = PurePath(comparison.images[row]["path"]).name[-22:]
        label = f"{name}\nclass {comparison.images[row]['target']}\n{method}"
        _show(cells[0], comparison.pictures[row], "image" if index == 0 else "")
        cells[0].text(
            -0.05, 0.5, _verbatim(label), ha="right", va="center", fontsize=7, transform=cells[0].transAxes
        )
        for position, library in enumerate(libraries):
            if (method, library) in pairs:
                _show_pair(cells[1 + 3 * position : 4 + 3 * position], pairs[method, library], row)
    return figure


def _show_pair(cells: Sequence[Any], pair: Pair, row: int) -> None:
    ours, theirs = pair.ours[row, 0].double(), pair.theirs[row, 0].double()
    peak = float(torch.stack([ours, theirs]).abs().nan_to_num(0, 0, 0).max()) or 1.0
    scale = (
        {"vmin": 0, "vmax": 1} if pair.scale == "unit" else {"vmin": -peak, "vmax": peak, "cmap": "PuOr_r"}
    )
    over = "" if pair.scale == "unit" else f"\n± {peak:.1e}"
    _show(cells[0], ours, f"{OURS.name}{over}", **scale)
    _show(cells[1], theirs, f"{pair.library}{over}", **scale)
    largest = pair.agreement[row]["max_difference"]
    told = "not finite" if largest is None else f"max {largest:.1e}"
    difference = (ours - theirs).abs().nan_to_num(0, 0, 0)
    _show(
        cells[2], difference, f"difference\n{told}", vmin=0, vmax=float(difference.max()) or 1, cmap="magma"
    )


def _show(axis: Any, picture: Tensor, title: str, **scale: Any) -> None:
    axis.imshow(picture.numpy(), interpolation="nearest", aspect="auto", **scale)
    axis.set_title(_verbatim(title), fontsize=7, pad=2)


def _verbatim(text: str) -> str:
    """Escape what matplotlib would read as a formula, and replace what it cannot draw."""
    return "\n".join(map(_printable, text.split("\n"))).replace("$", r"\$")
