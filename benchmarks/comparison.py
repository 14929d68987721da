"""Do the maps agree? Every method of every library, on more than thirty architectures, in several precisions and layouts.

Each peer's maps are compared with this package's raw cams, made with the peer's weighting and brought by its preset to the size
and scale of its own maps. Random weights and one random batch per architecture; the targets are classes whose map has a positive
part, since a map without one is zero in all libraries. Where a limit is missed, the distance of each library's maps from its own
float64 maps says how much of it is rounding.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from common import Report, Spread, parser, set_tf32, start
from comparison_architectures import ARCHITECTURES, built, converted, images_for
from torch import Tensor, nn

from batchcam_captum import BatchGradCam
from batchcam_captum.interop.compare import agreement, summary
from batchcam_captum.interop.peers import PEERS, Peer

METHODS = ("grad_cam", "grad_cam_plus_plus", "xgrad_cam", "hires_cam", "layer_cam")


@dataclass(frozen=True)
class Variant:
    """A precision and a layout."""

    dtype: torch.dtype = torch.float32
    tf32: bool = False
    channels_last: bool = False
    reach: float | None = None  #: the largest difference on maps in [0, 1]; None: for information


#: float64 comes first, since the others are compared with it.
VARIANTS = {
    "float64": Variant(torch.float64, reach=5e-7),
    "float32": Variant(reach=1e-5),
    "float32, channels-last": Variant(channels_last=True, reach=1e-5),
    "TF32": Variant(tf32=True),
    "bfloat16": Variant(torch.bfloat16),
}


def main() -> None:
    made = parser(__doc__.partition("\n")[0], rounds=1)
    made.add_argument("--architectures", nargs="+", choices=list(ARCHITECTURES), default=list(ARCHITECTURES))
    made.add_argument("--variants", nargs="+", choices=list(VARIANTS), help="default: all of the device")
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
    report.finish()


def _study(report: Report, name: str, options: argparse.Namespace) -> None:
    """Compare one architecture in every variant."""
    cases = [f"{name}, {variant}" for variant in options.variants]
    if all(report.has(case) for case in cases):
        return
    report.drop(*cases)
    original, images = built(name), images_for(name, options.batch)
    targets = _targets(original, name, images)
    exact: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}
    for variant in options.variants:
        how = VARIANTS[variant]
        set_tf32(how.tf32)
        model = converted(original, how.dtype, options.device, channels_last=how.channels_last)
        batch = images.to(options.device, how.dtype)
        if how.channels_last:
            batch = batch.to(memory_format=torch.channels_last)
        found: dict[str, dict[str, Any]] = {}
        for peer in PEERS.values():
            for method in METHODS if peer.version else ():
                if method in peer.classes:
                    maps = _maps(peer, model, name, method, batch, targets)
                    far = exact.setdefault((peer.name, method), maps) if isinstance(maps, tuple) else None
                    found.setdefault(peer.name, {})[method] = _entry(maps, far, peer)
        _note(report, name, variant, found, targets)


def _maps(
    peer: Peer, model: nn.Module, name: str, method: str, images: Tensor, targets: list[int]
) -> tuple[Tensor, Tensor] | str:
    """Return this package's maps in the peer's form and the peer's own; the reason if the peer cannot do it."""
    entry = ARCHITECTURES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with peer.opened(model, entry.layer, method, entry.reshape) as call:
                theirs = call(images, targets).cpu()
        except Exception as error:
            return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        grad_cam = BatchGradCam(model, entry.layer, method=peer.cam_method(method), reshape=entry.reshape)
        ours = peer.preset(grad_cam.attribute(images, target=targets), images.shape[2:]).cpu()
    return ours, theirs


def _entry(
    maps: tuple[Tensor, Tensor] | str, exact: tuple[Tensor, Tensor] | None, peer: Peer
) -> dict[str, Any]:
    if isinstance(maps, str) or exact is None:
        return {"failed": maps}
    found = numbers(*maps, peer.scale)
    if exact is not maps:
        ours, theirs = (numbers(low, high, peer.scale)["max"] for low, high in zip(maps, exact, strict=True))
        found["from_float64"] = {"ours": ours, "theirs": theirs}
    return found


def _note(
    report: Report, name: str, variant: str, found: dict[str, dict[str, Any]], targets: list[int]
) -> None:
    """Report the case, and the largest difference of any method as a figure per peer."""
    entry, case, how = ARCHITECTURES[name], f"{name}, {variant}", VARIANTS[variant]
    made = {"model": entry.model, "source": entry.source, "layer": entry.layer, "size": entry.size}
    report.add_case(case, architecture=name, variant=variant, **made, targets=targets, maps=found)
    for peer, maps in found.items():
        worst = max((entry["max"] for entry in maps.values() if "max" in entry), default=None)
        if worst is not None:
            reach = max(how.reach, 1e-5) if how.reach and PEERS[peer].scale == "raw" else how.reach
            report.add_figure(case, f"{peer}, largest difference", Spread.exact(worst), reach=reach)


def numbers(ours: Tensor, theirs: Tensor, scale: Literal["unit", "raw"]) -> dict[str, Any]:
    """Return the worst numbers of a batch; a map that is NaN in one library only counts as infinitely far.

    Args:
        ours: (N, 1, *spatial).
        theirs: the same shape.
        scale: see :func:`batchcam_captum.interop.compare.agreement`.
    """
    pairs = agreement(ours, theirs, scale=scale)
    total = summary(pairs)
    kept = {
        "max": "max_difference",
        "mean": "mean_difference",
        "ssim": "ssim_min",
        "top20": "top_overlap_min",
    }
    found: dict[str, Any] = {
        short: float(f"{total[long]:.6g}") for short, long in kept.items() if total[long] is not None
    }
    found = {short: value for short, value in found.items() if short in ("max", "mean") or value != 1}
    if "max" not in found or any(not pair["finite"] and not pair["identical"] for pair in pairs):
        found["max"] = float("inf")
    counts = ("maps", "identical", "zero_in_both", "zero_in_one", "not_finite")
    return found | {count: total[count] for count in counts if total[count]}


def _targets(model: nn.Module, name: str, images: Tensor) -> list[int]:
    """Return for each image the class whose Grad-CAM has the largest positive part, relative to its largest magnitude."""
    entry = ARCHITECTURES[name]
    cams = BatchGradCam(model, entry.layer, reshape=entry.reshape).attribute_classes(images)
    share = (cams.amax((2, 3)) / cams.abs().amax((2, 3))).nan_to_num(-1.0).mul(100).round()
    order = torch.arange(share.shape[1])  # among equal classes, another one for each image
    return [int(order.roll(-row)[shares.roll(-row).argmax()]) for row, shares in enumerate(share)]


if __name__ == "__main__":
    main()
