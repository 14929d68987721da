"""What does a CAM loss add to a compiled training step?

Both steps are compiled whole (torch.compile(fullgraph=True), inductor) and share one network in train mode: scores, loss, and one
backward. One of them also makes a cam of every image and takes a BatchCamLoss (L1) of them. The optimizer, which costs both the
same, is left out. Beside it the same without compiling, where the cams come from a CamRegularizer.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

import timm
import torch
from common import Call, Report, Spread, interleaved, parser, peak_memory, start
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from batchcam_captum import BatchCamLoss, BatchGradCam, CamRegularizer
from batchcam_captum.attribution.split import Split, split_model
from batchcam_captum.functional import head_cams

CLASSES = 10
REACH = 1.05
CAM, PLAIN, EAGER_CAM, EAGER_PLAIN = (
    "compiled, CAM loss",
    "compiled, plain",
    "eager, CAM loss",
    "eager, plain",
)
Objective = Callable[[Tensor, Tensor], Tensor]


class Setup(NamedTuple):
    """A network, its input, and where it is split."""

    model: str
    batch: int
    size: int  #: pixels a side; at least 4 × 4 are left at the layer
    layer: str
    reach: float | None  #: what the ratio is to reach; None: for information


SETUPS = (
    Setup("resnet18", 8, 224, "layer4", REACH),
    Setup("resnet18", 32, 128, "layer4", REACH),
    Setup("convnextv2_tiny", 8, 128, "stages.3", REACH),
    # A stage of the network comes after the layer, and is differentiated twice.
    Setup("resnet18", 32, 64, "layer3", None),
)
QUICK = Setup("resnet18", 2, 128, "layer4", REACH)


def split(model: nn.Module, layer: str) -> Split:
    """After the features; a ResNet also after its third stage."""
    if layer != "layer3":
        return split_model(model)
    before = [model.conv1, model.bn1, model.act1, model.maxpool, model.layer1, model.layer2, model.layer3]
    return Split(nn.Sequential(*before), nn.Sequential(model.layer4, model.global_pool, model.fc))


def step(objective: Objective, model: nn.Module, images: Tensor, labels: Tensor) -> Call:
    def call() -> None:
        model.zero_grad(set_to_none=True)
        objective(images, labels).backward()

    return call


def steps(setup: Setup, options: argparse.Namespace) -> dict[str, Call]:
    torch.manual_seed(0)
    model = timm.create_model(setup.model, num_classes=CLASSES).to(options.device).train()
    images = torch.randn(setup.batch, 3, setup.size, setup.size, device=options.device)
    labels = torch.randint(CLASSES, (setup.batch,), device=options.device)
    loss = BatchCamLoss(torch.rand(CLASSES, 1, setup.size, setup.size, device=options.device))
    trunk, head = split(model, setup.layer)
    regularizer = CamRegularizer(BatchGradCam(model, model.get_submodule(setup.layer)), loss)

    def plain(images: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(model(images), labels)

    def with_cams(images: Tensor, labels: Tensor) -> Tensor:
        cams, scores = head_cams(head, trunk(images), labels)
        return cross_entropy(scores, labels) + loss(cams, labels)

    def hooked(images: Tensor, labels: Tensor) -> Tensor:
        with regularizer:
            scores = model(images)
        return cross_entropy(scores, labels) + regularizer(scores, labels)

    objectives: dict[str, Objective] = {
        CAM: torch.compile(with_cams, fullgraph=True),
        PLAIN: torch.compile(plain, fullgraph=True),
        EAGER_CAM: hooked,
        EAGER_PLAIN: plain,
    }
    return {name: step(objective, model, images, labels) for name, objective in objectives.items()}


def main() -> None:
    options = start(parser(__doc__, rounds=40, seconds=60))
    report = Report("compiled_step", options, "Forward and backward of one batch; no optimizer.")
    for setup in [QUICK] if options.quick else SETUPS:
        torch.compiler.reset()
        cases = steps(setup, options)
        times = interleaved(cases, options, warm_up=3)
        case = f"{setup.model}, batch {setup.batch}, {setup.size} px, {setup.layer}"
        memory = {}
        if torch.device(options.device).type == "cuda":
            memory = {name: peak_memory(call, options.device) for name, call in cases.items()}
        report.add_case(case, times=times, **setup._asdict(), peak_bytes=memory or None)
        for name, reference, reach in (
            (CAM, PLAIN, setup.reach),
            (EAGER_CAM, EAGER_PLAIN, None),
            (PLAIN, EAGER_PLAIN, None),
        ):
            report.add_figure(case, f"{name} ÷ {reference}", times.ratio(name, reference), reach=reach)
        if memory:
            ratio = Spread.exact(memory[CAM] / memory[PLAIN])
            report.add_figure(case, f"peak memory, {CAM} ÷ {PLAIN}", ratio, reach=None)
    report.finish()


if __name__ == "__main__":
    main()
