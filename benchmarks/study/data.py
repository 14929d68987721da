"""The data sets of the study as tensors, with and without shortcuts, and where objects and shortcuts are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from batchcam_captum import ClassPrototypes
from batchcam_captum.datasets import color, decoy
from batchcam_captum.datasets.mnist import load_mnist

from .development import development_mark

#: How many of the last training images are held out for validation.
HELD_OUT = 10_000
#: Where shortcuts are put, and with which labels in test, is drawn with these; the same for every arm and seed.
_SEED_TRAIN, _SEED_EVALUATION = 20251000, 20251001

Shortcut = Callable[..., tuple[Tensor, Tensor]]
SHORTCUTS: dict[str, Shortcut] = {
    "decoy": partial(decoy, variant="rrr"),
    "decoy-fixed": partial(decoy, variant="rrr", place="fixed"),
    "decoy-cdep": partial(decoy, variant="cdep"),
    "color": color,
    "development": development_mark,
}
BASES = ("mnist", "fashion-mnist")


@dataclass(frozen=True)
class Part:
    """Images in [0, 1] and what is known of them."""

    images: Tensor  #: (N, C, H, W)
    labels: Tensor  #: (N,)
    objects: Tensor  #: (N, 1, H, W) booleans: lit without the shortcut
    shortcuts: Tensor  #: (N, 1, H, W) booleans

    @property
    def masks(self) -> Tensor:
        """Where evidence may be, for arms that are told, (N, 1, H, W).

        Off the shortcut; on the object where there is no shortcut, or where it is the object's own colour.
        """
        return (~self.shortcuts if self.has_shortcut_beside else self.objects).float()

    @property
    def has_shortcut_beside(self) -> bool:
        """Whether there is a shortcut, and it is not the object's own colour."""
        return bool(self.shortcuts.any()) and not torch.equal(self.shortcuts, self.objects)


@dataclass(frozen=True)
class StudyData:
    """What an arm is trained on and measured with."""

    train: Part
    evaluation: Part
    clean_train: Tensor  #: (N, 1, H, W): the training images without their shortcut
    mean: float
    std: float
    num_classes: int = 10

    @property
    def channels(self) -> int:
        """Of the images."""
        return self.train.images.shape[1]

    def standardized(self, images: Tensor) -> Tensor:
        """As the networks take them."""
        return (images - self.mean) / self.std

    def clean_prototypes(self) -> ClassPrototypes:
        """Class means without shortcut, which the cams of all arms are measured against."""
        prototypes = ClassPrototypes(self.num_classes)
        prototypes.update(self.clean_train, self.train.labels)
        return prototypes


def base_and_shortcut(name: str) -> tuple[str, str | None]:
    """``"decoy-mnist"`` -> ``("mnist", "decoy")``.

    Raises:
        ValueError: an unknown name.
    """
    for base in sorted(BASES, key=len, reverse=True):
        if name == base:
            return base, None
        if name.endswith(f"-{base}") and name.removesuffix(f"-{base}") in SHORTCUTS:
            return base, name.removesuffix(f"-{base}")
    raise ValueError(
        f"data: expected {' or '.join(BASES)}, by itself or after {', '.join(SHORTCUTS)} and a hyphen, got {name!r}"
    )


def load(
    name: str,
    root: Path,
    *,
    split: str = "test",
    train_size: int | None = None,
    test_size: int | None = None,
    padding: int = 0,
) -> StudyData:
    """Load a data set.

    Args:
        name: such as ``"mnist"`` or ``"decoy-fashion-mnist"``.
        root: torchvision's folder.
        split: what is measured with: the ``"test"`` set, or ``"validation"`` images held out of the training set.
        train_size: train on that many of the images; None: on all.
        test_size: measure with that many of the test images; None: with all.
        padding: black pixels around the images, before anything else is done.

    Raises:
        ValueError: an unknown name or split.
        FileNotFoundError: the data set is not there.
    """
    base, shortcut = base_and_shortcut(name)
    if split not in ("test", "validation"):
        raise ValueError(f"split: expected 'test' or 'validation', got {split!r}")
    if shortcut == "development" and split == "test":
        raise ValueError("split: expected 'validation' with the development shortcut, got 'test'")
    if split == "validation" and shortcut not in (None, "development"):
        raise ValueError(
            f"split: expected 'test' with {name}, got 'validation'; recipes are chosen without this shortcut"
        )
    images, labels = _of_torchvision(base, root, train=True)
    if split == "validation":
        other, other_labels = images[-HELD_OUT:], labels[-HELD_OUT:]
        images, labels = images[:-HELD_OUT], labels[:-HELD_OUT]
    else:
        other, other_labels = (each[:test_size] for each in _of_torchvision(base, root, train=False))
    images, labels = images[:train_size], labels[:train_size]
    images, other = (F.pad(each, [padding] * 4) for each in (images, other))
    train = _part(images, labels, shortcut, train=True)
    mean, std = float(train.images.mean()), float(train.images.std())
    return StudyData(train, _part(other, other_labels, shortcut, train=False), images, mean, std)


def _part(images: Tensor, labels: Tensor, shortcut: str | None, *, train: bool) -> Part:
    objects = images > 0
    if shortcut is None:
        return Part(images, labels, objects, torch.zeros_like(objects))
    generator = torch.Generator().manual_seed(_SEED_TRAIN if train else _SEED_EVALUATION)
    marked, masks = SHORTCUTS[shortcut](images, labels, train=train, generator=generator)
    return Part(marked, labels, objects, masks)


def _of_torchvision(name: str, root: Path, *, train: bool) -> tuple[Tensor, Tensor]:
    found = load_mnist(name, root, train=train)
    return found.data.unsqueeze(1).float() / 255, found.targets


def brightest(images: Tensor) -> Tensor:
    """The brightest channel, (N, C, H, W) -> (N, 1, H, W): what makes grey of a colour without making it dark."""
    return images.amax(1, keepdim=True)
