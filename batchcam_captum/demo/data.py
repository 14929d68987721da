"""Images for the demo: scikit-learn's digits, or MNIST and Fashion-MNIST through torchvision."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from ..datasets.torchvision_files import ON_THE_COMMAND_LINE, Wording, grey_images

DataName = Literal["digits", "mnist", "fashion-mnist"]
DATA_NAMES: tuple[str, ...] = get_args(DataName)


@dataclass(frozen=True)
class Images:
    """Standardised images and their labels."""

    images: Tensor  #: (N, 1, H, W), float32
    labels: Tensor  #: (N,), int64

    def __len__(self) -> int:
        return len(self.labels)

    def batches(
        self, size: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu"
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of images and labels; shuffled if there is a generator, and then without a short last batch."""
        if generator is None:
            order = torch.arange(len(self))
        else:
            order = torch.randperm(len(self), generator=generator)
        for chosen in order.split(size):
            if generator is None or len(chosen) == size or len(self) < size:
                yield self.images[chosen].to(device), self.labels[chosen].to(device)


@dataclass(frozen=True)
class DemoData:
    """A training and a test set, and how the images were standardised."""

    train: Images
    test: Images
    class_names: tuple[str, ...]
    mean: float
    std: float

    @property
    def image_size(self) -> int:
        """Height, which equals the width."""
        return self.train.images.shape[-1]


def load_data(
    name: DataName,
    root: Path | None = None,
    *,
    download: bool = False,
    wording: Wording = ON_THE_COMMAND_LINE,
) -> DemoData:
    """Load a data set into memory.

    Args:
        name: ``"digits"`` (1,797 images of 8×8, inside scikit-learn), ``"mnist"`` or ``"fashion-mnist"`` (28×28).
        root: the folder that torchvision keeps its data sets in; not needed for the digits.
        download: let torchvision download what is missing.
        wording: what errors call the arguments.

    Returns:
        Images standardised by the training set's mean and standard deviation.

    Raises:
        FileNotFoundError: the folder, or the data set in it, is missing.
        OSError: the files cannot be read.
        ModuleNotFoundError: scikit-learn or torchvision is not installed.
    """
    if name == "digits":
        train, train_labels, test, test_labels = _digits()
        class_names = tuple(str(digit) for digit in range(10))
    else:
        train, train_labels, test, test_labels, class_names = _from_torchvision(name, root, download, wording)
    mean, std = float(train.mean()), float(train.std())
    return DemoData(
        train=Images((train - mean) / std, train_labels),
        test=Images((test - mean) / std, test_labels),
        class_names=class_names,
        mean=mean,
        std=std,
    )


def _digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    # One split for every seed: seeds differ in initialisation and in the order of batches.
    train, test, train_labels, test_labels = train_test_split(
        digits.images, digits.target, test_size=0.25, random_state=0, stratify=digits.target
    )
    scale = 1 / 16
    return (
        torch.from_numpy(train).float().unsqueeze(1) * scale,
        torch.from_numpy(train_labels).long(),
        torch.from_numpy(test).float().unsqueeze(1) * scale,
        torch.from_numpy(test_labels).long(),
    )


def _from_torchvision(
    name: str, root: Path | None, download: bool, wording: Wording
) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[str, ...]]:
    train, test = (
        grey_images(name, root, train=part, download=download, wording=wording) for part in (True, False)
    )
    return (
        train.data.unsqueeze(1) / 255,
        train.targets,
        test.data.unsqueeze(1) / 255,
        test.targets,
        train.classes,
    )
