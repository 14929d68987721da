"""What do `attribute` and its peers cost at the last stage, in time and in memory, next to a bare `no_grad` forward?"""

from __future__ import annotations

import argparse
import json

import torch
from common import Report, Spread, Times, interleaved, parser, peak_in_child, peak_memory, start
from models import LAST_STAGE, Network, network

BARE, AGAIN, OURS, CAPTUM = "bare forward", "bare forward, again", "BatchGradCam", "Captum"
#: What the ratio of our time to another's is to be at most.
REACH = {CAPTUM: 1.0, "pytorch-grad-cam": 0.33, "TorchCAM": 0.75}
REACH_ON_GPU = REACH | {"pytorch-grad-cam": 0.2}
REACH_OF_BARE, REACH_OF_BARE_SINGLE = 1.05, 1.10
REACH_OF_MEMORY = 1.15


def main() -> None:
    made = parser(__doc__, rounds=30, seconds=45)
    made.add_argument("--models", nargs="+", default=list(LAST_STAGE), choices=list(LAST_STAGE))
    made.add_argument("--batches", nargs="+", type=int, help="default: 1 16 64; on a GPU also 256")
    made.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    made.add_argument("--channels-last", action="store_true", help="the images and the model in that layout")
    options = start(made)
    if options.peak:
        _child(options)
        return
    on_gpu = torch.device(options.device).type == "cuda"
    options.batches = options.batches or ([1, 16, 64, 256] if on_gpu else [1, 16, 64])
    if options.quick:
        options.models, options.batches = ["resnet18"], options.batches[:2]
    report = Report(
        _name(options),
        options,
        "Random weights, eval mode, 224 px, last stage, one target an image. Peers are used as their documentation says: "
        "pytorch-grad-cam returns NumPy maps enlarged to the image, TorchCAM normalised ones.",
        "Memory is what a call needs at most beyond the model and its inputs.",
    )
    cells = [(name, batch) for name in options.models for batch in options.batches]
    # The children need much memory themselves: they go first, before this process has grown.
    memories = {} if on_gpu else {cell: _memory_on_cpu(*cell, options) for cell in cells}
    for name, batch in cells:
        case = f"{name}, batch {batch}"
        net = network(name, batch, options)
        # pytorch-grad-cam hands its maps to NumPy, which has no bfloat16.
        methods = net.methods()
        if options.dtype == "bfloat16":
            del methods["pytorch-grad-cam"]
        times = interleaved(methods, options, warm_up=3 if on_gpu else 1)
        difference = _difference(net)
        memory = (
            {method: peak_memory(call, options.device) for method, call in methods.items() if method != AGAIN}
            if on_gpu
            else memories[name, batch]
        )
        report.add_case(
            case,
            times=times,
            model=name,
            batch=batch,
            difference_from_captum=difference,
            peak_bytes=memory,
        )
        _add_figures(report, case, batch, times, memory, REACH_ON_GPU if on_gpu else REACH)
        del net, methods
        if on_gpu:
            torch.cuda.empty_cache()
    report.finish()


def _add_figures(
    report: Report, case: str, batch: int, times: Times, memory: dict[str, int], reach: dict[str, float]
) -> None:
    of_bare = REACH_OF_BARE_SINGLE if batch == 1 else REACH_OF_BARE
    report.add_figure(case, "attribute ÷ bare forward", times.ratio(OURS, BARE), reach=of_bare)
    for peer in times.seconds:
        if peer in reach:
            report.add_figure(case, f"attribute ÷ {peer}", times.ratio(OURS, peer), reach=reach[peer])
            report.add_figure(case, f"{peer} ÷ bare forward", times.ratio(peer, BARE), reach=None)
    report.add_figure(case, f"{AGAIN} ÷ {BARE}", times.ratio(AGAIN, BARE), reach=None)
    for method in memory:
        if method not in (BARE, AGAIN):
            report.add_figure(
                case,
                f"peak memory, {'attribute' if method == OURS else method} ÷ bare forward",
                Spread.exact(memory[method] / memory[BARE]),
                reach=REACH_OF_MEMORY if method == OURS else None,
            )


def _difference(net: Network) -> float:
    """From Captum's maps, relative to their maximum: that both compute the same thing."""
    ours, captums = (call().detach() for call in (net.batch_grad_cam(), net.captum()))  # type: ignore[attr-defined]
    return ((ours - captums).abs().max() / captums.abs().max()).item()


def _memory_on_cpu(name: str, batch: int, options: argparse.Namespace) -> dict[str, int]:
    facts = {
        "name": name,
        "batch": batch,
        "dtype": options.dtype,
        "channels_last": options.channels_last,
    }
    return {method: peak_in_child(options, facts | {"method": method}) for method in (BARE, OURS, CAPTUM)}


def _child(options: argparse.Namespace) -> None:
    """Print the peak memory of one method."""
    facts = json.loads(options.peak)
    options.dtype, options.channels_last = facts["dtype"], facts["channels_last"]
    net = network(facts["name"], facts["batch"], options)
    small = Network(net.model, net.layer, net.images[:1, :, :64, :64].clone(), net.labels[:1])
    small.methods(peers=False)[facts["method"]]()  # libraries load code and tables on first use
    print(peak_memory(net.methods(peers=False)[facts["method"]], "cpu"))


def _name(options: argparse.Namespace) -> str:
    """The file of other precisions and layouts has a name of its own."""
    extras = [options.dtype] * (options.dtype != "float32") + ["channels-last"] * options.channels_last
    return "-".join(["attribute", *extras])


if __name__ == "__main__":
    main()
