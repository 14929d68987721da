"""What does Grad-CAM of a batch cost in each library, in time and in peak memory, and how do they grow with the batch?

pytorch-grad-cam image by image, as most examples do it, and on the whole batch; Captum, TorchCAM and this package; next to a bare
forward under ``no_grad``. All return Grad-CAM of the last stage. pytorch-grad-cam's maps are NumPy arrays at the image's size, so
this package is also timed down to these.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from common import (
    Call,
    Case,
    Report,
    Spread,
    Times,
    Within,
    interleaved,
    parser,
    peak_memory,
    peaks_in_child,
    set_tf32,
    start,
    synchronize,
)
from comparison_architectures import tokens
from models import Network, network

from batchcam_captum import BatchGradCam
from batchcam_captum.interop import to_pytorch_grad_cam
from batchcam_captum.interop.compare import reason_of
from batchcam_captum.interop.peers import PEERS as LIBRARIES
from batchcam_captum.interop.timing import free

BARE, AGAIN = "bare forward", "bare forward, again"
OURS, OURS_AT_SIZE = "BatchGradCam", "BatchGradCam, pytorch-grad-cam's maps"
PER_IMAGE, BATCHED = "pytorch-grad-cam, image by image", "pytorch-grad-cam, batched"
PEERS = (PER_IMAGE, BATCHED, "Captum", "TorchCAM")
#: timm's name -> the layer. The class token of a ViT does not read the patches after the last block.
LAYERS = {
    "resnet18": "layer4",
    "resnet50": "layer4",
    "convnextv2_tiny": "stages.3",
    "vit_small_patch16_224": "blocks.10",
}
ON_CPU = {"resnet18": (1, 8, 64, 256), "convnextv2_tiny": (8,), "vit_small_patch16_224": (8,)}
ON_GPU = dict.fromkeys(LAYERS, (1, 8, 64, 256))
QUICK = {"resnet18": (1, 2)}
#: Image by image, time grows with the number of images. On the CPU, memory is measured up to this batch size.
ONE_BY_ONE_UP_TO = MEMORY_UP_TO = 64
#: This package's time relative to a peer's, and its memory relative to a bare forward's.
REACH, REACH_OF_MEMORY = 1.0, 1.15


def main() -> None:
    made = parser(__doc__, rounds=30, seconds=15)
    made.add_argument("--models", nargs="+", choices=list(LAYERS), help="only these")
    made.add_argument("--batches", nargs="+", type=int, help="instead of a model's own")
    add_variants(made)
    options = start(made)
    set_tf32(options.tf32)
    if options.peak:
        _child(options)
        return
    on_gpu = torch.device(options.device).type == "cuda"
    setups: Mapping[str, tuple[int, ...]] = QUICK if options.quick else ON_GPU if on_gpu else ON_CPU
    if options.models:
        setups = {name: setups.get(name, (1, 16)) for name in options.models}
    if options.batches:
        setups = dict.fromkeys(setups, tuple(options.batches))
    report = Report(
        f"comparison_cost{suffix(options)}",
        options,
        "Random weights, eval mode, 224 px, one target per image. Each library as its documentation says, in one process, each "
        "once per round in rotating order.",
        "Memory is the peak of a call beyond the model and its inputs.",
    )
    # The children need much memory themselves: they go first, before this process has grown.
    memories = (
        {} if on_gpu else {name: _memory_on_cpu(name, sizes, options) for name, sizes in setups.items()}
    )
    for name, sizes in setups.items():
        for batch in sizes:
            _measure(report, name, batch, options, memories.get(name, {}))
            free(options.device)
    report.finish()


def add_variants(made: argparse.ArgumentParser) -> None:
    """Add the options of precision and layout that :func:`suffix` names the result after."""
    made.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    made.add_argument("--tf32", action="store_true", help="let the GPU round float32 to TF32")
    made.add_argument("--channels-last", action="store_true", help="the images and the model in that layout")


def suffix(options: argparse.Namespace) -> str:
    """Return what the files of other precisions and layouts have after the benchmark's name."""
    parts = [options.dtype] * (options.dtype != "float32") + ["tf32"] * options.tf32
    return "".join(f"-{part}" for part in [*parts, *["channels-last"] * options.channels_last])


def cases(
    name: str, batch: int, options: argparse.Namespace, size: int = 224
) -> tuple[Network, dict[str, Case]]:
    """Make a network with random weights, and Grad-CAM of one batch by every library; the bare forward twice.

    Args:
        name: a key of :data:`LAYERS`.
        batch: N.
        options: ``device``, ``dtype``, ``channels_last``.
        size: height and width of the images.
    """
    net = network(name, batch, options, layer=LAYERS[name], size=size)
    reshape = tokens(1) if name.startswith("vit") else None
    targets = net.labels.tolist()
    grad_cam = BatchGradCam(net.model, net.layer, reshape=reshape)

    def ours() -> Any:
        return grad_cam.attribute(net.images, target=net.labels)

    def peer(library: str, rows: int = batch) -> Within:
        @contextmanager
        def enter() -> Iterator[Call]:
            with LIBRARIES[library].opened(net.model, LAYERS[name], "grad_cam", reshape) as call:

                def whole() -> None:
                    for first in range(0, batch, rows):
                        call(net.images[first : first + rows], targets[first : first + rows])

                yield whole

        return Within(enter)

    found: dict[str, Case] = {
        BARE: net.bare_forward,
        AGAIN: net.bare_forward,
        OURS: ours,
        OURS_AT_SIZE: lambda: to_pytorch_grad_cam(ours(), net.images.shape[2:]),
        "Captum": peer("Captum"),
        "TorchCAM": peer("TorchCAM"),
        BATCHED: peer("pytorch-grad-cam"),
    }
    if batch <= ONE_BY_ONE_UP_TO:
        found[PER_IMAGE] = peer("pytorch-grad-cam", 1)
    return net, found


def _measure(
    report: Report, name: str, batch: int, options: argparse.Namespace, on_cpu: Mapping[str, dict[int, int]]
) -> None:
    """Time one batch size; whatever fails is left out and named."""
    case = f"{name}, batch {batch}"
    if report.has(case):
        return
    on_gpu = torch.device(options.device).type == "cuda"
    _, running = cases(name, batch, options)
    failed: dict[str, str] = {}

    def note(method: str, error: Exception) -> None:
        failed[method] = reason_of(error)

    times = interleaved(running, options, warm_up=3 if on_gpu else 1, failed=note)
    memory = {method: sizes[batch] for method, sizes in on_cpu.items() if batch in sizes}
    if on_gpu:
        memory = {
            method: peak_memory(running[method], options.device)
            for method in times.seconds
            if method != AGAIN
        }
    skipped = {} if PER_IMAGE in running else {PER_IMAGE: f"not measured beyond {ONE_BY_ONE_UP_TO} images"}
    report.add_case(
        case,
        times=times if times.seconds else None,
        model=name,
        batch=batch,
        failed=failed,
        peak_bytes=memory,
        skipped=skipped,
    )
    if times.seconds:
        _add_figures(report, case, times, memory)


def failure(case: Case, device: str) -> str | None:
    """Return why a case does not run, in one line; None if it does."""
    try:
        with case.enter() if isinstance(case, Within) else nullcontext(case) as call:
            call()
            synchronize(device)
    except Exception as error:
        reason = reason_of(error)
    else:
        return None
    # Outside of the handler, which keeps the tensors of the failed call alive.
    free(device)
    return reason


def _add_figures(report: Report, case: str, times: Times, memory: Mapping[str, int]) -> None:
    names = times.seconds
    pairs: list[tuple[str, str, float | None]] = [(method, BARE, None) for method in names if method != BARE]
    pairs += [(OURS, peer, REACH) for peer in PEERS]
    pairs += [(OURS_AT_SIZE, peer, REACH) for peer in (PER_IMAGE, BATCHED)]
    for method, other, reach in pairs:
        if method in names and other in names:
            report.add_figure(case, f"{method} ÷ {other}", times.ratio(method, other), reach=reach)
    for method, peak in memory.items():
        if method != BARE and BARE in memory:
            ratio = Spread.exact(peak / max(memory[BARE], 1))
            reach = REACH_OF_MEMORY if method == OURS else None
            report.add_figure(case, f"peak memory, {method} ÷ {BARE}", ratio, reach=reach)


def _memory_on_cpu(
    name: str, sizes: tuple[int, ...], options: argparse.Namespace
) -> dict[str, dict[int, int]]:
    """Return method -> batch size -> bytes, each method measured in a process of its own."""
    sizes = tuple(batch for batch in sizes if batch <= MEMORY_UP_TO)
    shared = {"name": name, "batches": sizes, "dtype": options.dtype, "channels_last": options.channels_last}
    found: dict[str, dict[int, int]] = {}
    for method in (BARE, OURS, OURS_AT_SIZE, *PEERS) if sizes else ():
        peaks = peaks_in_child(options, shared | {"method": method})
        found[method] = dict(zip(sizes, peaks, strict=False))
    return found


def _child(options: argparse.Namespace) -> None:
    """Print the peak memory of one method at each batch size; nothing if it does not run."""
    facts = json.loads(options.peak)
    options.dtype, options.channels_last = facts["dtype"], facts["channels_last"]
    # Libraries load code and tables on first use.
    if failure(cases(facts["name"], 1, options)[1][facts["method"]], "cpu"):
        return
    for batch in facts["batches"]:
        case = cases(facts["name"], batch, options)[1][facts["method"]]
        print(peak_memory(case, "cpu", repeats=1 if batch > 16 else 3))


if __name__ == "__main__":
    main()
