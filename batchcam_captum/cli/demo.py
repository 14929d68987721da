"""``batchcam demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .options import DataRoot, Device, Quiet, comma_separated


def demo(
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the results.")] = Path("demo-output"),
    data: Annotated[
        Literal["digits", "mnist", "fashion-mnist"],
        typer.Option(help="The digits are part of scikit-learn; the others are read from --data-root."),
    ] = "digits",
    data_root: DataRoot = None,
    download: Annotated[
        bool, typer.Option("--download", help="Let torchvision download what is missing.")
    ] = False,
    loss: Annotated[
        str, typer.Option(metavar="NAME", help="batch_cam, prototype, prototype_contrastive or image.")
    ] = "batch_cam",
    distance: Annotated[str, typer.Option(metavar="NAME", help="l1, l2, ssim or cosine.")] = "ssim",
    weight: Annotated[float, typer.Option(metavar="NUMBER", help="λ of the loss.")] = 1.0,
    epochs: Annotated[
        int | None, typer.Option(metavar="N", help="Default: 20 for the digits, otherwise 5.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", help="Default: 64 for the digits, otherwise 128.")
    ] = None,
    learning_rate: Annotated[float, typer.Option(metavar="NUMBER", help="Of Adam.")] = 1e-3,
    seeds: Annotated[
        Any,
        typer.Option(parser=comma_separated(int), metavar="SEEDS", help="One run per seed, such as 0,1,2."),
    ] = "0",
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Train with and without a Batch-CAM loss.

    The same small network is trained twice, from the same seed on the same batches. Prints a table, and writes pictures,
    results.json and both checkpoints.
    """
    from ..demo import DemoSettings, run_demo

    settings = DemoSettings(
        output=output,
        data=data,
        data_root=data_root,
        download=download,
        loss=loss,
        distance=distance,
        weight=weight,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seeds=tuple(seeds),
        device=device,
        progress=not quiet,
    )
    run_demo(settings)
