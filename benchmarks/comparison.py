"""Do the maps agree? Every method of every library, on more than twenty architectures, in several precisions and layouts.

Each peer's maps are compared with this library's raw maps, made with the peer's epsilons and brought by its preset to the size
and scale in which it returns its own. Random weights and one random batch an architecture; the targets are classes whose map has
a positive part, as a map without one is zero in all libraries.

What is asserted, see REACH: the largest difference on maps in [0, 1] with float64 and with float32 models; for Captum, whose maps
are raw, relative to the map's maximum. What goes beyond is published, and stands next to what rounding alone does: the difference
of each library's float32 maps from its own float64 maps.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from common import Report, Spread, parser, start
from comparison_architectures import ARCHITECTURES, built, converted, images_for
from comparison_methods import set_tf32
from torch import Tensor, nn

from batchcam_captum import BatchGradCam
from batchcam_captum.interop.compare import agreement, summary
from batchcam_captum.interop.peers import PEERS, Peer

METHODS = ("grad_cam", "grad_cam_plus_plus", "xgrad_cam", "hires_cam", "layer_cam")


@dataclass(frozen=True)
class Variant:
    """A precision and layout."""

    dtype: torch.dtype = torch.float32
    tf32: bool = False
    channels_last: bool = False
    reach: float | None = None  #: largest difference on maps in [0, 1]; None: for information


VARIANTS = {
    "float64": Variant(torch.float64, reach=5e-7),
    "float32": Variant(reach=1e-4),
    "float32, channels-last": Variant(channels_last=True, reach=1e-4),
    "TF32": Variant(tf32=True),
    "bfloat16": Variant(torch.bfloat16),
}
#: Of the largest value of a raw map, in float32 and better.
REACH_OF_RAW = 1e-5
#: Where the rounding of both sides is known, a float32 map may be compared with its own float64 twin.
EXACT = "float64"

#: Worth a word: what is left has fewer than three digits in float32.
CANCELLED = 1e-4
#: The name that stands for this library on the CPU, beside the peers.
ON_CPU = "batchcam_captum on the CPU"
#: On the CPU its weightings are summed in NumPy's order, but not where a graph is kept: there, as on a GPU, torch sums.
SUMMED_BY_NUMPY = "pytorch-grad-cam"

Key = tuple[str, str]  # peer and method


def main() -> None:
    made = parser(__doc__.partition("\n")[0], rounds=1)
    made.add_argument("--architectures", nargs="+", choices=list(ARCHITECTURES), default=list(ARCHITECTURES))
    made.add_argument(
        "--variants", nargs="+", choices=list(VARIANTS), help="default: all that the device has"
    )
    made.add_argument("--batch", type=int, default=4)
    options = start(made)
    on_gpu = torch.device(options.device).type == "cuda"
    options.variants = options.variants or [name for name in VARIANTS if on_gpu or name != "TF32"]
    if options.quick:
        options.architectures = ["ResNet-18", "ViT-Ti"]
    report = Report(
        "comparison",
        options,
        "Random weights, strong heads, BatchNorm with the statistics of a batch; eval mode; small images. The targets are "
        "classes whose Grad-CAM has a positive part.",
        "Differences of pytorch-grad-cam and TorchCAM are absolute, on maps in [0, 1]; those of Captum are relative to the "
        "largest absolute value of the map. SSIM, correlations and overlap are left out where they are 1.",
    )
    for name in options.architectures:
        begin = time.perf_counter()
        _study(report, name, options)
        print(f"    {time.perf_counter() - begin:.1f} s", file=sys.stderr)
    _summarise(report)
    report.finish()


def _study(report: Report, name: str, options: argparse.Namespace) -> None:
    """One architecture in every variant."""
    cases = [f"{name}, {variant}" for variant in options.variants]
    if all(report.has(case) for case in cases):
        return
    report.drop(*cases)
    original, images = built(name), images_for(name, options.batch)
    targets = _targets(original, name, images)
    exact: dict[Key, tuple[Tensor, Tensor]] = {}
    conditions: dict[Key, dict[str, float]] = {}
    # float64 first: the others are held against it.
    for variant in sorted(options.variants, key=lambda variant: variant != EXACT):
        how = VARIANTS[variant]
        set_tf32(how.tf32)
        model = converted(original, how.dtype, options.device, channels_last=how.channels_last)
        batch = images.to(options.device, how.dtype)
        if how.channels_last:
            batch = batch.to(memory_format=torch.channels_last)
        found: dict[str, dict[str, Any]] = {}
        for peer, method in _pairs():
            maps = found.setdefault(peer.name, {})
            try:
                theirs = _theirs(peer, model, name, method, batch, targets)
            except Exception as error:
                maps[method] = {"failed": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}
                continue
            ours = _ours(peer, model, name, method, batch, targets)
            maps[method] = numbers(ours, theirs, peer.scale)
            if peer.name == SUMMED_BY_NUMPY and how.reach is not None:
                # Some operators have no second derivative: hardsigmoid in MobileNetV3.
                with contextlib.suppress(RuntimeError):
                    graph = _ours(peer, model, name, method, batch, targets, differentiable=True)
                    maps[method]["differentiable"] = numbers(graph, theirs, peer.scale)["max"]
            if variant == EXACT:
                exact[peer.name, method] = ours, theirs
                conditions[peer.name, method] = _condition(peer, model, name, method, batch, targets, ours)
            maps[method] |= conditions.get((peer.name, method), {})
            if variant != EXACT and (peer.name, method) in exact:
                maps[method]["from_float64"] = {
                    side: numbers(low, high, peer.scale)["max"]
                    for side, low, high in zip(
                        ("ours", "theirs"), (ours, theirs), exact[peer.name, method], strict=True
                    )
                }
        if torch.device(options.device).type == "cuda":
            found[ON_CPU] = _across_devices(name, how, original, images, targets, options)
        _note(report, name, variant, found, targets)


def _note(
    report: Report, name: str, variant: str, found: dict[str, dict[str, Any]], targets: list[int]
) -> None:
    """A case for the architecture in this variant, and a figure for each peer: the largest difference of any method."""
    entry, case = ARCHITECTURES[name], f"{name}, {variant}"
    made = {"model": entry.model, "source": entry.source, "layer": entry.layer, "size": entry.size}
    report.add_case(case, architecture=name, variant=variant, **made, targets=targets, maps=found)
    for peer, maps in found.items():
        worst = [entry["max"] for entry in maps.values() if "max" in entry]
        if worst:
            reach = VARIANTS[variant].reach
            if reach is not None and peer == "Captum":
                reach = REACH_OF_RAW
            report.add_figure(case, f"{peer}, largest difference", Spread.exact(max(worst)), reach=reach)


def _condition(
    peer: Peer,
    model: nn.Module,
    name: str,
    method: str,
    images: Tensor,
    targets: list[int],
    ours: Tensor,
) -> dict[str, float]:
    """How well a map is determined, whoever computes it; of a float64 model.

    Returns:
        ``left``: the largest magnitude of the map, compared with the largest sum of its channels' magnitudes: what cancelling
        leaves, the least of the batch. ``rounded``: how far the map moves, in the peer's scale, when activations and gradients
        are rounded to float32 and all else is computed in float64.
    """
    weighting, left = peer.cam_method(method), []

    def probe(activations: Tensor, gradients: Tensor) -> Tensor:
        shares = weighting(activations, gradients, channel_sum=False).flatten(2)  # type: ignore[call-arg]
        sums = shares.sum(1).abs().amax(1), shares.abs().sum(1).amax(1)
        left.append((sums[0] / sums[1]).nan_to_num(0.0).min().item())
        return weighting(*(tensor.float().double() for tensor in (activations, gradients)))

    entry = ARCHITECTURES[name]
    grad_cam = BatchGradCam(model, entry.layer, method=probe, reshape=entry.reshape)
    moved = peer.preset(grad_cam.attribute(images, target=targets), images.shape[2:]).cpu()
    return {"left": float(f"{min(left):.3g}"), "rounded": numbers(moved, ours, peer.scale)["max"]}


def numbers(ours: Tensor, theirs: Tensor, scale: Literal["unit", "raw"]) -> dict[str, Any]:
    """What agreement() says, the worst of the batch's maps; a map with NaN that the other has not counts as infinitely far.

    Args:
        ours: (N, 1, *spatial).
        theirs: the same.
        scale: see :func:`batchcam_captum.interop.compare.agreement`.
    """
    pairs = agreement(ours, theirs, scale=scale)
    total = summary(pairs)
    strange = any(not pair["finite"] and not pair["identical"] for pair in pairs)
    kept = {
        "max": "max_difference", "mean": "mean_difference", "ssim": "ssim_min", "pearson": "pearson_min",
        "spearman": "spearman_min", "top20": "top_overlap_min",
    }  # fmt: skip
    found: dict[str, Any] = {
        short: None if (value := total[long]) is None else float(f"{value:.6g}")
        for short, long in kept.items()
    }
    # A likeness of 1 goes without saying, and makes half of the file.
    found = {short: value for short, value in found.items() if short in ("max", "mean") or value != 1}
    if strange or found["max"] is None:
        found["max"] = float("inf")
    counts = ("maps", "identical", "zero_in_both", "zero_in_one", "not_finite")
    return found | {count: value for count in counts if (value := total[count])}


def _across_devices(
    name: str,
    how: Variant,
    original: nn.Module,
    images: Tensor,
    targets: list[int],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """This library on the GPU, held against itself on the CPU: in float64 where that is the variant, else in float32."""
    on_cpu = torch.float64 if how.dtype == torch.float64 else torch.float32
    peer, found = PEERS["pytorch-grad-cam"], {}
    sides = [
        (converted(original, on_cpu, "cpu"), images.to(on_cpu)),
        (
            converted(original, how.dtype, options.device, channels_last=how.channels_last),
            images.to(options.device, how.dtype),
        ),
    ]
    for method in METHODS:
        on_each = [_ours(peer, model, name, method, batch, targets) for model, batch in sides]
        found[method] = numbers(*on_each, peer.scale)
    return found


def _pairs() -> Iterator[tuple[Peer, str]]:
    for peer in PEERS.values():
        if peer.version is None:
            print(f"{peer.name} is not installed, and left out", file=sys.stderr)
            continue
        yield from ((peer, method) for method in METHODS if method in peer.classes)


def _targets(model: nn.Module, name: str, images: Tensor) -> list[int]:
    """For each image the class whose Grad-CAM has the largest positive part, compared with its largest magnitude."""
    entry = ARCHITECTURES[name]
    cams = BatchGradCam(model, entry.layer, reshape=entry.reshape).attribute_classes(images)
    positive, magnitude = cams.amax((2, 3)), cams.abs().amax((2, 3))
    # Of classes that are alike, another one for each image.
    share = (positive / magnitude).nan_to_num(-1.0).mul(100).round()
    order = torch.arange(share.shape[1])
    return [int(order.roll(-row)[shares.roll(-row).argmax()]) for row, shares in enumerate(share)]


def _theirs(
    peer: Peer, model: nn.Module, name: str, method: str, images: Tensor, targets: list[int]
) -> Tensor:
    entry = ARCHITECTURES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with peer.opened(model, entry.layer, method, entry.reshape) as call:
            return call(images, targets).cpu()


def _ours(
    peer: Peer,
    model: nn.Module,
    name: str,
    method: str,
    images: Tensor,
    targets: list[int],
    *,
    differentiable: bool = False,
) -> Tensor:
    """This library's maps as the peer would have returned them."""
    entry = ARCHITECTURES[name]
    grad_cam = BatchGradCam(model, entry.layer, method=peer.cam_method(method), reshape=entry.reshape)
    cams = grad_cam.attribute(images, target=targets, differentiable=differentiable)
    return peer.preset(cams.detach(), images.shape[2:]).cpu()


def _summarise(report: Report) -> None:
    """Say of each miss whether rounding alone explains it."""
    figures = {(figure["case"], figure["figure"].rpartition(",")[0]): figure for figure in report.figures}
    for case in report.cases:
        for peer, maps in case["maps"].items():
            figure = figures.get((case["case"], peer))
            if figure is None or figure["reached"] is not False:
                continue
            for method, entry in maps.items():
                if entry.get("max", 0) > figure["reach"]:
                    own = entry.get("from_float64")
                    note = f"Missed: {case['case']}, {peer}, `{method}`: {entry['max']:.1e}."
                    if own:
                        note += (
                            f" Its float32 maps are {own['theirs']:.1e} from its own float64 maps, ours {own['ours']:.1e} from "
                            f"ours; rounding activations and gradients to float32, and computing the rest in float64, moves the "
                            f"map by {entry['rounded']:.1e}."
                        )
                        if entry["left"] < CANCELLED:
                            note += (
                                f" The channels cancel: {entry['left']:.1e} of their magnitudes is left, in the place of the "
                                f"largest value."
                            )
                    report.notes.append(note)


if __name__ == "__main__":
    main()
