"""What tells one run from another, and what a data set says of its samples before they are read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, TensorDataset

from .sources import ImageFiles, TorchvisionImages, integers
from .store import open_store

T = TypeVar("T")


@dataclass(frozen=True)
class Samples:
    """What is known of the N samples of a data set; None where it is not."""

    ids: Sequence[str] | None = None
    paths: Sequence[str] | None = None
    labels: Sequence[int] | None = None
    class_names: Sequence[str] | None = None  #: of the model's classes

    @classmethod
    def of(cls, dataset: Dataset[Any]) -> Samples:
        """Those of this package's data sets, of torchvision's, of tensors, and of parts of them."""
        if isinstance(dataset, Subset):
            whole = cls.of(dataset.dataset)

            def part(values: Sequence[T] | None) -> list[T] | None:
                return None if values is None else [values[index] for index in dataset.indices]

            return cls(part(whole.ids), part(whole.paths), part(whole.labels), whole.class_names)
        if isinstance(dataset, ImageFiles):
            return cls(dataset.ids, dataset.paths, dataset.labels, dataset.class_names)
        if isinstance(dataset, TorchvisionImages):
            return cls(labels=dataset.labels, class_names=dataset.class_names)
        if isinstance(dataset, TensorDataset):
            return cls(labels=integers(dataset.tensors[1]) if len(dataset.tensors) > 1 else None)
        return cls(paths=_paths(dataset), labels=integers(getattr(dataset, "targets", None)))


def _paths(dataset: Dataset[Any]) -> list[str] | None:
    """Of torchvision's folders, whose samples are (path, class)."""
    samples = getattr(dataset, "samples", None)
    if not isinstance(samples, list) or len(samples) != len(dataset):  # type: ignore[arg-type]
        return None
    firsts = (sample[0] if isinstance(sample, tuple) else sample for sample in samples)
    paths = [path for path in firsts if isinstance(path, str)]
    return paths if len(paths) == len(samples) else None


def model_hash(model: nn.Module) -> str:
    """SHA-256 of a model's parameters and buffers with their names, in hexadecimal."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            digest.update(_bytes(value))
    return digest.hexdigest()


def tensor_hash(tensor: Tensor) -> str:
    """SHA-256 of its values."""
    return hashlib.sha256(_bytes(tensor)).hexdigest()


def example_of(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """By which sample a store tells its images: the first that can be read may be another, once damaged ones are mended."""
    try:
        return dict(open_store(path).settings["example"])
    except (OSError, ValueError, KeyError):  # no store; whoever writes says so
        return None


def texts_hash(*texts: Sequence[object] | None) -> str | None:
    """SHA-256 of lists; None where there are none."""
    known = [each for each in texts if each is not None]
    digest = hashlib.sha256()
    for one in known:
        for text in map(str, one):
            digest.update(f"{len(text)}:{text}".encode(errors="surrogateescape"))
    return digest.hexdigest() if known else None


def name_of(function: str | Callable[..., Any] | int | None) -> Any:
    """How a setting that may be a function is written down: with its module, as two may be called alike."""
    if not callable(function):
        return function
    name = getattr(function, "__qualname__", None)
    return f"{function.__module__}.{name}" if name else str(function)


def numbers(value: Any) -> Any:
    """Numbers, or lists of them, that JSON holds."""
    if value is None or isinstance(value, int | float):
        return value
    return [float(each) for each in value]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
