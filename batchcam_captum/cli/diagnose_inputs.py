"""What ``batchcam diagnose`` works on: models and images, from what the user names."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..demo.data import DataName, Images
from ..loading import load_model
from ..loading.images import SUFFIXES, read_image
from ..optional import load
from .inputs import DEMO, demo_checkpoint, demo_model, known_data, preprocessing_of

Batches = Iterable[tuple[Tensor, Tensor]]


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
    saved = demo_checkpoint(options.checkpoint) if options.model == DEMO else None
    if options.data in known:
        return _from_known(options, saved)
    return _from_folder(options, saved)


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
    return [demo_model(saved, checkpoint, options.device) for checkpoint in checkpoints]


def _from_known(options: argparse.Namespace, saved: dict[str, Any] | None) -> Inputs:
    name: DataName = options.data
    if options.train is not None:
        raise ValueError(f"--train: expected it with a folder alone, got it with {name}; leave it out")
    if options.size is not None:
        raise ValueError(f"--size: expected it with a folder alone, got it with {name}; leave it out")
    data = known_data(name, options.data_root, options.mean, options.std, saved)

    return Inputs(
        models=_models(options, saved, len(data.class_names)),
        data=_InMemory(data.test, options.batch_size),
        prototypes=_InMemory(data.train, options.batch_size),
        source=f"mean training images of {name}",
        class_names=data.class_names,
        mean=data.mean,
        std=data.std,
    )


def _from_folder(options: argparse.Namespace, saved: dict[str, Any] | None) -> Inputs:
    classes = _class_folders("--data", Path(options.data))
    if options.train is not None and (other := _class_folders("--train", options.train)) != classes:
        apart = sorted(set(classes) ^ set(other))
        raise ValueError(
            f"--train: expected the classes of --data, {len(classes)}, got {len(other)}; they differ in {', '.join(apart[:5])}"
        )
    models = _models(options, saved, len(classes))
    taken = preprocessing_of(options, models[0], saved)
    folders = load("torchvision.datasets", purpose="--data: a folder of images", package="torchvision")

    def batches(folder: str | Path) -> Batches:
        files = folders.ImageFolder(
            folder,
            transform=taken,
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
        mean=taken.mean,
        std=taken.std,
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
        return read_image(path)
    except OSError as error:
        raise ValueError(
            f"--data: expected an image that can be read, got {path} ({error}); repair or remove it"
        ) from error
