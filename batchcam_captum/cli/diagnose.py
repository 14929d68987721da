"""``batchcam diagnose``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import (
    BatchSize,
    Checkpoint,
    Data,
    DataRoot,
    DemoModel,
    Device,
    Layer,
    Mean,
    Method,
    NumClasses,
    Pretrained,
    Quiet,
    Size,
    Std,
    remark,
    show_progress,
    warnings_as_remarks,
)

if TYPE_CHECKING:
    from .inputs import ModelSource


def diagnose(
    model: DemoModel,
    data: Data,
    data_root: DataRoot = None,
    train: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="A folder like that of --data: the prototypes are the mean images of its classes. Default: the training images "
            "of a data set, the diagnosed images of a folder or CSV.",
        ),
    ] = None,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the results.")] = Path(
        "diagnose-output"
    ),
    checkpoint: Checkpoint = None,
    before: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Other weights of the same model, to compare with."),
    ] = None,
    pretrained: Pretrained = False,
    num_classes: NumClasses = None,
    layer: Layer = None,
    method: Method = "grad_cam",
    device: Device = "cpu",
    size: Size = None,
    mean: Mean = None,
    std: Std = None,
    panels: Annotated[int, typer.Option(metavar="N", min=0, help="Mistakes to show, at most.")] = 8,
    batch_size: BatchSize = 64,
    quiet: Quiet = False,
) -> None:
    """Show where a model looks, class by class.

    Prints a table of the classes, with the classes that their maps resemble, and writes class_maps.png, map_confusion.png,
    misclassified.png, diagnosis.json and diagnosis.npz. Of a data set with a name, the test images are diagnosed.
    """
    from ..evaluation.diagnosis import FILES
    from ..files import output_folder
    from ..functional import get_method
    from ..loading import check_device
    from ..optional import load
    from .inputs import ModelSource

    # Checks that take no time come first.
    check_device(device)
    get_method(method)
    if before is not None and checkpoint is None:
        raise ValueError("--before: expected --checkpoint FILE beside it, got --before alone; name both")
    load("matplotlib", purpose="batchcam diagnose", extra="demo")
    source = ModelSource(model, checkpoint, pretrained, num_classes, device, size, mean, std)
    with output_folder(output, FILES), warnings_as_remarks(quiet):
        diagnosis = _diagnose(
            source, before, data, data_root, train, layer, method, panels, batch_size, quiet
        )
        names = diagnosis.save(output)
    if source.has_random_weights:
        remark(f"{model} has random weights; for meaningful maps pass --checkpoint or --pretrained", quiet)
    print(diagnosis.text())
    print("\n".join(["", f"Written to {output}:", *(f"  {name}" for name in names)]))


def _diagnose(
    source: ModelSource,
    before: Path | None,
    data: str,
    data_root: Path | None,
    train: Path | None,
    layer: str | None,
    method: str,
    panels: int,
    batch_size: int,
    quiet: bool,
) -> Any:
    from torch.utils.data import DataLoader

    from ..attribution import BatchGradCam
    from ..evaluation import diagnose
    from ..loading import find_layer
    from ..prototypes import ClassPrototypes
    from . import inputs

    diagnosed, origin, names = _open_both(source, data, data_root, train)
    model = source.load(classes=len(names))
    prepare = source.preprocessing(model)
    mean, std = (
        (diagnosed.mean, diagnosed.std)
        if isinstance(diagnosed, inputs.KnownData)
        else (prepare.mean, prepare.std)
    )
    example = inputs.example_of(diagnosed, prepare).to(source.device)
    count = inputs.count_classes(model, example, source.name, inputs.remedy_for(diagnosed))
    if count != len(names):
        raise ValueError(
            f"model: expected {len(names)} scores from {source.name}, one for each class of the data, got {count}; pass the data "
            "that it was trained on"
        )
    found = find_layer(model, layer, example)
    grad_cams = [
        BatchGradCam(each, found.name, method=method, reshape=found.reshape)
        for each in (model, *([] if before is None else [source.load(before)]))
    ]
    loaders = [
        DataLoader(inputs.make_dataset(each, prepare), batch_size=batch_size) for each in (diagnosed, origin)
    ]
    shown = show_progress(quiet)
    options: dict[str, Any] = {"mean": mean, "std": std, "device": source.device, "progress": shown}
    try:
        prototypes = ClassPrototypes.from_loader(loaders[1], len(names), sync=False, **options)
        diagnosis = diagnose(
            grad_cams[0],
            loaders[0],
            prototypes,
            before=grad_cams[-1] if before is not None else None,
            class_names=names,
            panels=panels,
            **options,
        )
    except (RuntimeError, TypeError) as error:  # out of memory, above all
        raise ValueError(
            f"diagnose: expected {source.name} to run on {source.device}, got {type(error).__name__}: {error}"
        ) from error
    diagnosis.settings.update(
        model=source.name,
        checkpoint=None if source.checkpoint is None else str(source.checkpoint),
        before=None if before is None else str(before),
        data=data,
        prototypes=_name_prototypes(data, train, origin is diagnosed),
        mean=mean,
        std=std,
        layer_suggested=layer is None,
    )
    return diagnosis


def _name_prototypes(data: str, train: Path | None, same: bool) -> str:
    if train is not None:
        return f"mean images of {train}"
    return f"mean images of {data}" if same else f"mean training images of {data}"


def _open_both(
    source: ModelSource, data: str, data_root: Path | None, train: Path | None
) -> tuple[Any, Any, tuple[str, ...]]:
    """Return the samples to diagnose, those whose means are the prototypes, and the names of the classes."""
    from ..explain.sources import Listing
    from . import inputs

    diagnosed = inputs.open_data(data, data_root, None, source)
    named = not isinstance(diagnosed, Listing)
    if named and train is not None:
        raise ValueError(f"--train: expected it with a folder or a CSV, got it with {data}; leave it out")
    origin = diagnosed
    if named:
        origin = inputs.open_data(data, data_root, "train", source)
    elif train is not None:
        origin = inputs.open_data(str(train), None, None, source)
    names = inputs.class_names(diagnosed) or ()
    for option, each in (("--data", diagnosed), ("--train", origin)):
        if not names or min(inputs.labels_of(each) or (0,)) < 0:
            raise ValueError(
                f"{option}: expected a folder with a folder of images for each class, or a CSV with a class for each image, got "
                f"images without a class in {data if option == '--data' else train}"
            )
        if inputs.class_names(each) != names:
            raise ValueError(
                f"--train: expected the classes of --data, {', '.join(names[:5])}, got "
                f"{', '.join((inputs.class_names(each) or ())[:5])}"
            )
    return diagnosed, origin, names
