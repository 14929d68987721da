"""A data set in memory with a shortcut in its images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .arguments import choice

Mode = Literal["train", "test", "clean"]


class Shortcut(Protocol):
    """What puts the shortcut in: :func:`decoy`, :func:`color`, :func:`watermark`, or a function like them."""

    def __call__(
        self, images: Tensor, labels: Tensor, *, train: bool, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """(N, 1, H, W) and (N,) -> images (N, C, H, W) of the same dtype, and masks (N, 1, H, W), bool."""
        ...


class ShortcutDataset(Dataset[tuple[Any, Any, Tensor]]):
    """A data set in memory with a shortcut in its images, and where the shortcut is.

    All images are made once, here, from the seed: they are the same in every epoch, worker and rank, and an image has its
    shortcut in the same place in every ``mode``.

    Args:
        dataset: grey images with ``data`` (N, H, W), uint8, and ``targets`` (N,), as torchvision's MNIST has them; or the pair
            of those two.
        shortcut: puts the shortcut in; options go through ``functools.partial``.
        mode: ``"train"``: shortcuts that give the label away; ``"test"``: those of the test set, which mislead; ``"clean"``: the
            same images without (with three channels where the shortcut is a colour), masks all false.
        transform: of each image, a float tensor (C, H, W) from 0 to 1. The mask does not follow what moves pixels; for that
            there is ``joint_transform``.
        target_transform: of each label.
        joint_transform: of image and mask together, after ``transform``, as torchvision's v2 transforms take them.
        seed: of the shortcut's draws.

    Attributes:
        mode: as given.
        classes: names of the classes, where the data set has them.

    Indexing returns image, label (an int) and mask (1, H, W), bool.

    Raises:
        TypeError: a dtype does not fit.
        ValueError: a shape or a choice does not fit.

    Example:
        >>> from batchcam_captum.datasets import decoy
        >>> images, labels = torch.zeros(20, 28, 28, dtype=torch.uint8), torch.arange(20) % 10
        >>> data = ShortcutDataset((images, labels), decoy)
        >>> image, label, mask = data[3]
        >>> label, tuple(image.shape), int(image[mask].mul(255).round().unique())
        (3, (1, 28, 28), 180)
        >>> development = data.subset(range(10, 20))             # held-out images with shortcuts as in training
        >>> bool(development.clean[3][2].any())
        False
    """

    def __init__(
        self,
        dataset: Any,
        shortcut: Shortcut,
        *,
        mode: Mode = "train",
        transform: Callable[[Tensor], Any] | None = None,
        target_transform: Callable[[int], Any] | None = None,
        joint_transform: Callable[[Any, Tensor], tuple[Any, Tensor]] | None = None,
        seed: int = 0,
    ) -> None:
        choice("mode", mode, get_args(Mode))
        self.mode: Mode = mode
        self.shortcut = shortcut
        self.transform = transform
        self.target_transform = target_transform
        self.joint_transform = joint_transform
        self.seed = seed
        self._base, self._labels, self.classes = _in_memory(dataset)
        self._chosen: Tensor | None = None
        self._images, self._masks = self._made()

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Any, Any, Tensor]:
        """Image, label and mask; see the class."""
        image: Any = _as_float(self._images[index])
        mask = self._masks[index].clone()
        label: Any = int(self.labels[index])
        if self.transform is not None:
            image = self.transform(image)
        if self.joint_transform is not None:
            image, mask = self.joint_transform(image, mask)
        if self.target_transform is not None:
            label = self.target_transform(label)
        return image, label, mask

    @property
    def labels(self) -> Tensor:
        """(N,), int64."""
        return self._labels if self._chosen is None else self._labels[self._chosen]

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Everything at once: images (N, C, H, W), float32 from 0 to 1; labels (N,), int64; masks (N, 1, H, W), bool.

        No transform is applied.
        """
        return _as_float(self._images), self.labels.clone(), self._masks.clone()

    @property
    def clean(self) -> ShortcutDataset:
        """The same images without the shortcut."""
        return self.with_mode("clean")

    def with_mode(self, mode: Mode) -> ShortcutDataset:
        """The same images in another mode, each with its shortcut in the same place.

        Args:
            mode: ``"train"``, ``"test"`` or ``"clean"``.
        """
        choice("mode", mode, get_args(Mode))
        return self._copy(mode, self._chosen)

    def subset(self, indices: Sequence[int] | Tensor) -> ShortcutDataset:
        """Some of the images, as they are here: to hold out a development set with shortcuts as in training.

        Args:
            indices: positions in this data set.

        Raises:
            IndexError: a position is outside.
        """
        wanted = torch.as_tensor(indices, dtype=torch.int64)
        outside = wanted[(wanted < 0) | (wanted >= len(self))]
        if len(outside):
            raise IndexError(f"indices: expected positions from 0 to {len(self) - 1}, got {int(outside[0])}")
        return self._copy(self.mode, wanted if self._chosen is None else self._chosen[wanted])

    def _copy(self, mode: Mode, chosen: Tensor | None) -> ShortcutDataset:
        other: ShortcutDataset = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.mode, other._chosen = mode, chosen
        other._images, other._masks = other._made()
        return other

    def _made(self) -> tuple[Tensor, Tensor]:
        """Draw for all images, then choose: an image's shortcut does not depend on which others are chosen."""
        generator = torch.Generator().manual_seed(self.seed)
        images, masks = self.shortcut(
            self._base, self._labels, train=self.mode != "test", generator=generator
        )
        if self.mode == "clean":
            images, masks = self._base.expand(-1, images.shape[1], -1, -1), torch.zeros_like(masks)
        if self._chosen is None:
            return images, masks
        return images[self._chosen], masks[self._chosen]


def _in_memory(dataset: Any) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Images (N, 1, H, W), labels (N,), and the names of the classes, of a data set or a pair."""
    if isinstance(dataset, tuple):
        images, labels = dataset
    else:
        try:
            images, labels = dataset.data, dataset.targets
        except AttributeError:
            raise TypeError(
                "dataset: expected one in memory, with data and targets, or a pair of images and labels, got "
                f"{type(dataset).__name__}; pass (images, labels)"
            ) from None
    images, labels = torch.as_tensor(images), torch.as_tensor(labels)
    if images.dim() == 3:
        images = images.unsqueeze(1)
    if not labels.is_floating_point():
        labels = labels.long()
    return images, labels, tuple(map(str, getattr(dataset, "classes", ())))


def _as_float(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images.to(torch.float32, copy=True)
