"""``batchcam diagnose``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import KNOWN_DATA, MODEL, add_images, add_model, remark_random_weights

if TYPE_CHECKING:
    from ..evaluation.diagnosis import Diagnosis


def add(commands: Any) -> None:
    """Describe the command.

    Args:
        commands: what ``add_subparsers`` returned.
    """
    diagnose = commands.add_parser(
        "diagnose",
        help="where a trained model looks, class by class, which classes its maps resemble, and its mistakes",
        description="Take the maps of a model over a data set: the mean map of each class, which class's prototype the maps are "
        "nearest to, dead maps, and the worst mistakes with the maps of the predicted and the true class. Prints a table, and "
        "writes class_maps.png, map_confusion.png, misclassified.png, diagnosis.json and diagnosis.npz.",
    )
    diagnose.set_defaults(run=run, extra="demo")
    diagnose.add_argument(
        "model",
        metavar="MODEL",
        help=f"demo, for a checkpoint of batchcam demo; or {MODEL}",
    )
    diagnose.add_argument(
        "--data",
        required=True,
        metavar="DATA",
        help="digits, mnist or fashion-mnist (the test images), or a folder with a folder of images for each class",
    )
    diagnose.add_argument(
        "--data-root",
        type=Path,
        metavar="DIR",
        help="folder of torchvision's data sets, for mnist and fashion-mnist",
    )
    diagnose.add_argument(
        "--train",
        type=Path,
        metavar="DIR",
        help="a second folder, like that of --data, whose images the prototypes are the means of; default: the training images "
        "of a data set, the diagnosed images of a folder",
    )
    diagnose.add_argument(
        "--output",
        type=Path,
        default=Path("diagnose-output"),
        metavar="DIR",
        help="folder for the results; default: diagnose-output",
    )

    model = diagnose.add_argument_group("model")
    add_model(model)
    model.add_argument(
        "--before",
        type=Path,
        metavar="FILE",
        help="weights of the same model before, or trained otherwise, to be set beside",
    )
    model.add_argument(
        "--pretrained", action="store_true", help="the library's own weights, in place of a checkpoint"
    )
    model.add_argument(
        "--num-classes", type=int, metavar="K", help="default: the number of classes of the data"
    )
    model.add_argument("--method", default="grad_cam", metavar="NAME", help="of the maps; default: grad_cam")

    images = diagnose.add_argument_group(
        "images",
        "Default: what the model was trained with, where that is known; otherwise the mean and the standard deviation of a data "
        "set's training images, and for a folder what is usual for ImageNet.",
    )
    add_images(images, "height and width that a folder's images are brought to, or one number for both")

    what = diagnose.add_argument_group("diagnosis")
    what.add_argument("--panels", type=int, default=8, help="mistakes to show, at most; default: 8")
    what.add_argument("--batch-size", type=int, default=64, help="default: 64")
    what.add_argument("--quiet", action="store_true", help="no progress, no remarks")


def run(options: argparse.Namespace) -> None:
    """Load, diagnose, print and write."""
    from ..evaluation.diagnosis import FILES
    from ..files import output_folder
    from ..functional import get_method
    from ..loading import check_device
    from ..optional import load

    # What takes no time comes first: the rest may have to load for minutes.
    check_device(options.device)
    get_method(options.method)
    for name, least in (("panels", 0), ("batch_size", 1)):
        if getattr(options, name) < least:
            raise ValueError(
                f"--{name.replace('_', '-')}: expected at least {least}, got {getattr(options, name)}"
            )
    if options.before is not None and options.checkpoint is None:
        raise ValueError("--before: expected --checkpoint FILE beside it, got --before alone; name both")
    load("matplotlib", purpose="batchcam diagnose", extra="demo")  # for the figures, at the end
    with output_folder(options.output, FILES):
        diagnosis = _diagnosed(options)
        names = diagnosis.save(options.output)
    print(diagnosis.text())
    print("\n".join(["", f"Written to {options.output}:", *(f"  {name}" for name in names)]))


def _diagnosed(options: argparse.Namespace) -> Diagnosis:
    from ..attribution import BatchGradCam
    from ..batches import batches
    from ..evaluation.diagnosis import diagnose
    from ..loading import find_layer
    from ..prototypes import ClassPrototypes
    from .diagnose_inputs import load_inputs

    inputs = load_inputs(options, KNOWN_DATA)
    shown = not options.quiet and sys.stderr.isatty()
    first, _ = next(batches(inputs.data))
    images = first[:2].to(options.device)
    checked = _check(inputs.models[0], images, len(inputs.class_names), options)
    layer = find_layer(checked, options.layer, images)
    grad_cams = [
        BatchGradCam(model, layer.name, method=options.method, reshape=layer.reshape)
        for model in inputs.models
    ]
    try:
        prototypes = ClassPrototypes.from_loader(
            inputs.prototypes,
            len(inputs.class_names),
            mean=inputs.mean,
            std=inputs.std,
            device=options.device,
            progress=shown,
            sync=False,
        )
        diagnosis = diagnose(
            grad_cams[0],
            inputs.data,
            prototypes,
            before=grad_cams[1] if len(grad_cams) > 1 else None,
            class_names=inputs.class_names,
            panels=options.panels,
            mean=inputs.mean,
            std=inputs.std,
            device=options.device,
            progress=shown,
        )
    except (RuntimeError, TypeError) as error:  # of memory, above all
        raise ValueError(
            f"diagnose: expected {options.model} to run on {options.device}, got {type(error).__name__}: {error}"
        ) from error
    remark_random_weights(options)
    diagnosis.settings.update(
        model=options.model,
        checkpoint=None if options.checkpoint is None else str(options.checkpoint),
        before=None if options.before is None else str(options.before),
        data=options.data,
        prototypes=inputs.source,
        mean=inputs.mean,
        std=inputs.std,
        layer_suggested=options.layer is None,
    )
    return diagnosis


def _check(model: Any, images: Any, classes: int, options: argparse.Namespace) -> Any:
    """The model, if it takes the images and scores the classes."""
    import torch

    name = options.model
    try:
        with torch.no_grad():
            scores = model(images)
    except Exception as error:  # whatever a model raises
        raise ValueError(
            f"model: expected {name} to take images of shape {tuple(images.shape)}, got {type(error).__name__}: {error}; "
            f"{_remedy(options)}"
        ) from error
    if not isinstance(scores, torch.Tensor) or scores.shape != (len(images), classes):
        got = f"shape {tuple(scores.shape)}" if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise ValueError(
            f"model: expected scores of shape ({len(images)}, {classes}) from {name}, one for each class of the data, got {got}; "
            "pass the data that it was trained on"
        )
    return model


def _remedy(options: argparse.Namespace) -> str:
    """What helps where a model does not take the images."""
    if options.data not in KNOWN_DATA:
        return "--size and --mean (one number a channel) change the images of a folder"
    if options.model == "demo":
        return f"pass --data with the data set that the checkpoint was trained on, or a checkpoint of {options.data}"
    return (
        f"the images of {options.data} are grey and stay as they are: pass a model that was trained on them, or a folder of "
        "images as --data"
    )
