"""Images for the demo: scikit-learn's digits, or MNIST and Fashion-MNIST through torchvision."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ..datasets.mnist import load_mnist

DataName = Literal["digits", "mnist", "fashion-mnist"]


@dataclass(frozen=True)
class Images:
    """Normalized images and their labels."""

    images: Tensor  #: (N, 1, H, W), float32
    labels: Tensor  #: (N,), int64

    def __len__(self) -> int:
        return len(self.labels)

    def batches(
        self, size: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu"
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of images and labels; with a generator they are shuffled, and a short last batch is dropped."""
        order = torch.arange(len(self))
        if generator is not None:
            order = torch.randperm(len(self), generator=generator)
        for chosen in order.split(size):
            if generator is None or len(chosen) == size or len(self) < size:
                yield self.images[chosen].to(device), self.labels[chosen].to(device)


@dataclass(frozen=True)
class DemoData:
    """A training set and a test set, and the statistics that normalized them."""

    train: Images
    test: Images
    class_names: tuple[str, ...]
    mean: float
    std: float

    @property
    def image_size(self) -> int:
        """The height, which equals the width."""
        return self.train.images.shape[-1]


def load_data(name: DataName, root: Path | None = None, *, download: bool = False) -> DemoData:
    """Load a data set into memory.

    Args:
        name: ``"digits"`` (1,797 images of 8 × 8, part of scikit-learn), ``"mnist"`` or ``"fashion-mnist"`` (28 × 28).
        root: the folder of torchvision's data sets; the digits do not need it.
        download: let torchvision download what is missing.

    Returns:
        Images normalized by mean and standard deviation of the training set.

    Raises:
        OSError: the files are missing or cannot be read.
        ModuleNotFoundError: scikit-learn or torchvision is not installed.
    """
    if name == "digits":
        train, test = _load_digits()
        class_names = tuple(map(str, range(10)))
    else:
        parts = [load_mnist(name, root, train=part, download=download) for part in (True, False)]
        train, test = (Images(part.data.unsqueeze(1) / 255, part.targets) for part in parts)
        class_names = parts[0].classes
    mean, std = float(train.images.mean()), float(train.images.std())
    train, test = (Images((part.images - mean) / std, part.labels) for part in (train, test))
    return DemoData(train, test, class_names, mean, std)


def _load_digits() -> tuple[Images, Images]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    # One split for every seed: seeds change the weights and the order of batches.
    train, test, *labels = train_test_split(
        digits.images, digits.target, test_size=0.25, random_state=0, stratify=digits.target
    )
    images = (torch.from_numpy(part).float().unsqueeze(1) / 16 for part in (train, test))
    train_labels, test_labels = (torch.from_numpy(part).long() for part in labels)
    return Images(next(images), train_labels), Images(next(images), test_labels)
