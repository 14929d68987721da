"""What ``batchcam explain`` works on: a model, a data set and the names of the classes, from what the user names."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ..explain.samples import first_readable
from ..explain.sources import (
    Classes,
    ImageFiles,
    Listing,
    TorchvisionImages,
    as_text,
    list_csv,
    list_folder,
    match_classes,
    names_of,
    torchvision_data,
)
from ..loading import Preprocessing, load_model
from ..loading.checkpoints import MisfitError
from .arguments import KNOWN_DATA
from .inputs import DEMO, demo_checkpoint, demo_model, known_data, preprocessing_of

_TORCHVISION = "torchvision/"
_IMAGENET = 1000


@dataclass(frozen=True)
class Inputs:
    """Everything loaded."""

    model: nn.Module  #: in eval mode, on the device
    dataset: Dataset[Any]  #: of (image, label)
    class_names: tuple[str, ...] | None
    mean: Any  #: of the standardisation, one number or one a channel
    std: Any
    about: dict[str, Any]  #: what the store says of all this, and a run that goes on must have the same of
    remark: str | None  #: what the user should know
    in_memory: bool  #: whether reading a sample takes no time


@dataclass(frozen=True)
class _Data:
    """A data set before the model's classes are known."""

    names: tuple[str, ...] | None  #: of the classes that its labels count
    make: Callable[[Preprocessing, Classes | None], Dataset[Any]]
    labels: tuple[int, ...] | None = None  #: where they are known before the samples are read
    grey: tuple[float, float] | None = (
        None  #: mean and standard deviation of a data set that is prepared already
    )


def load_inputs(options: argparse.Namespace) -> Inputs:
    """Load data and model.

    Raises:
        ValueError: arguments that contradict each other, a model that does not take the images, no image that can be read.
        OSError: files that are missing or cannot be read.
        ModuleNotFoundError: a library that is needed is not installed.
    """
    saved = demo_checkpoint(options.checkpoint) if options.model == DEMO else None
    given = None if options.classes is None else _lines(options.classes)
    data = _data(options, saved)
    model = _model(options, saved, data.names, given)
    taken = preprocessing_of(options, model, saved)
    if data.grey is not None:
        taken = replace(taken, mean=(data.grey[0],), std=(data.grey[1],))
    classes = _matched(options, data, given, _count_classes(model, data.make(taken, None), options))
    return Inputs(
        model=model,
        dataset=data.make(taken, classes),
        class_names=classes.names,
        mean=taken.mean,
        std=taken.std,
        about=_about(options, data, taken),
        remark=classes.remark,
        in_memory=data.grey is not None,
    )


def _data(options: argparse.Namespace, saved: dict[str, Any] | None) -> _Data:
    name, split = options.data, options.split or "test"
    if name in KNOWN_DATA:
        if split not in ("train", "test"):
            raise ValueError(f"--split: expected train or test of {name}, got {split}")
        if options.size is not None:
            raise ValueError(
                f"--size: expected it with files or torchvision/…, got it with {name}; leave it out"
            )
        known = known_data(name, options.data_root, options.mean, options.std, saved)
        part = known.test if split == "test" else known.train
        labels = part.labels.tolist()
        return _Data(
            known.class_names,
            lambda _, classes: TensorDataset(
                part.images, part.labels if classes is None else torch.tensor([*map(classes, labels)])
            ),
            tuple(labels),
            grey=(known.mean, known.std),
        )
    if name.startswith(_TORCHVISION):
        images = torchvision_data(name.removeprefix(_TORCHVISION), options.data_root, split)
        return _Data(names_of(images), lambda taken, classes: TorchvisionImages(images, taken, classes))
    for option in ("data_root", "split"):
        if getattr(options, option) is not None:
            raise ValueError(
                f"--{option.replace('_', '-')}: expected it with {', '.join(KNOWN_DATA)} or torchvision/…, got it with {name}; "
                "leave it out"
            )
    listing = _listing(name)
    return _Data(
        listing.names,
        lambda taken, classes: ImageFiles(listing, taken, classes),
        listing.labels,
    )


def _listing(name: str) -> Listing:
    if os.path.isdir(name):
        return list_folder(name)
    if name.lower().endswith(".csv"):
        return list_csv(name)
    got = "another file" if os.path.exists(name) else "nothing of this name"
    raise FileNotFoundError(
        f"--data: expected a folder of images, a CSV of paths, {', '.join(KNOWN_DATA)} or torchvision/CIFAR10 or the like, got "
        f"{name}, {got}; check the path"
    )


def _lines(path: Path) -> tuple[str, ...]:
    """The names of classes in a file, one a line."""
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines())
    except UnicodeDecodeError as error:
        raise ValueError(f"--classes: expected text in UTF-8, got {path} ({error})") from error
    except OSError as error:
        raise OSError(
            f"--classes: expected a file that can be read, got {path} ({error.strerror or error})"
        ) from error
    names = tuple(name for name in names if name)
    if not names:
        raise ValueError(f"--classes: expected a name in every line, got {path}, which is empty")
    return names


def _model(
    options: argparse.Namespace,
    saved: dict[str, Any] | None,
    names: tuple[str, ...] | None,
    given: tuple[str, ...] | None,
) -> nn.Module:
    if saved is not None:
        return demo_model(saved, options.checkpoint, options.device)
    count = options.num_classes
    of_library = ":" not in options.model
    if count is None and of_library and options.checkpoint is None and not options.pretrained:
        known = given or names  # weights are random: any number would do
        count = len(known) if known is not None and len(known) > 1 else None

    def load(classes: int | None) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the same random weights when the run goes on, and on every rank
            return load_model(
                options.model,
                checkpoint=options.checkpoint,
                num_classes=classes,
                pretrained=options.pretrained,
                device=options.device,
            )

    try:
        return load(count)
    except MisfitError as error:
        if not of_library or options.num_classes is not None or error.classes is None:
            raise
        return load(error.classes)  # the checkpoint says how many there are


def _count_classes(model: nn.Module, dataset: Dataset[Any], options: argparse.Namespace) -> int:
    """K, by a first forward."""
    example = first_readable(DataLoader(dataset), max_missing=options.max_missing or None).images
    assert example is not None
    shape = tuple(example.shape)
    try:
        with torch.no_grad():
            scores = model(example.to(options.device))
    except Exception as error:  # whatever a model raises
        remedy = (
            f"the images of {options.data} are grey and stay as they are: pass a model that was trained on them, or "
            f"--data torchvision/… with the name of torchvision's class"
            if options.data in KNOWN_DATA
            else "--size and --mean (one number a channel) change the images"
        )
        raise ValueError(
            f"model: expected {options.model} to take images of shape {shape}, got {type(error).__name__}: {error}; {remedy}"
        ) from error
    if not isinstance(scores, torch.Tensor) or scores.dim() != 2 or len(scores) != 1:
        got = f"shape {tuple(scores.shape)}" if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise ValueError(
            f"model: expected scores of shape (1, K) from {options.model}, got {got}; pass a function module:function that "
            "wraps it"
        )
    return int(scores.shape[1])


def _matched(options: argparse.Namespace, data: _Data, given: tuple[str, ...] | None, count: int) -> Classes:
    packaged, words = (None, {}) if given is not None or count != _IMAGENET else _imagenet()
    if given is not None and len(given) != count:
        raise ValueError(
            f"--classes: expected {count} names, one for each class of {options.model}, got {len(given)} in {options.classes}"
        )
    classes = match_classes(data.names, count, given=given, packaged=packaged, also=words)
    if data.names is None and data.labels is not None and max(data.labels) >= count:
        raise ValueError(
            f"--data: expected labels from 0 to {count - 1}, as {options.model} has {count} classes, got {max(data.labels)}"
        )
    if options.targets == "true":
        total = None if data.labels is None else len(data.labels)
        lacking = 0 if data.labels is None else sum(classes(label) < 0 for label in data.labels)
        if lacking or not classes.order:
            which = "any" if total is None else f"{lacking} of {total}"
            why = f" ({classes.remark})" if classes.remark else ""
            raise ValueError(
                f"--targets: expected a label for each image with true, got none for {which}{why}; pass --targets predicted"
            )
    return classes


def _imagenet() -> tuple[tuple[str, ...] | None, dict[str, int]]:
    """The names of ImageNet's classes and what its folders are called, as far as the libraries carry them."""
    words: dict[str, int] = {}
    names: tuple[str, ...] | None = None
    with suppress(ImportError, AttributeError):
        info: Any = import_module("timm.data").ImageNetInfo()
        words = {str(word): place for place, word in enumerate(info.label_names())}
        names = tuple(map(str, info.label_descriptions()))
    with suppress(ImportError, AttributeError, RuntimeError):
        from torchvision.models import ResNet18_Weights

        names = tuple(map(str, ResNet18_Weights.DEFAULT.meta["categories"]))
    return names, words


def _about(options: argparse.Namespace, data: _Data, taken: Preprocessing) -> dict[str, Any]:
    named = options.data in KNOWN_DATA or options.data.startswith(_TORCHVISION)
    return {
        # Without folders: a model that was moved is the same model, as the hash of its weights is compared, too.
        "model": _without_folder(options.model) if ":" in options.model else options.model,
        "checkpoint": None if options.checkpoint is None else as_text(options.checkpoint.name),
        "pretrained": options.pretrained,
        # Of torchvision's data sets and known ones the name: wherever they lie, they are the same. A folder or a CSV with its
        # place, as the store keeps the paths of the files: a run that went on elsewhere would mix two places in one store.
        "data": options.data if named else as_text(os.path.abspath(options.data)),
        "split": (options.split or "test") if named else None,
        "preparation": None if data.grey is not None else asdict(taken),
    }


def _without_folder(model: str) -> str:
    """``folder/file.py:function`` -> ``file.py:function``; a function of a package stays."""
    file, _, function = model.rpartition(":")
    return as_text(f"{os.path.basename(file)}:{function}")
