"""The models and data sets that a command line names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from ..demo.data import DataName, load_data
from ..demo.model import SimpleCNN
from ..explain.sources import (
    Classes,
    ImageFiles,
    Listing,
    TorchvisionImages,
    list_csv,
    list_folder,
    names_of,
    torchvision_data,
)
from ..loading import Preprocessing, load_checkpoint, load_model, preprocessing
from ..loading.checkpoints import read_checkpoint
from .options import KNOWN_DATA

_DEMO_KEYS = {"model", "num_classes", "image_size", "mean", "std"}
_TORCHVISION = "torchvision/"


@dataclass(frozen=True)
class ModelSource:
    """The model that a command line names, and the preprocessing that it asks for."""

    name: str
    checkpoint: Path | None = None
    pretrained: bool = False
    num_classes: int | None = None
    device: str = "cpu"
    size: Sequence[int] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None

    @cached_property
    def demo(self) -> dict[str, Any] | None:
        """What ``batchcam demo`` saved beside the weights; None for any other model."""
        if self.name != "demo":
            return None
        if self.checkpoint is None:
            raise ValueError(
                "model: expected --checkpoint FILE with demo, got none; name a checkpoint of batchcam demo"
            )
        saved = read_checkpoint(self.checkpoint)
        missing = _DEMO_KEYS - saved.keys() if isinstance(saved, dict) else _DEMO_KEYS
        if missing:
            raise ValueError(
                f"checkpoint: expected one of batchcam demo, got {self.checkpoint} without {', '.join(sorted(missing))}; "
                "name the model that it belongs to instead of demo"
            )
        return dict(saved)

    @property
    def has_random_weights(self) -> bool:
        """True if nobody has trained the model; a function may load weights itself."""
        return self.checkpoint is None and not self.pretrained and ":" not in self.name

    def load(self, checkpoint: Path | None = None, *, classes: int | None = None, seed: int = 0) -> nn.Module:
        """Return the model in eval mode.

        Args:
            checkpoint: weights to load instead of :attr:`checkpoint`.
            classes: the number of classes of a model with random weights, unless the command line has one.
            seed: of the random weights, so that every rank and every resumed run has the same.
        """
        checkpoint = checkpoint or self.checkpoint
        if self.demo is not None and checkpoint is not None:
            model = SimpleCNN(int(self.demo["num_classes"]), int(self.demo["image_size"]))
            load_checkpoint(model, checkpoint)
            return model.to(self.device).eval()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return load_model(
                self.name,
                checkpoint=checkpoint,
                num_classes=self.num_classes or (classes if self.has_random_weights else None),
                pretrained=self.pretrained,
                device=self.device,
            )

    def preprocessing(self, model: nn.Module) -> Preprocessing:
        """Return how files become inputs: as the options say, otherwise as the model was trained."""
        if self.demo is None:
            expected = preprocessing(model, self.name)
        else:
            side = int(self.demo["image_size"])
            expected = Preprocessing((side, side), (float(self.demo["mean"]),), (float(self.demo["std"]),))
        size = self.size or expected.size
        if len(size) > 2:
            raise ValueError(f"--size: expected one or two numbers, got {list(size)}")
        return replace(
            expected,
            size=(size[0], size[-1]),
            mean=tuple(self.mean or expected.mean),
            std=tuple(self.std or expected.std),
        )


@dataclass(frozen=True)
class KnownData:
    """Grayscale images in memory, normalized."""

    images: Tensor
    labels: tuple[int, ...]
    names: tuple[str, ...]
    mean: tuple[float]
    std: tuple[float]


#: Where samples come from: files, a data set of torchvision, or memory.
DataSource = Listing | KnownData | Any


def open_data(data: str, root: Path | None, split: str | None, model: ModelSource) -> DataSource:
    """Find the samples that ``--data`` names.

    Raises:
        ValueError: options that contradict each other, or no image.
        OSError: a file is missing or cannot be read.
        ModuleNotFoundError: a library is not installed.
    """
    if data in KNOWN_DATA:
        return _known_data(data, root, split or "test", model)
    if data.startswith(_TORCHVISION):
        return torchvision_data(data.removeprefix(_TORCHVISION), root, split or "test")
    for option, value in (("--data-root", root), ("--split", split)):
        if value is not None:
            raise ValueError(
                f"{option}: expected it with {', '.join(KNOWN_DATA)} or torchvision/..., got it with {data}; leave it out"
            )
    if os.path.isdir(data):
        return list_folder(data)
    if data.lower().endswith(".csv"):
        return list_csv(data)
    got = "another file" if os.path.exists(data) else "nothing of this name"
    raise FileNotFoundError(
        f"--data: expected a folder of images, a CSV of paths, {', '.join(KNOWN_DATA)} or torchvision/CIFAR10, got {data}, "
        f"{got}; check the path"
    )


def _known_data(name: str, root: Path | None, split: str, model: ModelSource) -> KnownData:
    if split not in ("train", "test"):
        raise ValueError(f"--split: expected train or test of {name}, got {split}")
    if model.size is not None:
        raise ValueError(
            f"--size: expected it with files or torchvision/..., got it with {name}; leave it out"
        )
    data = load_data(cast(DataName, name), root)
    statistics = []
    for option, given, key in (("--mean", model.mean, "mean"), ("--std", model.std, "std")):
        if given is not None and (len(given) != 1 or (key == "std" and given[0] <= 0)):
            raise ValueError(
                f"{option}: expected one number for grayscale images, above 0 for --std, got {list(given)}"
            )
        saved = getattr(data, key) if model.demo is None else model.demo[key]
        statistics.append(float(saved if given is None else given[0]))
    mean, std = statistics
    part = data.test if split == "test" else data.train
    images = (
        part.images
        if (mean, std) == (data.mean, data.std)
        else (part.images * data.std + data.mean - mean) / std
    )
    return KnownData(images, tuple(part.labels.tolist()), data.class_names, (mean,), (std,))


def class_names(source: DataSource) -> tuple[str, ...] | None:
    """Return the names of the classes that the labels count; None if the labels are indices."""
    return source.names if isinstance(source, Listing | KnownData) else names_of(source)


def labels_of(source: DataSource) -> tuple[int, ...] | None:
    """Return the labels, as far as they are known before the samples are read."""
    return source.labels if isinstance(source, Listing | KnownData) else None


def make_dataset(source: DataSource, prepare: Preprocessing, classes: Classes | None = None) -> Dataset[Any]:
    """Return a data set of (image, label).

    Args:
        source: from :func:`open_data`.
        prepare: how files become inputs; images in memory are ready.
        classes: turns labels into classes of the model; None leaves them.
    """
    if isinstance(source, Listing):
        return ImageFiles(source, prepare, classes)
    if isinstance(source, KnownData):
        labels = source.labels if classes is None else tuple(map(classes, source.labels))
        return TensorDataset(source.images, torch.tensor(labels))
    return TorchvisionImages(source, prepare, classes)


def example_of(source: DataSource, prepare: Preprocessing) -> Tensor:
    """Return inputs as the model will get them: two of the images in memory, otherwise zeros."""
    if isinstance(source, KnownData):
        return source.images[:2]
    return torch.zeros(2, len(prepare.mean), *prepare.size)


def count_classes(model: nn.Module, example: Tensor, name: str, remedy: str) -> int:
    """Return K, and refuse a model that does not take the images or whose output is no scores.

    Args:
        model: the model.
        example: (N, C, H, W), on the model's device.
        name: of the model, for errors.
        remedy: what helps if the model does not take the images.

    Raises:
        ValueError: the model raises, or returns anything but (N, K).
    """
    try:
        with torch.no_grad():
            scores = model(example)
    except Exception as error:  # a model may raise anything
        raise ValueError(
            f"model: expected {name} to take images of shape {tuple(example.shape)} and {example.dtype}, got "
            f"{type(error).__name__}: {error}; {remedy}"
        ) from error
    if not isinstance(scores, Tensor) or scores.dim() != 2 or len(scores) != len(example):
        got = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(
            f"model: expected scores of shape ({len(example)}, K) from {name}, got {got}; pass a function module:function that "
            "wraps it"
        )
    return int(scores.shape[1])


def remedy_for(source: DataSource) -> str:
    """Return what helps if a model does not take the images."""
    if isinstance(source, KnownData):
        return "these images are grayscale and keep their size: pass a model that was trained on them, or other --data"
    return "--size and --mean (one number per channel) change the images"


def imagenet_classes() -> tuple[tuple[str, ...] | None, dict[str, int]]:
    """Return the names of ImageNet's classes and the classes of its folders' names, as far as timm and torchvision have them."""
    words: dict[str, int] = {}
    names: tuple[str, ...] | None = None
    with suppress(ImportError, AttributeError):
        info: Any = import_module("timm.data").ImageNetInfo()
        words = {str(word): place for place, word in enumerate(info.label_names())}
        names = tuple(map(str, info.label_descriptions()))
    with suppress(ImportError, AttributeError, RuntimeError):
        names = tuple(
            map(str, import_module("torchvision.models").ResNet18_Weights.DEFAULT.meta["categories"])
        )
    return names, words


def read_lines(path: Path) -> tuple[str, ...]:
    """Return the names in a file, one per line.

    Raises:
        ValueError: the file is not UTF-8, or empty.
        OSError: it cannot be read.
    """
    try:
        names = tuple(filter(None, map(str.strip, path.read_text(encoding="utf-8-sig").splitlines())))
    except UnicodeDecodeError as error:
        raise ValueError(f"--classes: expected text in UTF-8, got {path} ({error})") from error
    except OSError as error:
        raise OSError(
            f"--classes: expected a file that can be read, got {path} ({error.strerror})"
        ) from error
    if not names:
        raise ValueError(f"--classes: expected a name in every line, got {path}, which is empty")
    return names
