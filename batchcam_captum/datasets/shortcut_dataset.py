"""A data set in memory with a shortcut in its images."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

Mode = Literal["train", "test", "clean"]


class Shortcut(Protocol):
    """A function that plants a shortcut, such as :func:`decoy`, :func:`color` and :func:`watermark`."""

    def __call__(
        self, images: Tensor, labels: Tensor, *, train: bool, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Plant the shortcut.

        Args:
            images: (N, 1, H, W).
            labels: (N,), int64.
            train: the shortcut of the training set, which gives the label away, or that of the test set.
            generator: for everything that is drawn.

        Returns:
            Images (N, C, H, W) of the same dtype, and masks of the shortcut, (N, 1, H, W), bool.
        """
        ...


class ShortcutDataset(Dataset[tuple[Any, Any, Tensor]]):
    """A data set in memory with a shortcut in its images, and the mask of where it is.

    All images of a mode are made once, from the seed: they are the same in every epoch, worker and rank, and an image has its
    shortcut in the same place in every ``mode`` and :meth:`subset`.

    Args:
        dataset: grayscale images with ``data`` (N, H, W), uint8, and ``targets`` (N,), such as torchvision's MNIST; or a pair of
            those two.
        shortcut: plants the shortcut; bind options with ``functools.partial``.
        mode: ``"train"``: shortcuts that give the label away; ``"test"``: those of the test set, which mislead; ``"clean"``: the
            same images without (with three channels if the shortcut is a color), masks all False.
        transform: of each image, a float tensor (C, H, W) in [0, 1]. The mask does not follow what moves pixels: use
            ``joint_transform`` for that.
        target_transform: of each label.
        joint_transform: of image and mask together, after ``transform``, like torchvision's v2 transforms.
        seed: of the shortcut.

    Attributes:
        mode: as given.
        classes: names of the classes, if the data set has them.

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
        self.shortcut = shortcut
        self.transform = transform
        self.target_transform = target_transform
        self.joint_transform = joint_transform
        self.seed = seed
        self._base, self._labels, self.classes = _in_memory(dataset)
        self._made: dict[bool, tuple[Tensor, Tensor]] = {}  # of the training set and of the test set
        self._set_mode(mode)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Any, Any, Tensor]:
        """Return image, label and mask."""
        image: Any = _as_float(self._images[index])
        mask = self._masks[index].clone()
        label: Any = int(self._labels[index])
        if self.transform is not None:
            image = self.transform(image)
        if self.joint_transform is not None:
            image, mask = self.joint_transform(image, mask)
        if self.target_transform is not None:
            label = self.target_transform(label)
        return image, label, mask

    @property
    def labels(self) -> Tensor:
        """(N,), int64, before ``target_transform``."""
        return self._labels

    @property
    def targets(self) -> Tensor:
        """The labels, by torchvision's name."""
        return self._labels

    @property
    def data(self) -> Tensor:
        """The stored images with the shortcut, before any transform: (N, H, W), or (N, 3, H, W) in color. Do not write."""
        return self._images.squeeze(1)

    @property
    def class_to_idx(self) -> dict[str, int]:
        """The index of each class name."""
        return {name: index for index, name in enumerate(self.classes)}

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return everything at once, without transforms.

        Returns:
            Images (N, C, H, W), float32 in [0, 1]; labels (N,), int64; masks (N, 1, H, W), bool.
        """
        return _as_float(self._images), self._labels.clone(), self._masks.clone()

    @property
    def clean(self) -> ShortcutDataset:
        """The same images without the shortcut."""
        return self.with_mode("clean")

    def with_mode(self, mode: Mode) -> ShortcutDataset:
        """Return the same images in another mode, each with its shortcut in the same place.

        Args:
            mode: ``"train"``, ``"test"`` or ``"clean"``.
        """
        other = copy.copy(self)
        other._set_mode(mode)
        return other

    def subset(self, indices: Sequence[int] | Sequence[bool] | Tensor) -> ShortcutDataset:
        """Return some of the images as they are here, for example a development set with shortcuts as in training.

        Args:
            indices: positions in any order; or a mask of N booleans, such as ``data.labels == 3``.

        Raises:
            IndexError: a position is out of range.
            TypeError: neither integers nor booleans.
            ValueError: a mask of another length, or another shape.
        """
        chosen = _positions(indices, len(self))
        other = copy.copy(self)
        # Drawn for all images and then chosen: an image's shortcut does not depend on which others are chosen.
        made = {train: self._make(train) for train in (True, False)}
        other._made = {train: (images[chosen], masks[chosen]) for train, (images, masks) in made.items()}
        other._base, other._labels = self._base[chosen], self._labels[chosen]
        other._set_mode(self.mode)
        return other

    def _set_mode(self, mode: Mode) -> None:
        if mode not in ("train", "test", "clean"):
            raise ValueError(f"mode: expected 'train', 'test' or 'clean', got {mode!r}")
        self.mode: Mode = mode
        self._images, self._masks = self._make(mode != "test")
        if mode == "clean":
            self._images = self._base.expand(-1, self._images.shape[1], -1, -1)
            self._masks = torch.zeros((), dtype=torch.bool, device=self._base.device).expand_as(self._base)

    def _make(self, train: bool) -> tuple[Tensor, Tensor]:
        if train not in self._made:
            generator = torch.Generator().manual_seed(self.seed)
            self._made[train] = self.shortcut(self._base, self._labels, train=train, generator=generator)
        return self._made[train]


def _in_memory(dataset: Any) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Return images (N, 1, H, W), labels (N,), and the names of the classes."""
    try:
        images, labels = dataset if isinstance(dataset, tuple) else (dataset.data, dataset.targets)
    except AttributeError:
        raise TypeError(
            f"dataset: expected one in memory, with data and targets, got {type(dataset).__name__}; pass (images, labels)"
        ) from None
    images, labels = torch.as_tensor(images), torch.as_tensor(labels)
    if images.dim() == 3:
        images = images.unsqueeze(1)
    if not labels.is_floating_point():
        labels = labels.long()
    return images, labels, tuple(map(str, getattr(dataset, "classes", ())))


def _positions(indices: Any, count: int) -> Tensor:
    """Return the positions, (M,), int64, that integers or a mask choose."""
    expected = f"indices: expected integers from 0 to {count - 1} or {count} booleans"
    try:
        given = torch.as_tensor(indices).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{expected}, got {type(indices).__name__} ({error}); pass a list or a tensor"
        ) from error
    if given.dim() != 1 or (given.dtype == torch.bool and len(given) != count):
        raise ValueError(f"{expected}, got {given.dtype} of shape {tuple(given.shape)}")
    if given.dtype == torch.bool:
        return given.nonzero().flatten()
    if len(given) and (given.dtype == torch.uint8 or given.is_floating_point() or given.is_complex()):
        raise TypeError(f"{expected}, got {given.dtype}; convert a mask by .bool(), positions by .long()")
    given = given.long()
    outside = given[(given < 0) | (given >= count)]
    if len(outside):
        raise IndexError(f"{expected}, got {int(outside[0])}")
    return given


def _as_float(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images.to(torch.float32, copy=True)
