"""Why do hooks cost what they cost? What each library makes the machine do in one call, counted rather than timed.

Arithmetic (multiply-adds, by torch's FLOP counter), operators, nodes of the autograd graph that run, and the bytes that a forward
keeps for a backward; on a GPU also kernels, copies between it and the host, and the times that the host waits for it.
"""

from __future__ import annotations

import argparse
import math
from contextlib import nullcontext
from typing import Any

import torch
from common import Call, Case, Report, Spread, Within, parser, start, synchronize
from comparison_cost import failure
from comparison_methods import (
    AGAIN,
    BARE,
    COMPILED,
    COMPILED_BARE,
    LAYERS,
    OURS,
    PEERS,
    add_variants,
    compared,
    set_tf32,
    suffix,
)
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from batchcam_captum.interop.timing import free

#: The name of what is counted, among the profiler's events.
RANGE = "one call"
QUICK, BATCHES = ("resnet18",), (8,)


def main() -> None:
    made = parser(__doc__, rounds=1)
    made.add_argument("--models", nargs="+", default=list(LAYERS), choices=list(LAYERS))
    made.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    made.add_argument("--size", type=int, default=224, help="of the images, in pixels")
    add_variants(made)
    options = start(made)
    set_tf32(options.tf32)
    if options.quick:
        options.models, options.batches = QUICK, [2]
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
    if report.has(f"{name}, batch {batch}"):
        return
    torch.compiler.reset()
    net = compared(name, batch, options, size=options.size)
    cases = {key: case for key, case in net.cases(compiled=options.compiled).items() if key != AGAIN}
    failed = {method: why for method, case in cases.items() if (why := failure(case, options.device))}
    counts = {
        method: counted(case, net.model, options.device, compiled=method in (COMPILED, COMPILED_BARE))
        for method, case in cases.items()
        if method not in failed
    }
    case = f"{name}, batch {batch}"
    report.add_case(case, model=name, batch=batch, failed=failed, counts=counts)
    for method in (OURS, *PEERS):
        if method in counts and BARE in counts:
            ratio = Spread.exact(counts[method]["flops"] / counts[BARE]["flops"])
            report.add_figure(case, f"arithmetic, {method} ÷ {BARE}", ratio, reach=None)


def counted(case: Case, model: nn.Module, device: str, *, compiled: bool = False) -> dict[str, int]:
    """Everything in the page's table that the device knows, of one call each.

    Args:
        case: a call that has been run before.
        model: whose forwards are counted, and whose own tensors do not count as kept.
        device: where it runs.
        compiled: whether it is compiled, where arithmetic and the graph cannot be seen from outside.
    """
    with case.enter() if isinstance(case, Within) else nullcontext(case) as call:
        found = {} if compiled else _arithmetic(call, model) | _kept(call, model)
        activities = [ProfilerActivity.CPU]
        on_gpu = torch.device(device).type == "cuda"
        if on_gpu:
            activities.append(ProfilerActivity.CUDA)
        synchronize(device)
        with profile(activities=activities, acc_events=True) as profiler, record_function(RANGE):
            call()
        return found | from_events(list(profiler.events()), on_gpu=on_gpu)


def _convolution_backward(
    gradient: list[int], _: list[int], weight: list[int], *rest: Any, out_shape: Any = None
) -> int:
    """Of the input and of the weights, each as much as the forward; torch's own formula forgets the groups of the second."""
    of_input, of_weight, _bias = rest[-1]
    return (of_input + of_weight) * 2 * math.prod(gradient) * math.prod(weight[1:])


_OWN_FORMULAS = {torch.ops.aten.convolution_backward: _convolution_backward}


def _arithmetic(call: Call, model: nn.Module) -> dict[str, int]:
    forwards: list[None] = []
    handle = model.register_forward_hook(lambda *_: forwards.append(None))
    try:
        with FlopCounterMode(display=False, custom_mapping=_OWN_FORMULAS) as flops:
            call()
    finally:
        handle.remove()
    return {"flops": flops.get_total_flops(), "forwards": len(forwards)}


def _kept(call: Call, model: nn.Module) -> dict[str, int]:
    kept = _Kept(model)
    handle = model.register_forward_pre_hook(kept.begin)
    try:
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack):
            call()
    finally:
        handle.remove()
    return {"saved_bytes": kept.most}


def from_events(events: list[Any], *, on_gpu: bool) -> dict[str, int]:
    """What the profiler's events say.

    Args:
        events: of ``torch.profiler``: ``name``, ``cpu_parent``, ``time_range``; the call within a range named :data:`RANGE`.
        on_gpu: whether there was one.
    """
    names = [event.name for event in events]
    marked = next(event.time_range for event in events if event.name == RANGE)
    # The profiler waits for the device itself before it begins and when it ends.
    within = [event.name for event in events if marked.start <= event.time_range.start <= marked.end]
    found = {
        "operators": sum(event.name.startswith("aten::") and not _within_operator(event) for event in events),
        "autograd_nodes": sum(name.startswith("autograd::engine::evaluate_function") for name in names),
    }
    if on_gpu:
        found |= {
            "kernels": sum(name.startswith(("cudaLaunchKernel", "cuLaunchKernel")) for name in within),
            "copies_to_host": sum(name.startswith("Memcpy DtoH") for name in names),
            "copies_to_device": sum(name.startswith("Memcpy HtoD") for name in names),
            "synchronisations": sum(
                name.startswith(("cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize"))
                for name in within
            ),
        }
    return found


def _within_operator(event: Any) -> bool:
    parent = event.cpu_parent
    while parent is not None:
        if parent.name.startswith("aten::"):
            return True
        parent = parent.cpu_parent
    return False


class _Kept:
    """The bytes that autograd keeps of one forward: the most of any, where a call has several."""

    def __init__(self, model: nn.Module) -> None:
        own = [*model.parameters(), *model.buffers()]
        self.own = {tensor.untyped_storage().data_ptr() for tensor in own}
        self.most = 0
        self._storages: dict[int, int] = {}
        self._alive: list[Tensor] = []  # or an address could be given to another one

    def begin(self, *_: object) -> None:
        """Another forward."""
        self._storages, self._alive = {}, []

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.own:
            self._storages[storage.data_ptr()] = storage.nbytes()
            self._alive.append(tensor.detach())
            self.most = max(self.most, sum(self._storages.values()))
        return tensor

    @staticmethod
    def unpack(tensor: Tensor) -> Tensor:
        return tensor


if __name__ == "__main__":
    main()
