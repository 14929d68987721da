"""``batchcam demo``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Describe the command.

    Args:
        commands: what ``add_subparsers`` returned.
    """
    demo = commands.add_parser(
        "demo",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        help="train a small network with and without a Batch-CAM loss, and show the difference",
        description="Train the same small network from the same seed with cross-entropy alone and with a Batch-CAM loss; print "
        "a table, and write pictures, results.json and both checkpoints.",
    )
    demo.set_defaults(run=run, extra="demo")
    demo.add_argument(
        "--output", type=Path, default=Path("demo-output"), metavar="DIR", help="folder for the results"
    )
    demo.add_argument(
        "--data",
        choices=["digits", "mnist", "fashion-mnist"],
        default="digits",
        help="images; the digits are part of scikit-learn, the others come from --data-root",
    )
    demo.add_argument("--data-root", type=Path, metavar="DIR", help="folder of torchvision's data sets")
    demo.add_argument("--download", action="store_true", help="let torchvision download what is missing")
    demo.add_argument(
        "--loss", default="batch_cam", help="batch_cam, prototype, prototype_contrastive or image"
    )
    demo.add_argument("--distance", default="ssim", help="l1, l2, ssim or cosine")
    demo.add_argument("--weight", type=float, default=1.0, help="λ of the loss")
    demo.add_argument("--epochs", type=int, help="passes over the data; default: 20 for the digits, else 5")
    demo.add_argument("--batch-size", type=int, help="default: 64 for the digits, else 128")
    demo.add_argument("--learning-rate", type=float, default=1e-3, help="of Adam")
    demo.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="SEED", help="one run each")
    demo.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, …")
    demo.add_argument("--quiet", action="store_true", help="no progress bars")


def run(options: argparse.Namespace) -> None:
    """Train, measure, and write the results."""
    from ..demo import DemoSettings, run_demo

    settings = DemoSettings(
        output=options.output,
        data=options.data,
        data_root=options.data_root,
        download=options.download,
        loss=options.loss,
        distance=options.distance,
        weight=options.weight,
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        seeds=tuple(options.seeds),
        device=options.device,
        progress=not options.quiet,
    )
    run_demo(settings)
