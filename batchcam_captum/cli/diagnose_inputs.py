"""What ``batchcam diagnose`` works on: models and images, from what the user names."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..datasets.torchvision_files import WITHOUT_DOWNLOAD
from ..demo.data import DataName, Images, load_data
from ..demo.model import SimpleCNN
from ..loading import load_checkpoint, load_model, preprocessing
from ..loading.images import SUFFIXES, open_image, preparation
from ..optional import load

Batches = Iterable[tuple[Tensor, Tensor]]
_DEMO = "demo"


@dataclass(frozen=True)
class Inputs:
    """Everything loaded; each of the batches can be gone through again and again."""

    models: list[nn.Module]  #: the model, and the one before if there is one; in eval mode, on the device
    data: Batches  #: what is diagnosed
    prototypes: Batches  #: what the prototypes are the means of
    source: str  #: what that is, in words
    class_names: tuple[str, ...]
    mean: Any  #: of the standardisation, one number or one a channel
    std: Any


@dataclass(frozen=True)
class _InMemory:
    """Batches of images in memory, from the start each time."""

    images: Images
    size: int

    def __iter__(self) -> Any:
        return self.images.batches(self.size)


def load_inputs(options: argparse.Namespace, known: tuple[str, ...]) -> Inputs:
    """Load data and models.

    Args:
        options: of the command.
        known: names of data sets; anything else is a folder.

    Raises:
        ValueError: arguments that contradict each other, a checkpoint that does not fit.
        OSError: files that are missing or cannot be read.
        ModuleNotFoundError: a library that is needed is not installed.
    """
    saved = _demo_checkpoint(options.checkpoint) if options.model == _DEMO else None
    if options.data in known:
        return _from_known(options, saved)
    return _from_folder(options, saved)


def _demo_checkpoint(path: Path | None) -> dict[str, Any]:
    """What ``batchcam demo`` saved beside the weights; nothing else can be read into its network."""
    if path is None:
        raise ValueError(
            "model: expected --checkpoint FILE with demo, got none; name a checkpoint of batchcam demo"
        )
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        missing = {"model", "num_classes", "image_size", "mean", "std"} - saved.keys()
    except OSError as error:
        raise OSError(
            f"checkpoint: expected a file that can be read, got {path} ({error.strerror or error})"
        ) from error
    except Exception as error:  # a damaged file raises anything
        raise ValueError(
            f"checkpoint: expected one of batchcam demo, got {path}, which is damaged or something else "
            f"({type(error).__name__})"
        ) from error
    if missing:
        raise ValueError(
            f"checkpoint: expected one of batchcam demo, got {path} without {', '.join(sorted(missing))}; name the model that it "
            "belongs to instead of demo"
        )
    return dict(saved)


def _models(options: argparse.Namespace, saved: dict[str, Any] | None, classes: int) -> list[nn.Module]:
    checkpoints = [options.checkpoint] if options.before is None else [options.checkpoint, options.before]
    if saved is None:
        of_library = ":" not in options.model
        return [
            load_model(
                options.model,
                checkpoint=checkpoint,
                num_classes=options.num_classes
                or (classes if of_library and not options.pretrained else None),
                pretrained=options.pretrained,
                device=options.device,
            )
            for checkpoint in checkpoints
        ]
    models: list[nn.Module] = []
    for checkpoint in checkpoints:
        model = SimpleCNN(int(saved["num_classes"]), int(saved["image_size"]))
        load_checkpoint(model, checkpoint)
        models.append(model.to(options.device).eval())
    return models


def _from_known(options: argparse.Namespace, saved: dict[str, Any] | None) -> Inputs:
    name: DataName = options.data
    if options.train is not None:
        raise ValueError(f"--train: expected it with a folder alone, got it with {name}; leave it out")
    if options.size is not None:
        raise ValueError(f"--size: expected it with a folder alone, got it with {name}; leave it out")
    data = load_data(name, options.data_root, wording=WITHOUT_DOWNLOAD)
    mean, std = _one("--mean", options.mean), _one("--std", options.std)
    mean = mean if mean is not None else saved["mean"] if saved else data.mean
    std = std if std is not None else saved["std"] if saved else data.std

    def standardised(part: Images) -> _InMemory:
        images = part.images
        if (mean, std) != (data.mean, data.std):
            images = (images * data.std + data.mean - mean) / std
        return _InMemory(Images(images, part.labels), options.batch_size)

    return Inputs(
        models=_models(options, saved, len(data.class_names)),
        data=standardised(data.test),
        prototypes=standardised(data.train),
        source=f"mean training images of {name}",
        class_names=data.class_names,
        mean=mean,
        std=std,
    )


def _one(argument: str, values: list[float] | None) -> float | None:
    """The one number of a greyscale data set."""
    if values is None:
        return None
    if len(values) != 1 or (argument == "--std" and not values[0] > 0):
        raise ValueError(f"{argument}: expected one number for grey images, above 0 for --std, got {values}")
    return values[0]


def _from_folder(options: argparse.Namespace, saved: dict[str, Any] | None) -> Inputs:
    classes = _class_folders("--data", Path(options.data))
    if options.train is not None and (other := _class_folders("--train", options.train)) != classes:
        apart = sorted(set(classes) ^ set(other))
        raise ValueError(
            f"--train: expected the classes of --data, {len(classes)}, got {len(other)}; they differ in {', '.join(apart[:5])}"
        )
    models = _models(options, saved, len(classes))
    expected = preprocessing(models[0], options.model)
    sides: list[int] = options.size or ([int(saved["image_size"])] if saved else list(expected.size))
    if len(sides) > 2:
        raise ValueError(f"--size: expected one or two numbers, got {sides}")
    mean = options.mean or ([float(saved["mean"])] if saved else list(expected.mean))
    std = options.std or ([float(saved["std"])] if saved else list(expected.std))
    prepare = preparation(
        (sides[0], sides[-1]), mean, std, expected.interpolation, expected.crop if not saved else 1.0
    )
    folders = load("torchvision.datasets", purpose="--data: a folder of images", package="torchvision")

    def batches(folder: str | Path) -> Batches:
        files = folders.ImageFolder(
            folder,
            transform=lambda image: prepare(image)[0],
            loader=_read,
            is_valid_file=_is_image,
            allow_empty=True,
        )
        if not len(files):
            raise ValueError(
                f"--data: expected images in the folders of {folder}, got none of {' '.join(sorted(SUFFIXES))}"
            )
        return DataLoader(files, batch_size=options.batch_size)

    data = batches(options.data)
    return Inputs(
        models=models,
        data=data,
        prototypes=data if options.train is None else batches(options.train),
        source=f"mean images of {options.data if options.train is None else options.train}",
        class_names=classes,
        mean=mean,
        std=std,
    )


def _class_folders(argument: str, folder: Path) -> tuple[str, ...]:
    """The names of the classes, in torchvision's order."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{argument}: expected digits, mnist, fashion-mnist or a folder with a folder for each class, got {folder}; check "
            "the path"
        )
    classes = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    if not classes:
        raise ValueError(
            f"{argument}: expected a folder with a folder of images for each class, got none in {folder}"
        )
    return classes


def _is_image(path: str) -> bool:
    return Path(path).suffix.lower() in SUFFIXES and not Path(path).name.startswith(".")


def _read(path: str) -> Any:
    try:
        return open_image(path)
    except Exception as error:  # Pillow's plugins raise anything for a damaged file
        raise ValueError(
            f"--data: expected an image that can be read, got {path} ({error}); repair or remove it"
        ) from error
