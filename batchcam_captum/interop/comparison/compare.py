"""Maps of this library next to those of its peers, for one model, one layer, and some images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...attribution import BatchGradCam
from ...attribution.layers import layer_name
from ...attribution.reshape import Reshape, check_reshape, find_reshape
from ...environment import environment
from ...functional import CamMethod
from ...loading import LoadedImages
from ..peers import OURS, PEERS, Peer
from ..untouched import untouched
from .agreement import agreement
from .arguments import (
    anchor_of,
    check_images,
    checked_names,
    checked_sizes,
    checked_targets,
    placed,
)
from .cases import Work, library_named, reason_of
from .cost import Costs, measured
from .measure import free
from .progress import steps_shown
from .result import Comparison, Pair, Skipped

#: So many images go through the model at a time for the maps.
_TOGETHER = 16


def compare(
    model: nn.Module,
    layer: nn.Module | str,
    images: Tensor | LoadedImages,
    *,
    methods: Sequence[str] = ("grad_cam",),
    targets: Sequence[int] | Tensor | None = None,
    libraries: Sequence[str] | None = None,
    batch_sizes: Sequence[int] = (),
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    reshape: Reshape = None,
    repeats: int = 20,
    seconds: float = 30.0,
    memory: bool = True,
    progress: bool = False,
    name: str | None = None,
    paths: Sequence[str | os.PathLike[str]] | None = None,
    failed: Mapping[str, str] | None = None,
    pictures: Tensor | None = None,
) -> Comparison:
    """Compare the maps of this library with those of its peers, and measure what they cost.

    The model runs in eval mode, as pytorch-grad-cam runs it in any case, and is left exactly as it was, whatever the peers do to
    it. What a library cannot do, or fails at, is noted with its reason, and the others go on.

    Args:
        model: returns scores (N, K).
        layer: a module of it, or its dotted name.
        images: (N, C, *spatial), as the model expects them (standardised); or what
            :func:`batchcam_captum.loading.load_images` returns, which brings ``paths``, ``failed`` and ``pictures`` along.
        methods: names of ways to make a map: ``"grad_cam"``, ``"grad_cam_plus_plus"``, ``"xgrad_cam"``, ``"hires_cam"``,
            ``"layer_cam"``, ``"grad_cam_elementwise"``.
        targets: the class that each image's map is for, N of them. Default: the predicted ones.
        libraries: names of peers, see :data:`batchcam_captum.interop.PEERS`. Default: all. Those that are not installed are
            named in the result and left out.
        batch_sizes: for each of them time and peak memory are measured, on the images repeated as needed. Default: neither.
        device: where to compare. Default: where the model is. Elsewhere a copy of the model is compared.
        dtype: of the model and the images. Default: the model's. Another one is tried on a copy of the model.
        reshape: for layers that do not return (N, C, *spatial), see :class:`batchcam_captum.BatchGradCam`.
        repeats: rounds of the timing at most; each library runs once a round.
        seconds: about how long the timing of one method and batch size may take; large batches get fewer rounds, but five.
        memory: measure the peak memory as well, beside the time.
        progress: show a progress bar; where standard error is no terminal, a line for each measurement and for what takes long.
        name: what the report calls the model. Default: its class.
        paths: of the images, for the report. Default: image 0, image 1, …
        failed: images that could not be read -> why, for the report.
        pictures: (N, H, W, 3) in [0, 1], what the figure shows. Default: the images, each from its smallest to its largest value.

    Returns:
        The comparison; ``comparison.write(folder)`` writes the report.

    Raises:
        ValueError: no images, targets or names that do not fit, an unknown layer, method or library, a device that is not there,
            or a model that does not return scores (N, K).
        TypeError: images that are no tensor, or a reshape of another kind.
    """
    if isinstance(images, LoadedImages):
        paths, failed, pictures = images.paths, images.failed, images.pictures
        images = images.tensor
    check_images(images)
    names = [f"image {index}" for index in range(len(images))] if paths is None else list(map(str, paths))
    for what, count in (("paths", len(names)), ("pictures", len(images if pictures is None else pictures))):
        if count != len(images):
            raise ValueError(f"{what}: expected one for each of {len(images)} images, got {count}")
    methods = checked_names("methods", methods, OURS.methods)
    libraries = checked_names("libraries", list(PEERS) if libraries is None else libraries, tuple(PEERS))
    sizes = checked_sizes(batch_sizes)
    if repeats < 1:
        raise ValueError(f"repeats: expected at least 1, got {repeats}")
    check_reshape(reshape)
    explained = layer_name(model, layer)

    versions = {library: PEERS[library].version() for library in libraries}
    present = [library for library in libraries if versions[library] is not None]
    with untouched(model):
        compared = placed(model, device, dtype).eval()
        anchor = anchor_of(compared)
        images = images.detach().to(anchor.device, anchor.dtype)
        chosen, grid, remarks = _forward(compared, explained, images, targets, reshape)
        work = Work(compared, explained, images, chosen, grid)
        steps = len(methods) * (1 + len(present) + len(sizes)) + (1 + len(present) if sizes and memory else 0)
        with steps_shown(steps, progress) as tick:
            raw, pairs, skipped = _maps(work, methods, present, tick)
            costs = Costs([], [])
            if sizes:
                able = {
                    method: [OURS.name] * (method in raw)
                    + [pair.library for pair in pairs if pair.method == method]
                    for method in methods
                }
                costs = measured(work, able, sizes, repeats, seconds, memory, tick)
        found_environment = environment(anchor.device)
    settings = {
        "model": name or type(model).__name__,
        "layer": explained,
        "methods": methods,
        "targets": "predicted" if targets is None else "given",
        "image_shape": list(images.shape[1:]),
        "device": str(anchor.device),
        "dtype": str(anchor.dtype).removeprefix("torch."),
        "mode": "eval",
        "reshape": reshape if reshape is None or isinstance(reshape, str) else "a function",
        "batch_sizes": sizes,
        "repeats": repeats,
        "seconds": seconds,
        "images_together": min(_TOGETHER, len(images)),
    }
    return Comparison(
        settings=settings,
        environment=found_environment,
        versions=versions,
        left_out=[library for library in libraries if versions[library] is None],
        images=images.cpu(),
        pictures=None if pictures is None else pictures.detach().cpu().float(),
        paths=names,
        targets=chosen,
        failed=dict(failed or {}),
        raw=raw,
        pairs=pairs,
        skipped=[*skipped, *costs.skipped],
        costs=costs.costs,
        remarks=[*remarks, *_dead(pairs, len(images))],
    )


def _maps(
    work: Work, methods: Sequence[str], libraries: Sequence[str], tick: Callable[[str], None]
) -> tuple[dict[str, Tensor], list[Pair], list[Skipped]]:
    """Our raw maps of each method, and each library's next to ours in its manner."""
    raw: dict[str, Tensor] = {}
    pairs: list[Pair] = []
    skipped: list[Skipped] = []
    size = work.images.shape[2:]
    for method in methods:
        tick(f"{method}, {OURS.name}")
        own = OURS.cam_method(method)
        try:
            raw[method] = _ours(work, own)
        except Exception as error:
            skipped.append(Skipped(method, OURS.name, reason_of(error)))
        for library in libraries:
            tick(f"{method}, {library}")
            peer = library_named(library)
            if method not in peer.methods:
                skipped.append(Skipped(method, library, f"{library} does not offer it"))
                continue
            try:
                theirs = _theirs(work, peer, method)
                weighting = peer.cam_method(method)  # Captum's is our own, whose maps are there already
                maps = raw[method] if weighting is own and method in raw else _ours(work, weighting)
                ours = peer.preset(maps, size).cpu()
                pairs.append(Pair(method, library, ours, theirs, agreement(ours, theirs, scale=peer.scale)))
            except Exception as error:
                skipped.append(Skipped(method, library, reason_of(error)))
            if work.images.device.type == "cuda":
                free(work.images.device)
    return raw, pairs, skipped


def _dead(pairs: Sequence[Pair], samples: int) -> list[str]:
    """Remarks on maps that agree only in that there is nothing in them."""
    found: dict[tuple[str, int], list[str]] = {}
    for pair in pairs:
        count = sum(maps.zero_ours and maps.zero_theirs for maps in pair.agreement.maps)
        if count:
            found.setdefault((pair.method, count), []).append(pair.library)
    return [
        f"{method}: both maps, ours and that of {', '.join(libraries)}, are zero everywhere for {count} of {samples} images, so "
        "nothing was compared there; another layer or target may have one"
        for (method, count), libraries in found.items()
    ]


def _ours(work: Work, method: CamMethod) -> Tensor:
    """Our raw maps of all images, on the CPU."""
    with untouched(work.model):
        _seed(work.images.device)
        grad_cam = BatchGradCam(work.model, work.layer, method=method, reshape=work.reshape)
        maps = torch.cat(
            [grad_cam.attribute(images, target=targets).cpu() for images, targets in _pieces(work)]
        )
    if maps.dim() < 3:
        raise ValueError(
            f"layer: expected one with places, (N, C, *spatial), got maps {tuple(maps.shape)}; choose an earlier one"
        )
    return maps


def _theirs(work: Work, peer: Peer, method: str) -> Tensor:
    with peer.opened(work.model, work.layer, method, reshape=work.reshape) as call:
        _seed(work.images.device)
        return torch.cat([call(images, targets).cpu() for images, targets in _pieces(work)])


def _seed(device: torch.device) -> None:
    """For models that draw numbers even in eval mode: the same ones for every library. Within :func:`untouched` only.

    ``torch.manual_seed`` would seed all GPUs, also those that nobody puts back.
    """
    torch.default_generator.manual_seed(0)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(0)
    elif device.type == "mps":
        torch.mps.manual_seed(0)


def _pieces(work: Work) -> Iterator[tuple[Tensor, list[int]]]:
    for start in range(0, len(work.images), _TOGETHER):
        yield work.images[start : start + _TOGETHER], work.targets[start : start + _TOGETHER]


def _forward(
    model: nn.Module,
    layer: str,
    images: Tensor,
    targets: Sequence[int] | Tensor | None,
    reshape: Reshape,
) -> tuple[list[int], Callable[[Tensor], Tensor] | None, list[str]]:
    """The targets, the reshape as a function that the peers take, too, and what is to be said of the scores."""
    outputs: list[Any] = []
    scores: list[Tensor] = []
    module = model.get_submodule(layer)
    with untouched(model), torch.no_grad():
        _seed(images.device)
        module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        for piece in images.split(_TOGETHER):
            outputs.clear()  # of the last piece is kept what the reshape is read from
            found = model(piece)
            if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != len(piece):
                shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise ValueError(
                    f"model: expected scores ({len(piece)}, K) for {len(piece)} images, got {shape}; wrap the model in one that "
                    "returns them"
                )
            scores.append(found)
    classes = scores[0].shape[1]
    if targets is None:
        chosen = [int(index) for index in torch.cat(scores).argmax(1)]
    else:
        chosen = checked_targets(targets, len(images), classes)
    broken = int((~torch.cat(scores).isfinite().all(1)).sum())
    remarks = []
    if broken:
        remarks.append(
            f"the scores of {broken} of {len(images)} images hold NaN or infinity: what their maps and predicted classes are "
            "means nothing; check the weights, the images and the dtype"
        )
    if reshape is None or callable(reshape):
        return chosen, reshape, remarks
    if not outputs or not isinstance(outputs[-1], Tensor):
        raise ValueError(f"reshape: expected {layer!r} to return one tensor, got none; choose another layer")
    grid = find_reshape(
        reshape,
        outputs[-1],
        forward_func=model,
        layer=module,
        input_size=tuple(images.shape[2:]),
        samples=len(outputs[-1]),
    )
    changes = grid(outputs[-1]) is not outputs[-1]
    return chosen, grid if changes else None, remarks
