"""MNIST and Fashion-MNIST through torchvision, with errors that say what to do."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..files import folders_taken_back
from ..optional import load

#: torchvision's class, which is also the name of its folder, for each data set.
TORCHVISION_NAMES: dict[str, str] = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}


class Wording(NamedTuple):
    """What the caller's users call the arguments."""

    root: str  #: the argument's name
    pass_root: str  #: how to give it
    pass_download: str | None  #: how to ask for a download; None: the caller has none


IN_PYTHON = Wording("root", "root=DIR", "download=True")
ON_THE_COMMAND_LINE = Wording("--data-root", "--data-root DIR", "--download")
WITHOUT_DOWNLOAD = Wording("--data-root", "--data-root DIR", None)


@dataclass(frozen=True)
class GreyImages:
    """One half of a data set in memory."""

    data: Tensor  #: (N, H, W), uint8
    targets: Tensor  #: (N,), int64
    classes: tuple[str, ...]


def grey_images(
    name: str,
    root: str | os.PathLike[str] | None,
    *,
    train: bool,
    download: bool = False,
    wording: Wording = IN_PYTHON,
) -> GreyImages:
    """Load the training or the test set.

    Args:
        name: ``"mnist"`` or ``"fashion-mnist"``.
        root: the folder that torchvision keeps its data sets in, above ``MNIST`` and ``FashionMNIST``.
        train: which of the two.
        download: let torchvision download what is missing.
        wording: what errors call the arguments.

    Raises:
        FileNotFoundError: the folder, or the data set in it, is missing. Nothing is made.
        OSError: the files cannot be read.
        ModuleNotFoundError: torchvision is not installed.
    """
    kind_name = TORCHVISION_NAMES[name]
    if root is None:
        raise FileNotFoundError(
            f"{wording.root}: expected the folder that holds {name}, got none; pass {wording.pass_root}"
            + (
                f", and {wording.pass_download} to fill it"
                if wording.pass_download
                else f", the one above {kind_name}"
            )
        )
    root = Path(root)
    if not download and not root.is_dir():
        raise FileNotFoundError(
            f"{wording.root}: expected a folder, got {root}; check the path"
            + (f", or pass {wording.pass_download}" if wording.pass_download else "")
        )
    datasets = load("torchvision.datasets", purpose=name, package="torchvision")
    raw = root / kind_name / "raw"
    try:
        with folders_taken_back(raw):
            loaded = getattr(datasets, kind_name)(root, train=train, download=download)
    except (RuntimeError, OSError, EOFError, ValueError, AssertionError) as error:
        if isinstance(error, RuntimeError) and "download" in str(error).lower():  # it is not there
            if wording.pass_download is None:  # torchvision's own words recommend one as well
                raise FileNotFoundError(
                    f"{wording.root}: expected the four files of {name} in {raw}, got less; pass {wording.pass_root}, the folder "
                    f"above {kind_name}"
                ) from error
            raise FileNotFoundError(
                f"{wording.root}: expected the four files of {name} in {raw}, got: {error}; pass {wording.pass_download} on a "
                f"machine with access to the internet, or the folder above {kind_name}"
            ) from error
        raise OSError(
            f"{wording.root}: expected readable files of {name} in {raw}, got: {error}; replace them"
        ) from error
    # MNIST's classes are called "0 - zero" there.
    names = tuple(
        str(name).split(" - ")[-1] if kind_name == "MNIST" else str(name) for name in loaded.classes
    )
    return GreyImages(loaded.data, loaded.targets, names)
