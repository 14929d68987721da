"""``batchcam compare``."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import MODEL, add_images, add_model, remark_random_weights, several

if TYPE_CHECKING:
    from ..interop.compare import Comparison
    from ..loading import LoadedImages

#: The methods, listed here because the help needs them before torch is imported.
METHODS = ("grad_cam", "grad_cam_plus_plus", "xgrad_cam", "hires_cam", "layer_cam", "grad_cam_elementwise")


def add(commands: Any) -> None:
    """Describe the command.

    Args:
        commands: what ``add_subparsers`` returned.
    """
    compare = commands.add_parser(
        "compare",
        help="compare the maps with those of pytorch-grad-cam, Captum and TorchCAM, and what they cost",
        description="Compare this package's maps with those of the other libraries that are installed: differences, similarity, "
        "correlations, overlap; with --batch-sizes also time, and on CUDA peak memory. Prints the tables and writes "
        "comparison.json, comparison.md and comparison.png. Options with several values take them separated by commas: "
        "--size 24,30.",
    )
    compare.set_defaults(run=run, extra="compare")
    compare.add_argument("model", metavar="MODEL", help=MODEL)
    compare.add_argument(
        "image",
        nargs="*",
        metavar="IMAGE",
        help="files, folders or patterns; default: photographs that come with scikit-image or scikit-learn",
    )
    model = compare.add_argument_group("model")
    add_model(model)
    model.add_argument(
        "--pretrained",
        action="store_true",
        help="the library's own weights, downloaded if needed; without this option and --checkpoint they are random",
    )
    model.add_argument("--num-classes", type=int, metavar="K", help="default: as the library makes the model")
    model.add_argument(
        "--reshape",
        choices=["auto", "tokens", "channels_last"],
        help="for layers of transformers; default: auto if needed",
    )
    model.add_argument(
        "--dtype", metavar="NAME", help="float32, float64, bfloat16 or float16; default: the model's"
    )
    model.add_argument("--channels-last", action="store_true", help="use this memory format")
    model.add_argument("--seed", type=int, default=0, help="of random weights; default: 0")
    images = compare.add_argument_group(
        "images", "Default: as in the model's training, if its library knows."
    )
    add_images(images, "height and width, or one for both")
    images.add_argument(
        "--target",
        type=several(int),
        action="extend",
        metavar="CLASS",
        help="one for all images, or one for each; default: the predicted ones",
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
        "--batch-sizes", type=several(int), action="extend", metavar="N", help="measure these batch sizes"
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
    from ..interop.compare import FILES, check_names
    from ..interop.peers import PEERS
    from ..loading import check_device, check_dtype
    from ..optional import load

    # Fast checks first: loading may take minutes.
    check_device(options.device)
    dtype = None if options.dtype is None else check_dtype(options.dtype)
    check_names("--method", options.method or ["grad_cam"], METHODS)
    by_letters = {_letters(name): name for name in PEERS}
    libraries = [by_letters.get(_letters(name), name) for name in options.libraries or PEERS]
    check_names("--libraries", libraries, PEERS)
    absent = [name for name in libraries if PEERS[name].version is None]
    if absent and options.libraries:
        raise ValueError(f"--libraries: expected installed libraries, got {', '.join(absent)}; install them")
    load("matplotlib", purpose="batchcam compare")
    with output_folder(options.output, FILES):
        comparison = _compared(options, dtype, libraries)
        print(comparison.text())
        names = comparison.write(options.output)
    for remark in [] if options.quiet else comparison.remarks:
        print(f"batchcam: {remark}", file=sys.stderr)
    print("\n".join([f"Written to {options.output}:", *(f"  {name}" for name in names)]))


def _compared(options: argparse.Namespace, dtype: Any, libraries: list[str]) -> Comparison:
    import torch

    from ..interop.compare import compare
    from ..loading import find_layer, load_model, source_of

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = load_model(
            options.model,
            checkpoint=options.checkpoint,
            num_classes=options.num_classes,
            pretrained=options.pretrained,
        )
    images, preprocessing = _images(options, model)
    remark_random_weights(options)
    try:
        model, tensor = model.to(options.device, dtype), images.tensor.to(options.device, dtype)
        if options.channels_last:
            model = model.to(memory_format=torch.channels_last)
            tensor = tensor.to(memory_format=torch.channels_last)
        layer = find_layer(model, options.layer, tensor[:2])
        comparison = compare(
            model,
            layer.name,
            tensor,
            methods=options.method or ["grad_cam"],
            targets=_targets(options.target, images),
            libraries=libraries,
            batch_sizes=options.batch_sizes or [],
            reshape=options.reshape or layer.reshape,
            repeats=options.repeats,
            paths=images.paths,
            pictures=images.pictures,
            progress=not options.quiet,
        )
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"model: expected {options.model} to take images of shape {tuple(images.tensor.shape)} on {options.device}, got "
            f"{type(error).__name__}: {error}; change --size, --mean (one number per channel), --dtype or --device"
        ) from error
    if not comparison.pairs and comparison.skipped:
        first = comparison.skipped[0]
        raise ValueError(
            f"--layer: expected one that can be compared, got {layer.name!r}: {first.library}, {first.method}: {first.reason}"
        )
    comparison.unreadable = images.failed
    source, version = source_of(options.model)
    comparison.settings |= {
        "model": options.model,
        "source": source,
        "source_version": version,
        "preprocessing": preprocessing,
        "checkpoint": None if options.checkpoint is None else str(options.checkpoint),
        "pretrained": options.pretrained,
        "seed": options.seed,
        "channels_last": options.channels_last,
    }
    return comparison


def _images(options: argparse.Namespace, model: Any) -> tuple[LoadedImages, dict[str, Any]]:
    """Return the images as the model takes them, and what was done to them."""
    from ..loading import load_images, load_packaged_images
    from .inputs import preprocessing_of

    taken = preprocessing_of(options, model)
    loaded = load_images(options.image, taken) if options.image else load_packaged_images(taken)
    return loaded, asdict(taken)


def _targets(given: list[int] | None, images: LoadedImages) -> list[int] | None:
    """Return one class per image that could be read; None: the predicted ones."""
    if given is None:
        return None
    found = len(images) + len(images.failed)
    if len(given) not in (1, found):
        raise ValueError(f"--target: expected one class, or one for each of {found} images, got {len(given)}")
    every = given * found if len(given) == 1 else given
    return [every[position] for position in images.positions]


def _letters(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
