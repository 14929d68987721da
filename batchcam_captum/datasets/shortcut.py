"""A data set in memory with a shortcut in its images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .arguments import choice, positions

Mode = Literal["train", "test", "clean"]


class Shortcut(Protocol):
    """What puts the shortcut in: :func:`decoy`, :func:`color`, :func:`watermark`, or a function like them."""

    def __call__(
        self, images: Tensor, labels: Tensor, *, train: bool, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Put the shortcut in.

        Args:
            images: (N, 1, H, W).
            labels: (N,), int64.
            train: the shortcuts of the training set, which give the label away, or those of the test set.
            generator: of whatever is drawn.

        Returns:
            Images (N, C, H, W) of the same dtype, and where the shortcut is: masks (N, 1, H, W), bool.
        """
        ...


class ShortcutDataset(Dataset[tuple[Any, Any, Tensor]]):
    """A data set in memory with a shortcut in its images, and where the shortcut is.

    All images of a mode are made once, from the seed: they are the same in every epoch, worker and rank, and an image has its
    shortcut in the same place in every ``mode`` and :meth:`subset`. Data sets that :meth:`with_mode` makes of one another share
    what has been made; a subset holds its own images alone.

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
        classes: names of the classes, where the data set has them; otherwise none.
        class_to_idx: the index of each of these names.
        data: the images as they are stored, with the shortcut, before any transform.
        targets: the labels before ``target_transform``.

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
        self._is_subset = False
        self._drawn: dict[bool, tuple[Tensor, Tensor]] = {}
        drawn = self._draw(train=mode != "test")
        self._channels = drawn[0].shape[1]
        if mode != "clean":
            self._drawn[mode == "train"] = drawn
        self._show()

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

    def __repr__(self) -> str:
        """As torchvision's data sets have it."""
        lines = [f"Number of datapoints: {len(self)}", *self.extra_repr().splitlines()]
        for name in ("transform", "target_transform", "joint_transform"):
            if (value := getattr(self, name)) is not None:
                lines += f"{name}: {value!r}".splitlines()
        return "\n    ".join([f"Dataset {type(self).__name__}", *lines])

    def extra_repr(self) -> str:
        """What a data set of this kind is made with, a line each."""
        return f"Mode: {self.mode}\nShortcut: {_described(self.shortcut)}\nSeed: {self.seed}"

    @property
    def labels(self) -> Tensor:
        """(N,), int64."""
        return self._labels

    @property
    def targets(self) -> Tensor:
        """(N,), int64: :attr:`labels` by torchvision's name."""
        return self._labels

    @property
    def data(self) -> Tensor:
        """Images with the shortcut, in the dtype that they came in: (N, H, W), or (N, 3, H, W) in colour. No copy: to be read."""
        return self._images.squeeze(1)

    @property
    def class_to_idx(self) -> dict[str, int]:
        """The index of each class's name; empty without names."""
        return {name: index for index, name in enumerate(self.classes)}

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
        other = self._copy()
        other.mode = mode
        other._show()
        return other

    def subset(self, indices: Sequence[int] | Sequence[bool] | Tensor) -> ShortcutDataset:
        """Some of the images, as they are here: to hold out a development set with shortcuts as in training.

        Args:
            indices: positions in this data set, integers in any order; or a mask of N booleans, such as
                ``data.labels == 3``.

        Raises:
            IndexError: a position is outside.
            TypeError: something else than integers or booleans.
            ValueError: a mask of another length, or another shape.
        """
        chosen = positions(indices, len(self))
        other = self._copy()
        other._is_subset = True
        # Drawn for all images and then chosen, in both modes: an image's shortcut does not depend on which others are chosen.
        both = {train: self._made(train=train) for train in (True, False)}
        other._drawn = {train: (images[chosen], masks[chosen]) for train, (images, masks) in both.items()}
        other._base, other._labels = self._base[chosen], self._labels[chosen]
        other._show()
        return other

    def _copy(self) -> ShortcutDataset:
        other: ShortcutDataset = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __getstate__(self) -> dict[str, Any]:
        """Without what can be made again: workers that are spawned get this."""
        state = {name: value for name, value in self.__dict__.items() if name not in ("_images", "_masks")}
        if not self._is_subset:  # a subset cannot draw, as it lacks the other images
            state["_drawn"] = {
                train: drawn
                for train, drawn in self._drawn.items()
                if self.mode == ("train" if train else "test")
            }
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._show()

    def _show(self) -> None:
        """Take the images and masks of the mode."""
        if self.mode == "clean":
            self._images = self._base.expand(-1, self._channels, -1, -1)
            self._masks = torch.zeros((), dtype=torch.bool, device=self._base.device).expand_as(self._base)
        else:
            self._images, self._masks = self._made(train=self.mode == "train")

    def _made(self, *, train: bool) -> tuple[Tensor, Tensor]:
        """Images and masks as in training, or as in the test set; drawn once."""
        if train not in self._drawn:
            self._drawn[train] = self._draw(train=train)
        return self._drawn[train]

    def _draw(self, *, train: bool) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        return self.shortcut(self._base, self._labels, train=train, generator=generator)


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


def _described(shortcut: Any) -> str:
    """A function by its name, with the options that ``partial`` gave it."""
    if isinstance(shortcut, partial):
        options = [
            *map(repr, shortcut.args),
            *(f"{name}={value!r}" for name, value in shortcut.keywords.items()),
        ]
        return f"{_described(shortcut.func)}({', '.join(options)})"
    return getattr(shortcut, "__name__", None) or repr(shortcut)
