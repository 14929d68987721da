"""MNIST and Fashion-MNIST through torchvision: plain, and with shortcuts."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypedDict, Unpack

from torch import Tensor

from ..optional import load
from .shortcut_dataset import Mode, Shortcut, ShortcutDataset
from .shortcuts import ColorTest, ColorVariant, DecoyVariant, Place, WatermarkTest, color, decoy, watermark

Root = str | os.PathLike[str]
#: The class of torchvision, which is also the name of its folder, for each data set.
_TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}


@dataclass(frozen=True)
class GrayscaleImages:
    """One half of a data set in memory."""

    data: Tensor  #: (N, H, W), uint8
    targets: Tensor  #: (N,), int64
    classes: tuple[str, ...]


def load_mnist(name: str, root: Root | None, *, train: bool, download: bool = False) -> GrayscaleImages:
    """Load the training set or the test set.

    Args:
        name: ``"mnist"`` or ``"fashion-mnist"``.
        root: the folder that contains torchvision's folders ``MNIST`` and ``FashionMNIST``.
        train: the training set, or the test set.
        download: let torchvision download what is missing.

    Raises:
        FileNotFoundError: the folder, or the data set in it, is missing. Nothing is created.
        OSError: the files cannot be read.
        ModuleNotFoundError: torchvision is not installed.
    """
    kind = _TORCHVISION[name]
    if root is None:
        raise FileNotFoundError(
            f"root: expected the folder that contains {kind}, got none; pass root=DIR (the commands' --data-root DIR)"
        )
    raw = Path(root) / kind / "raw"
    if not download and not Path(root).is_dir():
        raise FileNotFoundError(
            f"root: expected a folder, got {root}; check the path (the commands' --data-root)"
        )
    datasets = load("torchvision.datasets", purpose=name, package="torchvision")
    try:
        loaded = getattr(datasets, kind)(root, train=train, download=download)
    except (RuntimeError, OSError, EOFError, ValueError, AssertionError) as error:
        if isinstance(error, RuntimeError) and "download" in str(error).lower():
            raise FileNotFoundError(
                f"root: expected the four files of {name} in {raw}, got fewer; pass the folder above {kind}, or download=True "
                "(--download of batchcam demo)"
            ) from error
        raise OSError(
            f"root: expected readable files of {name} in {raw}, got: {error}; replace them"
        ) from error
    classes = tuple(str(each).split(" - ")[-1] if kind == "MNIST" else str(each) for each in loaded.classes)
    return GrayscaleImages(loaded.data, loaded.targets, classes)  # MNIST's are called "0 - zero" there


class Options(TypedDict, total=False):
    """The keyword arguments of every named data set."""

    mode: Mode | None
    transform: Callable[[Tensor], Any] | None
    target_transform: Callable[[int], Any] | None
    joint_transform: Callable[[Any, Tensor], tuple[Any, Tensor]] | None
    download: bool
    seed: int


class _FromTorchvision(ShortcutDataset):
    """Keeps ``root`` and ``train`` as torchvision's data sets do."""

    source: ClassVar[str]

    def __init__(self, root: Root, train: bool, shortcut: Shortcut, options: Options) -> None:
        self.root, self.train = root, train
        rest: dict[str, Any] = {**options}
        images = load_mnist(self.source, root, train=train, download=rest.pop("download", False))
        mode: Mode = rest.pop("mode", None) or ("train" if train else "test")
        super().__init__(images, shortcut, mode=mode, **rest)


class DecoyMNIST(_FromTorchvision):
    """MNIST with a gray swatch in a corner, after RRR or CDEP; :func:`.decoy` has the facts.

    Args:
        root: the folder that contains torchvision's data sets.
        train: the training or the test images, with the shortcuts of that set.
        variant: ``"rrr"`` or ``"cdep"``.
        place: ``"random"`` corner, or ``"fixed"``.
        **options: ``mode``, ``transform``, ``target_transform``, ``joint_transform`` and ``seed`` of :class:`ShortcutDataset`
            (default mode: that of the set), and ``download=True`` to let torchvision download what is missing.

    Raises:
        OSError: the files are missing or cannot be read.
        ModuleNotFoundError: torchvision is not installed.
        ValueError: an option does not fit.
    """

    source = "mnist"

    def __init__(
        self,
        root: Root,
        train: bool = True,
        *,
        variant: DecoyVariant = "rrr",
        place: Place = "random",
        **options: Unpack[Options],
    ) -> None:
        super().__init__(root, train, partial(decoy, variant=variant, place=place), options)


class DecoyFashionMNIST(DecoyMNIST):
    """Fashion-MNIST with a gray swatch in a corner; takes the arguments of :class:`DecoyMNIST`."""

    source = "fashion-mnist"


class ColorMNIST(_FromTorchvision):
    """MNIST in colors that give the class away; :func:`.color` has the facts and the limits.

    Args:
        root: the folder that contains torchvision's data sets.
        train: the training or the test images, with the colors of that set.
        variant: ``"foreground"`` or ``"background"``.
        correlation: the share of training images with the color of their own class.
        spread: standard deviation of noise on the colors.
        test: ``"reversed"`` or ``"random"``.
        **options: ``mode``, ``transform``, ``target_transform``, ``joint_transform`` and ``seed`` of :class:`ShortcutDataset`
            (default mode: that of the set), and ``download=True`` to let torchvision download what is missing.

    Raises:
        OSError: the files are missing or cannot be read.
        ModuleNotFoundError: torchvision is not installed.
        ValueError: an option does not fit.
    """

    source = "mnist"

    def __init__(
        self,
        root: Root,
        train: bool = True,
        *,
        variant: ColorVariant = "foreground",
        correlation: float = 1.0,
        spread: float = 0.0,
        test: ColorTest = "reversed",
        **options: Unpack[Options],
    ) -> None:
        shortcut = partial(color, variant=variant, correlation=correlation, spread=spread, test=test)
        super().__init__(root, train, shortcut, options)


class WatermarkMNIST(_FromTorchvision):
    """MNIST with a faint mark near the border; :func:`.watermark` has the facts.

    Args:
        root: the folder that contains torchvision's data sets.
        train: the training or the test images, with the marks of that set.
        place: ``"fixed"`` or ``"random"``.
        share: of the images that have a mark.
        opacity: of the mark.
        test: ``"other"`` or ``"none"``.
        **options: ``mode``, ``transform``, ``target_transform``, ``joint_transform`` and ``seed`` of :class:`ShortcutDataset`
            (default mode: that of the set), and ``download=True`` to let torchvision download what is missing.

    Raises:
        OSError: the files are missing or cannot be read.
        ModuleNotFoundError: torchvision is not installed.
        ValueError: an option does not fit.
    """

    source = "mnist"

    def __init__(
        self,
        root: Root,
        train: bool = True,
        *,
        place: Place = "fixed",
        share: float = 1.0,
        opacity: float = 0.7,
        test: WatermarkTest = "other",
        **options: Unpack[Options],
    ) -> None:
        shortcut = partial(watermark, place=place, share=share, opacity=opacity, test=test)
        super().__init__(root, train, shortcut, options)


class WatermarkFashionMNIST(WatermarkMNIST):
    """Fashion-MNIST with a faint mark near the border; takes the arguments of :class:`WatermarkMNIST`."""

    source = "fashion-mnist"
