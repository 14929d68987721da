"""Why do hooks cost what they cost? What one call of each library makes the machine do, counted rather than timed.

Arithmetic (by torch's FLOP counter), forwards, operators, autograd nodes that run, and the bytes that a forward keeps
for a backward; on a GPU also kernels.
"""

from __future__ import annotations

import argparse
import math
from contextlib import nullcontext
from typing import Any

import torch
from common import Call, Case, Report, Spread, Within, parser, set_tf32, start
from comparison_cost import AGAIN, BARE, LAYERS, OURS, PEERS, add_variants, cases, failure, suffix
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from batchcam_captum.interop.timing import free


def main() -> None:
    made = parser(__doc__, rounds=1)
    made.add_argument("--models", nargs="+", default=list(LAYERS), choices=list(LAYERS))
    made.add_argument("--batches", nargs="+", type=int, default=[8])
    made.add_argument("--size", type=int, default=224, help="of the images, in pixels")
    add_variants(made)
    options = start(made)
    set_tf32(options.tf32)
    if options.quick:
        options.models, options.batches = ["resnet18"], [2]
    report = Report(
        f"comparison_profile{suffix(options)}",
        options,
        "Counts of one call after another that warmed up. Arithmetic is that of convolutions, matrix products and attention; "
        "bytes kept for a backward are those of the tensors that autograd saves in a forward, each storage once, the model's own "
        "tensors left out; operators are the calls of aten that no other operator makes.",
    )
    for name in options.models:
        for batch in options.batches:
            _count(report, name, batch, options)
            free(options.device)
    report.finish()


def _count(report: Report, name: str, batch: int, options: argparse.Namespace) -> None:
    case = f"{name}, batch {batch}"
    if report.has(case):
        return
    net, calls = cases(name, batch, options, size=options.size)
    del calls[AGAIN]
    failed = {method: why for method, call in calls.items() if (why := failure(call, options.device))}
    counts = {
        method: counted(call, net.model, options.device)
        for method, call in calls.items()
        if method not in failed
    }
    report.add_case(case, model=name, batch=batch, failed=failed, counts=counts)
    for method in (OURS, *PEERS):
        if method in counts and BARE in counts:
            ratio = Spread.exact(counts[method]["flops"] / counts[BARE]["flops"])
            report.add_figure(case, f"arithmetic, {method} ÷ {BARE}", ratio, reach=None)


def counted(case: Case, model: nn.Module, device: str) -> dict[str, int]:
    """Count what a call does, in one call for each kind of count.

    Args:
        case: a call that has been run before.
        model: whose forwards are counted, and whose own tensors do not count as kept.
        device: where it runs.
    """
    with case.enter() if isinstance(case, Within) else nullcontext(case) as call:
        return _arithmetic(call, model) | {"saved_bytes": _kept(call, model)} | _events(call, device)


def _convolution_backward(
    gradient: list[int], _: list[int], weight: list[int], *rest: Any, out_shape: Any = None
) -> int:
    """The gradients of input and weights each cost as much as the forward; torch's formula forgets groups in the second."""
    of_input, of_weight, _bias = rest[-1]
    return (of_input + of_weight) * 2 * math.prod(gradient) * math.prod(weight[1:])


def _arithmetic(call: Call, model: nn.Module) -> dict[str, int]:
    forwards: list[None] = []
    handle = model.register_forward_hook(lambda *_: forwards.append(None))
    own = {torch.ops.aten.convolution_backward: _convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=own) as flops:
        call()
    handle.remove()
    return {"flops": flops.get_total_flops(), "forwards": len(forwards)}


def _kept(call: Call, model: nn.Module) -> int:
    """Return the bytes that autograd keeps of one forward: the most of any, if a call has several."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    storages: dict[int, int] = {}
    alive: list[Tensor] = []  # or an address could be used again
    most = 0

    def begin(*_: object) -> None:
        storages.clear()
        alive.clear()

    def pack(tensor: Tensor) -> Tensor:
        nonlocal most
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor.detach())
            most = max(most, sum(storages.values()))
        return tensor

    handle = model.register_forward_pre_hook(begin)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    handle.remove()
    return most


def _events(call: Call, device: str) -> dict[str, int]:
    """Count operators and autograd nodes, and on a GPU kernels, by torch's profiler."""
    on_gpu = torch.device(device).type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, acc_events=True) as profiler:
        call()
    events = list(profiler.events())
    outermost = [event for event in events if event.name.startswith("aten::") and not _inside(event)]
    nodes = [event for event in events if event.name.startswith("autograd::engine::evaluate_function")]
    found = {"operators": len(outermost), "autograd_nodes": len(nodes)}
    if on_gpu:
        launches = ("cudaLaunchKernel", "cuLaunchKernel")
        found["kernels"] = sum(event.name.startswith(launches) for event in events)
    return found


def _inside(event: Any) -> bool:
    parent = event.cpu_parent
    while parent is not None:
        if parent.name.startswith("aten::"):
            return True
        parent = parent.cpu_parent
    return False


if __name__ == "__main__":
    main()
