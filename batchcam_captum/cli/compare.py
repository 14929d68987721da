"""``batchcam compare``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import MODEL, add_images, add_model, several
from .compare_checks import METHODS, libraries_named, refuse_values

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..interop.comparison import Comparison
    from ..loading import LoadedImages


def add(commands: Any) -> None:
    """Describe the command.

    Args:
        commands: what ``add_subparsers`` returned.
    """
    compare = commands.add_parser(
        "compare",
        help="the maps of this library next to those of pytorch-grad-cam, Captum and TorchCAM, and what they cost",
        description="Compare the maps of this library with those of the others that are installed: differences, structural "
        "similarity, correlations, overlap, and with --batch-sizes time and peak memory. Prints the tables, and writes "
        "comparison.json, comparison.md and pictures. Options that take several values take them with commas between: "
        "--size 24,30.",
    )
    compare.set_defaults(run=run, extra="compare")
    compare.add_argument(
        "model",
        metavar="MODEL",
        help=MODEL,
    )
    compare.add_argument(
        "image",
        nargs="*",
        metavar="IMAGE",
        help="files, folders, patterns; default: the photographs that come with scikit-image or scikit-learn",
    )
    compare.add_argument(
        "--images", nargs="+", default=[], metavar="IMAGE", help="further ones, with spaces between"
    )

    model = compare.add_argument_group("model")
    add_model(model)
    model.add_argument(
        "--pretrained",
        action="store_true",
        help="the library's own weights, which it downloads where it has not yet; without either of the two they are random",
    )
    model.add_argument("--num-classes", type=int, metavar="K", help="default: as the library makes the model")
    model.add_argument(
        "--reshape",
        choices=["auto", "tokens", "channels_last"],
        help="for layers of transformers; default: auto where it is needed and can be told",
    )
    model.add_argument(
        "--dtype", metavar="NAME", help="float32, float64, bfloat16 or float16; default: the model's"
    )
    model.add_argument("--channels-last", action="store_true", help="that memory format for model and images")
    model.add_argument("--seed", type=int, default=0, help="of random weights; default: 0")

    images = compare.add_argument_group(
        "images", "Default: what the model was trained with, where its library says so."
    )
    add_images(images, "height and width, or one for both")
    images.add_argument(
        "--target",
        type=several(int),
        action="extend",
        metavar="CLASS",
        help="one for all images, or one for each; from the end as --target=-1,-2; default: the predicted ones",
    )

    what = compare.add_argument_group("comparison")
    what.add_argument(
        "--method",
        type=several(str),
        action="extend",
        metavar="NAME",
        help=f"some of {', '.join(METHODS)}; default: grad_cam",
    )
    what.add_argument(
        "--libraries",
        type=several(str),
        action="extend",
        metavar="NAME",
        help="some of pytorch-grad-cam, captum, torchcam; default: all that are installed",
    )
    what.add_argument(
        "--batch-sizes",
        type=several(int),
        action="extend",
        metavar="N",
        help="measure time and peak memory with these",
    )
    what.add_argument("--repeats", type=int, default=20, help="rounds of the timing at most; default: 20")
    what.add_argument(
        "--output",
        type=Path,
        default=Path("compare-output"),
        metavar="DIR",
        help="folder for the results; default: compare-output",
    )
    what.add_argument("--quiet", action="store_true", help="no progress, no remarks")


def run(options: argparse.Namespace) -> None:
    """Load, compare, print and write."""
    from ..files import output_folder
    from ..interop.comparison.arguments import checked_names, checked_sizes
    from ..loading import check_device, check_dtype

    # What takes no time comes first: the rest may have to load for minutes.
    check_device(options.device)
    dtype = None if options.dtype is None else check_dtype(options.dtype)
    libraries = libraries_named(options.libraries)
    checked_names("methods", options.method or ["grad_cam"], METHODS)
    checked_sizes(options.batch_sizes or [])
    if options.repeats < 1:
        raise ValueError(f"--repeats: expected at least 1, got {options.repeats}")
    refuse_values([*options.image, *options.images])
    if not -(2**63) <= options.seed < 2**63:
        raise ValueError(f"--seed: expected an integer of 64 bits, got {options.seed}; pass a smaller one")
    with output_folder(options.output, ("comparison.json", "comparison.md", "comparison.png")):
        comparison, failed = _compared(options, dtype, libraries)
        print(comparison.text())
        names = comparison.write(options.output)
    if not options.quiet:
        for remark in comparison.remarks:
            print(f"batchcam: {remark}", file=sys.stderr)
    print("\n".join(["", f"Written to {options.output}:", *(f"  {name}" for name in sorted(names))]))
    if failed:
        lines = [f"  {path}: {reason}" for path, reason in failed.items()]
        print("\n".join(["batchcam: images that could not be read:", *lines]), file=sys.stderr)


def _compared(
    options: argparse.Namespace, dtype: Any, libraries: list[str] | None
) -> tuple[Comparison, dict[str, str]]:
    import torch

    from ..interop.comparison import compare
    from ..loading import find_layer, load_model, source_of
    from ..optional import load

    load("matplotlib", purpose="batchcam compare")  # for the pictures, at the end
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = load_model(
            options.model,
            checkpoint=options.checkpoint,
            num_classes=options.num_classes,
            pretrained=options.pretrained,
        )
    images, taken = _images(options, model)
    try:
        tensor = images.tensor.to(options.device, dtype)
        model = model.to(device=options.device, dtype=dtype)
        if options.channels_last:
            model = model.to(memory_format=torch.channels_last)
            tensor = tensor.to(memory_format=torch.channels_last)
        targets = _targets(options.target, images, _classes(model, tensor[:2], options.model))
        layer = find_layer(model, options.layer, tensor[:2])
        weights = _weights(options)
        if weights == "random" and not options.quiet:
            print(
                f"batchcam: {options.model} has random weights; for maps that mean something pass --checkpoint or --pretrained",
                file=sys.stderr,
            )
        comparison = compare(
            model,
            layer.name,
            tensor,
            methods=options.method or ["grad_cam"],
            targets=targets,
            libraries=libraries,
            batch_sizes=options.batch_sizes or [],
            reshape=options.reshape or layer.reshape,
            repeats=options.repeats,
            progress=not options.quiet,
            name=options.model,
            paths=images.paths,
            failed=images.failed,
            pictures=images.pictures,
        )
    except (RuntimeError, TypeError) as error:  # of memory, above all; mps has no float64
        raise ValueError(
            f"compare: expected {options.model} to run on {options.device}, got {type(error).__name__}: {error}"
        ) from error
    if not comparison.pairs and comparison.skipped:
        first = comparison.skipped[0]
        raise ValueError(
            f"compare: no map of layer {layer.name!r} could be compared: {first.library}, {first.method}: {first.reason}"
        )
    source, version = source_of(options.model)
    comparison.settings.update(
        source=source,
        source_version=version,
        preprocessing=taken,
        weights=weights,
        seed=options.seed,
        channels_last=options.channels_last,
        layer_suggested=options.layer is None,
    )
    return comparison, images.failed


def _weights(options: argparse.Namespace) -> str:
    if options.checkpoint is not None:
        return str(options.checkpoint)
    if ":" in options.model:
        return "of the function"
    return "of the library" if options.pretrained else "random"


def _images(options: argparse.Namespace, model: nn.Module) -> tuple[LoadedImages, dict[str, Any]]:
    """The images as the model takes them, and what was done to them."""
    from tqdm.auto import tqdm

    from ..loading import load_images, load_packaged_images, preprocessing

    expected = preprocessing(model, options.model)
    sides: list[int] = options.size or list(expected.size)
    if len(sides) > 2:
        raise ValueError(f"--size: expected one or two numbers, got {sides}")
    taken = replace(
        expected,
        size=(sides[0], sides[-1]),
        mean=tuple(options.mean or expected.mean),
        std=tuple(options.std or expected.std),
    )
    paths = [*options.image, *options.images]
    if not paths:
        return load_packaged_images(taken), asdict(taken)
    shown = not options.quiet and sys.stderr.isatty()
    progress: Callable[..., Any] = partial(tqdm, desc="images", unit="image", leave=False, disable=not shown)
    return load_images(paths, taken, progress=progress), asdict(taken)


def _classes(model: nn.Module, images: Tensor, name: str) -> int:
    """K, by a first forward; a model that does not take the images is found out here, and not by each library."""
    import torch
    from torch import Tensor

    try:
        with torch.no_grad():
            scores = model(images)
    except Exception as error:  # whatever a model raises
        raise ValueError(
            f"model: expected {name} to take images of shape {tuple(images.shape)} and {images.dtype} on {images.device}, got "
            f"{type(error).__name__}: {error}; --size, --mean (one number a channel) and --dtype change them"
        ) from error
    if not isinstance(scores, Tensor) or scores.dim() != 2 or len(scores) != len(images):
        got = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(
            f"model: expected scores of shape ({len(images)}, K) from {name}, got {got}; pass a function module:function that "
            f"wraps it"
        )
    return scores.shape[1]


def _targets(given: list[int] | None, images: LoadedImages, classes: int) -> list[int] | None:
    """One class an image, counted from 0; None: the predicted ones."""
    if given is None:
        return None
    found = len(images) + len(images.failed)
    if len(given) not in (1, found):
        raise ValueError(f"--target: expected one class, or one for each of {found} images, got {len(given)}")
    outside = [target for target in given if not -classes <= target < classes]
    if outside:
        raise ValueError(
            f"--target: expected classes from 0 to {classes - 1}, or from the end -{classes} to -1, got {outside[0]}"
        )
    whole = given * found if len(given) == 1 else given
    return [whole[position] % classes for position in images.positions]
