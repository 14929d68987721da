"""``batchcam explain``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import KNOWN_DATA, MODEL, add_images, add_model, remark_random_weights, warnings_as_remarks
from .stopping import Terminated, sigterm_raises

if TYPE_CHECKING:
    from .explain_inputs import Inputs
    from .ranks import Ranks

_KINDS = ("predicted", "true", "all")


def add(commands: Any) -> None:
    """Describe the command.

    Args:
        commands: what ``add_subparsers`` returned.
    """
    explain = commands.add_parser(
        "explain",
        help="maps, scores and samples of a whole data set, into a store that can be gone on with, read and reported",
        description="Explain every image of a data set, and keep maps, scores, labels, ids and paths in a Zarr store. A run that "
        "was stopped goes on when the same command is given again; images that cannot be read are listed, and end nothing. Under "
        "torchrun each process writes its own part.",
    )
    explain.set_defaults(run=run, extra="explain")
    explain.add_argument(
        "model", metavar="MODEL", help=f"demo, for a checkpoint of batchcam demo; or {MODEL}"
    )
    explain.add_argument(
        "--data",
        required=True,
        metavar="DATA",
        help="a folder of images, at any depth, where the folders directly inside are taken as classes; a CSV with a column "
        "path, and label and id where they are known; a data set of torchvision, as torchvision/CIFAR10; or "
        f"{', '.join(KNOWN_DATA)}",
    )
    explain.add_argument("--data-root", type=Path, metavar="DIR", help="folder of torchvision's data sets")
    explain.add_argument("--split", metavar="NAME", help="of a data set: test (the default), train, val, …")
    explain.add_argument(
        "--output", required=True, type=_store, metavar="STORE", help="folder of the store, such as maps.zarr"
    )
    explain.add_argument(
        "--overwrite", action="store_true", help="remove a store that is there, and begin anew"
    )
    explain.add_argument(
        "--retry-damaged",
        action="store_true",
        help="try the images again that could not be read, in a store that is there",
    )

    model = explain.add_argument_group("model")
    add_model(model)
    model.add_argument(
        "--pretrained", action="store_true", help="the library's own weights, in place of a checkpoint"
    )
    model.add_argument("--num-classes", type=int, metavar="K", help="default: as many as the checkpoint has")
    model.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="names of the model's classes, one a line; default: those of the data where they are as many, ImageNet's for 1,000",
    )

    images = explain.add_argument_group(
        "images", "Default: what the model was trained with, where that is known."
    )
    add_images(images, "height and width that files are brought to, or one number for both")
    images.add_argument("--batch-size", type=int, default=32, help="default: 32")
    images.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that read images; default: up to 4, none for data in memory; under torchrun of each process",
    )
    images.add_argument(
        "--max-missing",
        type=int,
        default=100,
        metavar="N",
        help="end when so many files in a row are missing or refused, as their folder is not there then; 0: never; default: 100",
    )

    maps = explain.add_argument_group("maps")
    maps.add_argument(
        "--targets",
        type=_targets,
        default="predicted",
        metavar="WHICH",
        help="predicted (the default), true, all, a number of highest scores (3), or classes with commas (3,5,9; one alone: 3,)",
    )
    maps.add_argument("--method", default="grad_cam", metavar="NAME", help="default: grad_cam")
    maps.add_argument(
        "--dtype", choices=["float16", "float32"], default="float32", help="of the maps; default: float32"
    )
    maps.add_argument(
        "--map-size",
        choices=["layer", "input"],
        default="layer",
        help="as the layer has them (the default), or as the images",
    )
    maps.add_argument(
        "--thumbnails",
        type=int,
        default=64,
        metavar="PIXELS",
        help="of the longer side, for reports; 0: none; default: 64",
    )
    explain.add_argument("--quiet", action="store_true", help="no progress, no remarks")


def _store(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError(
            "expected the folder of the store, such as maps.zarr, got an empty path"
        )
    return Path(text)


def _targets(text: str) -> str | int | list[int]:
    if text in _KINDS:
        return text
    try:
        if "," in text:
            return [int(part) for part in text.split(",") if part.strip()]
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected {', '.join(_KINDS)}, a number, or classes with commas between, got {text!r}"
        ) from None


def run(options: argparse.Namespace) -> None:
    """Load, explain and print."""
    from ..explain.targets import ClassChoice
    from ..explain.writing import check_output
    from ..functional import get_method
    from ..loading import check_device
    from ..optional import load
    from .ranks import joined_ranks

    rank, world_size = (int(os.environ.get(name, usual)) for name, usual in (("RANK", 0), ("WORLD_SIZE", 1)))
    if options.device == "cuda" and "LOCAL_RANK" in os.environ:
        options.device = f"cuda:{os.environ['LOCAL_RANK']}"
    # What takes no time comes first: the rest may have to load for minutes.
    device = check_device(options.device)
    if device.type == "cuda" and device.index is not None:
        import torch

        torch.cuda.set_device(device)  # nothing of this rank on another one's
    get_method(options.method)
    ClassChoice.of(options.targets)
    for name, least in (
        ("batch_size", 1),
        ("workers", 0),
        ("thumbnails", 0),
        ("num_classes", 2),
        ("max_missing", 0),
    ):
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')}: expected at least {least}, got {value}")
    load("zarr", purpose="batchcam explain", extra="explain")
    options.quiet = options.quiet or rank > 0
    with joined_ranks(world_size) as together:
        if rank == 0:
            check_output(options.output)
        _explain(options, rank, world_size, together)


def _explain(options: argparse.Namespace, rank: int, world_size: int, together: Ranks) -> None:
    from ..explain import explain_dataset
    from .explain_inputs import load_inputs
    from .explain_outcome import done, tell

    inputs = load_inputs(options)
    if world_size > 1 and options.overwrite:
        together.needed("--overwrite")
    before = 0 if options.overwrite or rank else done(options.output, retry_damaged=options.retry_damaged)
    together.wait()
    remark_random_weights(options)
    if inputs.remark and not options.quiet:
        print(f"batchcam: {inputs.remark}", file=sys.stderr)
    began = time.perf_counter()
    try:
        with warnings_as_remarks(options.quiet), sigterm_raises():
            store = explain_dataset(
                inputs.model,
                options.layer,
                _loader(options, inputs),
                options.output,
                targets=options.targets,
                method=options.method,
                dtype=options.dtype,
                size=options.map_size,
                mean=inputs.mean,
                std=inputs.std,
                thumbnails=options.thumbnails,
                class_names=inputs.class_names,
                device=options.device,
                max_missing=options.max_missing or None,
                retry_damaged=options.retry_damaged,
                overwrite=options.overwrite,
                progress=not options.quiet and sys.stderr.isatty(),
                rank=rank,
                world_size=world_size,
                about=inputs.about,
            )
    except KeyboardInterrupt as stopped:
        raise type(stopped)(
            f"{stopped.word if isinstance(stopped, Terminated) else 'interrupted'}; {done(options.output):,} images are in "
            f"{options.output} and stay: give the same command again"
        ) from None
    except (RuntimeError, TypeError) as error:  # of memory, above all
        raise ValueError(
            f"explain: {options.model} on {options.device} ended with {type(error).__name__}: {error}; what is written is kept"
        ) from error
    together.wait()
    if rank == 0:
        tell(store, options.output, before, time.perf_counter() - began)


def _loader(options: argparse.Namespace, inputs: Inputs) -> Any:
    from torch.utils.data import DataLoader

    workers = options.workers
    if workers is None:
        workers = 0 if inputs.in_memory else _usual_workers()
    return DataLoader(inputs.dataset, batch_size=options.batch_size, num_workers=workers)


def _usual_workers() -> int:
    """Up to four, and of several ranks on a machine no more together than it has processors."""
    ranks = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    return max(1, min(4, _processors() // ranks))


def _processors() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
