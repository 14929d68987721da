"""How many maps does a loss kill, and what does `revive` do about it?

A small network on scikit-learn's digits, and with `--data-root` on a part of MNIST, whose prototypes are darker: with
cross-entropy alone, and with a prototype loss of each distance, without and with `revive`. What is counted are the maps of test
images that have no positive value. Nothing is timed, so this may run beside other work.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import Report, Spread, parser, start
from torch import nn

from batchcam_captum import BatchGradCam, CamRegularizer, ClassPrototypes, PrototypeLoss
from batchcam_captum.demo.data import DemoData, Images, load_data
from batchcam_captum.demo.train import Arm
from batchcam_captum.evaluation import evaluate_cams
from batchcam_captum.functional import prototype_distance

DISTANCES = ("l1", "l2", "ssim", "cosine")
ARMS: dict[str, dict[str, Any] | None] = {"cross-entropy alone": None} | {
    f"{distance}, {'revive' if revive else 'no revive'}": {"distance": distance, "revive": revive}
    for distance in DISTANCES
    for revive in (False, True)
}
#: With revive at most this share of the maps is to be dead.
REACH = 0.02
_TEST_BATCH = 500
_TEST_IMAGES = 2000


def main() -> None:
    made = parser(__doc__, rounds=1)
    made.add_argument(
        "--data-root", type=Path, help="folder in which torchvision's MNIST lies; without it digits only"
    )
    made.add_argument("--steps", type=int, default=200, help="about how many each network is trained for")
    made.add_argument("--images", type=int, default=3000, help="MNIST's: how many of the training images")
    made.add_argument("--batch-size", type=int, default=64, help="N")
    made.add_argument("--learning-rate", type=float, default=1e-3, help="of Adam")
    made.add_argument("--weight", type=float, default=1.0, help="λ of the loss")
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="one run each")
    options = start(made)
    if options.quick:
        options.steps, options.seeds = 20, options.seeds[:1]
    sets = {"digits": load_data("digits")}
    if options.data_root is not None:
        sets["MNIST"] = _part(load_data("mnist", options.data_root), options.images)
    del options.data_root  # a place of this machine
    report = Report(
        "dead_maps",
        options,
        "Maps of test images, explained for their true class, next to the prototypes at the maps' size.",
        "A dead map counts as black: its L1 distance is the prototype's mean.",
        f"MNIST: {options.images} training images and the first {_TEST_IMAGES} test images.",
    )
    for name, data in sets.items():
        _measure(report, name, data, options)
    report.finish()


def _part(data: DemoData, images: int) -> DemoData:
    """The first images: enough to train this network."""
    train, test = data.train, data.test
    return replace(
        data,
        train=Images(train.images[:images], train.labels[:images]),
        test=Images(test.images[:_TEST_IMAGES], test.labels[:_TEST_IMAGES]),
    )


def _network(side: int) -> nn.Sequential:
    """Two convolutions, whose output is explained, and two linear layers; images of 16 pixels or more are halved between."""
    large = side >= 16
    places = side // 4 if large else side // 2
    trunk = (nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2) if large else nn.Identity())
    return nn.Sequential(
        nn.Sequential(*trunk, nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()),
        nn.Sequential(
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * places**2, 64), nn.ReLU(), nn.Linear(64, 10)
        ),
    )


def _measure(report: Report, name: str, data: DemoData, options: argparse.Namespace) -> None:
    prototypes = ClassPrototypes.from_loader(
        data.train.batches(_TEST_BATCH), 10, mean=data.mean, std=data.std, progress=False
    ).to(options.device)
    maps = prototypes.maps((14, 14) if data.image_size >= 16 else None)
    black = float(prototype_distance(torch.zeros_like(maps), torch.arange(10), maps, "l1").mean())
    for label, loss in ARMS.items():
        case = f"{name}, {label}"
        if report.has(case):
            continue
        runs = [_run(data, prototypes, loss, seed, options) for seed in options.seeds]
        report.add_case(case, data=name, loss=loss, black_l1=black, runs=runs)
        for figure in ("dead_fraction", "accuracy", "l1", "cosine"):
            # Revived maps are to live; that the others die is what is shown.
            reach = REACH if figure == "dead_fraction" and loss is not None and loss["revive"] else None
            report.add_figure(case, figure, Spread.of([run[figure] for run in runs]), reach=reach)


def _run(
    data: DemoData,
    prototypes: ClassPrototypes,
    loss: dict[str, Any] | None,
    seed: int,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Train one network and measure it; a seed's networks begin with the same weights and see the same batches."""
    torch.manual_seed(seed)
    model = _network(data.image_size).to(options.device)
    grad_cam = BatchGradCam(model, "0")
    regularizer = None
    if loss is not None:
        regularizer = CamRegularizer(grad_cam, PrototypeLoss(prototypes, **loss), options.weight)
    arm = Arm(model, torch.optim.Adam(model.parameters(), lr=options.learning_rate), regularizer)
    generator = torch.Generator().manual_seed(seed)
    epochs = max(round(options.steps * options.batch_size / len(data.train)), 1)
    for _ in range(epochs):
        for images, labels in data.train.batches(options.batch_size, generator, options.device):
            arm.step(images, labels)
    model.eval()
    found = evaluate_cams(grad_cam, data.test.batches(_TEST_BATCH, device=options.device), prototypes)
    return {"seed": seed, **found}


if __name__ == "__main__":
    main()
