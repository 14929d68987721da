"""What do the maps of every class cost in one pass, next to a bare forward, to single gradients, and to Captum's calls?"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass

import torch
from common import Call, Report, Spread, interleaved, parser, peak_in_child, peak_memory, start
from models import CLASSES, Network, network
from torch import Tensor

from batchcam_captum import BatchGradCam

BARE, OURS, LOOP, CAPTUM = "bare forward", "attribute_classes", "single gradients", "Captum, some calls"
#: Captum needs one call a class; some are timed, and the ratio counts all of them.
CAPTUM_CALLS = 5


@dataclass(frozen=True)
class Setup:
    """A network, a layer of it, and how many classes are asked for."""

    network: str
    layer: str
    classes: int
    reach_of_bare: float | None = None
    reach_of_loop: float | None = None


SETUPS = (
    # The head begins with global average pooling: the gradient at the pooled tensor is all that is needed.
    Setup("resnet50", "layer4", CLASSES, reach_of_bare=1.5),
    Setup("convnextv2_tiny", "stages.3", CLASSES),
    # Other heads: a convolutional stage, and three large linear layers.
    Setup("resnet50", "layer3", 20, reach_of_loop=1.1),
    Setup("torchvision/vgg11_bn", "features", 50, reach_of_loop=1.1),
)


def every_class(net: Network, count: int) -> Call:
    grad_cam = BatchGradCam(net.model, net.layer)
    classes = None if count == CLASSES else range(count)
    return lambda: grad_cam.attribute_classes(net.images, classes)


def single_gradients(net: Network, count: int) -> Call:
    """One recorded forward, and one gradient a class over its graph: (N, K, h, w)."""

    def call() -> Tensor:
        held: list[Tensor] = []
        handle = net.layer.register_forward_hook(lambda module, given, output: held.append(output))
        try:
            scores = net.model(net.images)
        finally:
            handle.remove()
        (activations,) = held
        maps = []
        for k in range(count):
            (gradient,) = torch.autograd.grad(scores[:, k].sum(), activations, retain_graph=True)
            maps.append((gradient.mean((2, 3), keepdim=True) * activations.detach()).sum(1))
        return torch.stack(maps, 1)

    return call


def captum_calls(net: Network, count: int) -> Call:
    """Some of the calls that the maps of every class need."""
    from captum.attr import LayerGradCam

    grad_cam = LayerGradCam(net.model, net.layer)
    chosen = range(0, count, count // CAPTUM_CALLS)[:CAPTUM_CALLS]
    return lambda: [grad_cam.attribute(net.images, target=k) for k in chosen]


def main() -> None:
    made = parser(__doc__, rounds=20, seconds=40)
    made.add_argument("--batch", type=int, default=8)
    options = start(made)
    if options.peak:
        _child(options)
        return
    setups = SETUPS
    if options.quick:
        options.batch, setups = 2, (Setup("resnet18", "layer4", CLASSES), Setup("resnet18", "layer4.1", 5))
    report = Report(
        "classes",
        options,
        f"Captum's figure: {CAPTUM_CALLS} calls were timed and multiplied by K / {CAPTUM_CALLS}; a call costs the same for every "
        "class.",
        "Single gradients: one recorded forward, then torch.autograd.grad once a class with retain_graph=True.",
        "The single gradients of all 1,000 classes are left out where the maps come from the pooled tensor.",
    )
    for setup in setups:
        _measure(setup, report, options)
    report.finish()


def _measure(setup: Setup, report: Report, options: argparse.Namespace) -> None:
    case = f"{setup.network}, {setup.layer}, batch {options.batch}, K = {setup.classes}"
    net = network(setup.network, options.batch, options, layer=setup.layer)
    makers: dict[str, Callable[[Network, int], Call]] = {OURS: every_class, CAPTUM: captum_calls}
    if setup.classes < CLASSES:
        makers[LOOP] = single_gradients
    cases: dict[str, Call] = {BARE: net.bare_forward}
    cases |= {name: make(net, setup.classes) for name, make in makers.items()}
    times = interleaved(cases, options)
    on_gpu = torch.device(options.device).type == "cuda"
    facts = {"network": setup.network, "layer": setup.layer, "classes": setup.classes, "batch": options.batch}
    memory = {
        name: peak_memory(cases[name], options.device)
        if on_gpu
        else peak_in_child(options, facts | {"what": name})
        for name in (BARE, OURS)
    }
    report.add_case(case, times=times, **facts, peak_bytes=memory, captum_calls_timed=CAPTUM_CALLS)
    report.add_figure(
        case, "attribute_classes ÷ bare forward", times.ratio(OURS, BARE), reach=setup.reach_of_bare
    )
    if LOOP in times.seconds:
        loop = times.ratio(OURS, LOOP)
        report.add_figure(case, "attribute_classes ÷ K single gradients", loop, reach=setup.reach_of_loop)
    calls = times.ratio(CAPTUM, OURS, factor=CAPTUM_CALLS / setup.classes)
    report.add_figure(case, "Captum's K calls ÷ attribute_classes", calls, reach=None)
    ratio = Spread.exact(memory[OURS] / memory[BARE])
    report.add_figure(case, "peak memory ÷ bare forward", ratio, reach=None)


def _child(options: argparse.Namespace) -> None:
    """Print the peak memory of one case."""
    facts = json.loads(options.peak)
    net = network(facts["network"], facts["batch"], options, layer=facts["layer"])
    small = Network(net.model, net.layer, net.images[:1].clone(), net.labels[:1])
    calls = [
        each.bare_forward if facts["what"] == BARE else every_class(each, facts["classes"])
        for each in (small, net)
    ]
    calls[0]()  # libraries load code and tables on first use
    print(peak_memory(calls[1], "cpu"))


if __name__ == "__main__":
    main()
