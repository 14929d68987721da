"""What does Grad-CAM of a batch cost in each library, in time and in peak memory, and how do they grow with the batch?

Hooks image by image, as most examples on the web do it, hooks on the whole batch, Captum, TorchCAM, and this library, next to a
bare forward under ``no_grad``. All return Grad-CAM of the last stage; pytorch-grad-cam's maps are NumPy arrays of the image's
size, so this library is also timed down to these.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from common import (
    Case,
    Report,
    Spread,
    Times,
    Within,
    interleaved,
    parser,
    peak_memory,
    peaks_in_child,
    start,
    synchronize,
)
from comparison_methods import (
    AGAIN,
    BARE,
    COMPILED,
    COMPILED_BARE,
    LAYERS,
    ONE_BY_ONE_UP_TO,
    OURS,
    OURS_AT_SIZE,
    PEERS,
    PER_IMAGE,
    add_variants,
    compared,
    set_tf32,
    suffix,
)

from batchcam_captum.interop.compare import reason_of
from batchcam_captum.interop.timing import free

#: On two cores more would take longer than anybody waits.
ON_CPU = {"resnet18": (1, 8, 64, 256), "convnextv2_tiny": (8,), "vit_small_patch16_224": (8,)}
ON_GPU = dict.fromkeys(LAYERS, (1, 8, 64, 256))
QUICK = {"resnet18": (1, 2)}
#: On the CPU memory is measured by calls of their own, up to this batch size.
MEMORY_UP_TO = 64
#: Of our time to a peer's, and of our memory to a bare forward's.
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
        "Random weights, eval mode, 224 px, one target an image. Each library as its documentation says, in one process, each "
        "once a round in rotating order.",
        "Memory is what a call needs at most beyond the model and its inputs.",
    )
    # The children need much memory themselves: they go first, before this process has grown.
    memories = (
        {} if on_gpu else {name: _memory_on_cpu(name, sizes, options) for name, sizes in setups.items()}
    )
    for name, sizes in setups.items():
        for batch in sizes:
            torch.compiler.reset()
            _measure(report, name, batch, options, memories.get(name, {}))
            free(options.device)
    report.finish()


def _measure(
    report: Report, name: str, batch: int, options: argparse.Namespace, on_cpu: Mapping[str, dict[int, int]]
) -> None:
    """Time one batch size, with whatever fails left out and named, even if it fails only in a later call."""
    case = f"{name}, batch {batch}"
    if report.has(case):
        return
    on_gpu = torch.device(options.device).type == "cuda"
    net = compared(name, batch, options)
    cases = net.cases(compiled=options.compiled)
    # On a GPU the whole batch, which may not fit; on the CPU two images say what does not run at all.
    tried = cases if on_gpu or batch <= 2 else compared(name, 2, options).cases(compiled=options.compiled)
    failed = {method: why for method, case in tried.items() if (why := failure(case, options.device))}
    running = {method: case for method, case in cases.items() if method not in failed}

    def note(method: str, error: Exception) -> None:
        failed[method] = reason_of(error)

    times = interleaved(running, options, warm_up=3 if on_gpu or options.compiled else 1, failed=note)
    if on_gpu:
        memory = {
            method: peak
            for method, entry in running.items()
            if (peak := _peak(method, entry, note, options.device))
        }
    else:
        memory = {method: sizes[batch] for method, sizes in on_cpu.items() if batch in sizes}
    facts: dict[str, Any] = {}
    if PER_IMAGE not in cases:
        facts["skipped"] = {PER_IMAGE: f"not measured beyond {ONE_BY_ONE_UP_TO} images"}
    if COMPILED in times.seconds and OURS in times.seconds:
        # That both routes compute the same thing.
        compiled, eager = net.compiled_cams(), net.batch_grad_cam()()
        facts["compiled_from_eager"] = float((compiled - eager).abs().max() / eager.abs().max())
    report.add_case(
        case,
        times=times if times.seconds else None,
        model=name,
        batch=batch,
        failed=failed,
        peak_bytes=memory,
        **facts,
    )
    if times.seconds:
        _add_figures(report, case, times, memory)


def failure(case: Case, device: str) -> str | None:
    """Why a case does not run, in one line; None where it does. Not having the memory is a result like another."""
    try:
        with case.enter() if isinstance(case, Within) else nullcontext(case) as call:
            call()
            synchronize(device)
    except (RuntimeError, TypeError, ValueError, ImportError) as error:
        reason = reason_of(error)
    else:
        return None
    # Outside of the handler, which would keep the tensors of the failed call alive.
    free(device)
    return reason


def _peak(method: str, case: Case, note: Callable[[str, Exception], None], device: str) -> int | None:
    """Bytes on a GPU; None where the call fails, which is noted."""
    if method == AGAIN:
        return None
    try:
        return peak_memory(case, device)
    except RuntimeError as error:
        note(method, error)
    free(device)
    return None


def _add_figures(report: Report, case: str, times: Times, memory: Mapping[str, int]) -> None:
    names = times.seconds
    pairs = [(method, BARE, None) for method in names if method not in (BARE, COMPILED_BARE, COMPILED)]
    pairs += [(OURS, peer, REACH) for peer in PEERS]
    pairs += [(OURS_AT_SIZE, peer, REACH) for peer in PEERS if peer.startswith("pytorch-grad-cam")]
    pairs += [(COMPILED, COMPILED_BARE, None), (COMPILED, OURS, None), (COMPILED_BARE, BARE, None)]
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
    """Method -> batch size -> bytes; a process of its own for each."""
    sizes = tuple(batch for batch in sizes if batch <= MEMORY_UP_TO)
    shared = {"name": name, "batches": sizes, "dtype": options.dtype, "channels_last": options.channels_last}
    found: dict[str, dict[int, int]] = {}
    for method in (BARE, OURS, OURS_AT_SIZE, *PEERS) if sizes else ():
        peaks = peaks_in_child(options, shared | {"method": method})
        found[method] = dict(zip(sizes, peaks, strict=False))
    return found


def _child(options: argparse.Namespace) -> None:
    """Print the peak memory of one method at each batch size; nothing where it does not run."""
    facts = json.loads(options.peak)
    options.dtype, options.channels_last = facts["dtype"], facts["channels_last"]
    # Libraries load code and tables on first use.
    if failure(compared(facts["name"], 1, options).cases()[facts["method"]], "cpu"):
        return
    for batch in facts["batches"]:
        case = compared(facts["name"], batch, options).cases()[facts["method"]]
        print(peak_memory(case, "cpu", repeats=1 if batch > 16 else 3))


if __name__ == "__main__":
    main()
