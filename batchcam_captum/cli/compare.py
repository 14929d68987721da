"""``batchcam compare``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .options import (
    Checkpoint,
    Device,
    Layer,
    Mean,
    Model,
    NumClasses,
    Pretrained,
    Quiet,
    Size,
    Std,
    comma_separated,
    remark,
    warnings_as_remarks,
)

if TYPE_CHECKING:
    from ..loading import LoadedImages

#: The methods, listed here because the help shows them before torch is imported.
METHODS = ("grad_cam", "grad_cam_plus_plus", "xgrad_cam", "hires_cam", "layer_cam", "grad_cam_elementwise")


def compare(
    model: Model,
    image: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE",
            help="Files, folders or patterns. Default: photographs that come with scikit-image.",
        ),
    ] = None,
    checkpoint: Checkpoint = None,
    pretrained: Pretrained = False,
    num_classes: NumClasses = None,
    layer: Layer = None,
    reshape: Annotated[
        Literal["auto", "tokens", "channels_last"] | None,
        typer.Option(help="For layers of transformers. Default: auto if needed."),
    ] = None,
    device: Device = "cpu",
    dtype: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="float32, float64, bfloat16 or float16. Default: the model's."),
    ] = None,
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Use this memory format.")] = False,
    seed: Annotated[
        int, typer.Option(metavar="N", min=-(2**63), max=2**63 - 1, help="Of random weights.")
    ] = 0,
    size: Size = None,
    mean: Mean = None,
    std: Std = None,
    target: Annotated[
        Any,
        typer.Option(
            parser=comma_separated(int),
            metavar="CLASSES",
            help="One class for all images, or one for each. Default: the predicted ones.",
        ),
    ] = None,
    method: Annotated[
        Any,
        typer.Option(parser=comma_separated(str), metavar="NAMES", help=f"Some of {', '.join(METHODS)}."),
    ] = "grad_cam",
    libraries: Annotated[
        Any,
        typer.Option(
            parser=comma_separated(str),
            metavar="NAMES",
            help="Some of pytorch-grad-cam, captum, torchcam. Default: all that are installed.",
        ),
    ] = None,
    batch_sizes: Annotated[
        Any,
        typer.Option(
            parser=comma_separated(int),
            metavar="NUMBERS",
            help="Measure time and memory of these batch sizes.",
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(metavar="N", min=1, help="Rounds of the timing, at most.")] = 20,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the results.")] = Path(
        "compare-output"
    ),
    quiet: Quiet = False,
) -> None:
    """Compare maps and costs across libraries.

    The others are pytorch-grad-cam, Captum and TorchCAM, as far as they are installed: differences, similarity, correlations,
    overlap; with --batch-sizes also time, and on CUDA peak memory. Prints the tables, and writes comparison.json, comparison.md
    and comparison.png.
    """
    from ..files import output_folder
    from ..interop.compare import FILES, check_names
    from ..loading import check_device, check_dtype, load_images, load_packaged_images, source_of
    from ..optional import load
    from .inputs import ModelSource

    # Checks that take no time come first.
    check_device(device)
    precision = None if dtype is None else check_dtype(dtype)
    check_names("--method", method, METHODS)
    chosen = _find_libraries(libraries)
    load("matplotlib", purpose="batchcam compare")
    source = ModelSource(model, checkpoint, pretrained, num_classes, device, size, mean, std)
    with output_folder(output, FILES), warnings_as_remarks(quiet):
        network = source.load(seed=seed).to(dtype=precision)
        prepare = source.preprocessing(network)
        images = load_images(image, prepare) if image else load_packaged_images(prepare)
        if source.has_random_weights:
            remark(
                f"{model} has random weights; for meaningful maps pass --checkpoint or --pretrained", quiet
            )
        comparison = _run(
            network,
            layer,
            images,
            source,
            channels_last=channels_last,
            methods=method,
            targets=_expand(target, images),
            libraries=chosen,
            batch_sizes=batch_sizes or (),
            reshape=reshape,
            repeats=repeats,
            progress=not quiet,
        )
        origin, version = source_of(model)
        comparison.settings |= {
            "model": model,
            "source": origin,
            "source_version": version,
            "preprocessing": asdict(prepare),
            "checkpoint": None if checkpoint is None else str(checkpoint),
            "pretrained": pretrained,
            "seed": seed,
            "channels_last": channels_last,
        }
        print(comparison.text())
        names = comparison.write(output)
    for each in comparison.remarks:
        remark(each, quiet)
    print("\n".join([f"Written to {output}:", *(f"  {name}" for name in names)]))


def _run(
    network: Any,
    layer: str | None,
    images: LoadedImages,
    source: Any,
    *,
    channels_last: bool,
    reshape: Any,
    **options: Any,
) -> Any:
    """Compare the maps; an error of torch becomes one of the command."""
    import torch

    from ..interop.compare import compare
    from ..loading import find_layer

    example = next(iter(network.parameters()), images.tensor)
    inputs = images.tensor.to(example.device, example.dtype)
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
        inputs = inputs.to(memory_format=torch.channels_last)
    try:
        found = find_layer(network, layer, inputs[:2])
        comparison = compare(
            network,
            found.name,
            inputs,
            reshape=reshape or found.reshape,
            paths=images.paths,
            pictures=images.pictures,
            **options,
        )
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"model: expected {source.name} to take images of shape {tuple(inputs.shape)} on {source.device}, got "
            f"{type(error).__name__}: {error}; change --size, --mean (one number per channel), --dtype or --device"
        ) from error
    if not comparison.pairs and comparison.skipped:
        first = comparison.skipped[0]
        raise ValueError(
            f"--layer: expected one that can be compared, got {found.name!r}: {first.library}, {first.method}: {first.reason}"
        )
    comparison.unreadable = images.failed
    return comparison


def _find_libraries(names: list[str] | None) -> list[str]:
    """Return the libraries by their own names, however the user writes them."""
    from ..interop.compare import check_names
    from ..interop.peers import PEERS

    by_letters = {_letters(name): name for name in PEERS}
    libraries = [by_letters.get(_letters(name), name) for name in names or PEERS]
    check_names("--libraries", libraries, PEERS)
    absent = [name for name in libraries if PEERS[name].version is None]
    if absent and names:
        raise ValueError(f"--libraries: expected installed libraries, got {', '.join(absent)}; install them")
    return libraries


def _expand(given: list[int] | None, images: LoadedImages) -> list[int] | None:
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
