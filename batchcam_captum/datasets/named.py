"""MNIST and Fashion-MNIST with shortcuts, as torchvision would offer them."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, TypedDict, Unpack

from torch import Tensor

from .color import ColorTest, ColorVariant, color
from .decoy import DecoyVariant, Place, decoy
from .shortcut import Mode, Shortcut, ShortcutDataset
from .torchvision_files import grey_images
from .watermark import WatermarkTest, watermark

Root = str | os.PathLike[str]


class Options(TypedDict, total=False):
    """What all of them take by keyword."""

    #: ``"train"``, ``"test"`` or ``"clean"``, to choose the shortcuts apart from the images; None: those of the set.
    mode: Mode | None
    transform: Callable[[Tensor], Any] | None  #: see :class:`ShortcutDataset`
    target_transform: Callable[[int], Any] | None  #: of each label
    joint_transform: Callable[[Any, Tensor], tuple[Any, Tensor]] | None  #: of image and mask together
    download: bool  #: let torchvision download what is missing
    seed: int  #: of what is drawn


class _FromTorchvision(ShortcutDataset):
    """What the ready-made kinds share: ``root`` and ``train`` are kept as torchvision's data sets keep them."""

    source: ClassVar[str]  #: a name of ``torchvision_files.TORCHVISION_NAMES``

    def __init__(self, root: Root, train: bool, shortcut: Shortcut, options: Options) -> None:
        self.root, self.train = root, train
        rest: dict[str, Any] = {**options}
        images = grey_images(self.source, root, train=train, download=rest.pop("download", False))
        mode: Mode = rest.pop("mode", None) or ("train" if train else "test")
        super().__init__(images, shortcut, mode=mode, **rest)

    def extra_repr(self) -> str:
        """Root and split before the rest."""
        split = "Train" if self.train else "Test"
        return f"Root location: {self.root}\nSplit: {split}\n{super().extra_repr()}"


class DecoyMNIST(_FromTorchvision):
    """MNIST with a grey swatch in a corner, after RRR or after CDEP; :func:`.decoy` has the facts.

    Args:
        root: the folder that torchvision keeps its data sets in.
        train: the training or the test images, with that set's shortcuts.
        variant: ``"rrr"`` or ``"cdep"``.
        place: ``"random"`` corner, or ``"fixed"``.
        **options: those of all named data sets:

            - ``mode``: ``"train"``, ``"test"`` or ``"clean"``, to choose the shortcuts apart from the images. Default: those of
              the set.
            - ``transform``, ``target_transform`` and ``joint_transform``: of an image, a label, and an image and its mask, see
              :class:`ShortcutDataset`.
            - ``download``: let torchvision download what is missing. Default: no.
            - ``seed``: of what is drawn. Default: 0.

    Raises:
        FileNotFoundError: the folder, or the data set in it, is missing.
        OSError: the files cannot be read.
        ModuleNotFoundError: torchvision is not installed.
        ValueError: a choice that does not exist.
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
        super().__init__(
            root,
            train,
            partial(decoy, variant=variant, place=place),
            options,
        )


class DecoyFashionMNIST(DecoyMNIST):
    """Fashion-MNIST with a grey swatch in a corner; for its arguments see :class:`DecoyMNIST`."""

    source = "fashion-mnist"


class ColorMNIST(_FromTorchvision):
    """MNIST in colours that give the class away; :func:`.color` has the facts and the limits.

    Args:
        root: the folder that torchvision keeps its data sets in.
        train: the training or the test images, with that set's colours.
        variant: ``"foreground"`` or ``"background"``.
        correlation: the share of training images with their own class's colour.
        spread: standard deviation of noise on the colours.
        test: ``"reversed"`` or ``"random"``.
        **options: those of all named data sets, see :class:`DecoyMNIST`.

    Raises:
        FileNotFoundError: the folder, or the data set in it, is missing.
        OSError: the files cannot be read.
        ModuleNotFoundError: torchvision is not installed.
        ValueError: an option that does not fit.
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
        super().__init__(
            root,
            train,
            partial(color, variant=variant, correlation=correlation, spread=spread, test=test),
            options,
        )


class WatermarkMNIST(_FromTorchvision):
    """MNIST with a faint mark near the border; :func:`.watermark` has the facts.

    Args:
        root: the folder that torchvision keeps its data sets in.
        train: the training or the test images, with that set's marks.
        place: ``"fixed"`` or ``"random"``.
        share: of the images that have a mark.
        opacity: of the mark.
        test: ``"other"`` or ``"none"``.
        **options: those of all named data sets, see :class:`DecoyMNIST`.

    Raises:
        FileNotFoundError: the folder, or the data set in it, is missing.
        OSError: the files cannot be read.
        ModuleNotFoundError: torchvision is not installed.
        ValueError: an option that does not fit.
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
        super().__init__(
            root,
            train,
            partial(watermark, place=place, share=share, opacity=opacity, test=test),
            options,
        )


class WatermarkFashionMNIST(WatermarkMNIST):
    """Fashion-MNIST with a faint mark near the border; for its arguments see :class:`WatermarkMNIST`."""

    source = "fashion-mnist"
