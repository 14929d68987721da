"""Arguments that commands share."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def several(kind: Callable[[str], T]) -> Callable[[str], list[T]]:
    """A ``type=`` that takes values with commas between, for ``action="extend"``.

    Not with spaces: an option that goes on over them takes the images that follow it, too.
    """

    def values(text: str) -> list[T]:
        try:
            return [kind(part.strip()) for part in text.split(",") if part.strip()]
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{error}; put commas between values") from None

    return values


#: What ``MODEL`` may be.
MODEL = (
    "a model of timm or torchvision (resnet18, timm/resnet18, torchvision/resnet18), or a function without arguments that makes "
    "one (package.module:function, path/to/file.py:function)"
)

#: The data sets that are known by a name.
KNOWN_DATA = ("digits", "mnist", "fashion-mnist")


def add_model(group: argparse._ArgumentGroup) -> None:
    """The options of a model that every command has, beside its ``MODEL``.

    Args:
        group: of the options.
    """
    group.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="weights: a state_dict, or safetensors"
    )
    group.add_argument(
        "--layer", metavar="NAME", help="what the maps are of; default: the one that is suggested"
    )
    group.add_argument("--device", default="cpu", help="cpu (the default), cuda, cuda:1, … or mps")


def add_images(group: argparse._ArgumentGroup, size: str) -> None:
    """How images are brought to what a model takes.

    Args:
        group: of the options.
        size: what ``--size`` says of itself.
    """
    own = "default: what the model was trained with"
    group.add_argument("--size", type=several(int), action="extend", metavar="PIXELS", help=f"{size}; {own}")
    for name in ("--mean", "--std"):
        group.add_argument(
            name, type=several(float), action="extend", metavar="NUMBER", help=f"one a channel; {own}"
        )


def remark_random_weights(options: argparse.Namespace) -> None:
    """Say that a model was not trained, where that is so."""
    trained = options.checkpoint is not None or options.pretrained or ":" in options.model
    if not options.quiet and not trained:
        print(
            f"batchcam: {options.model} has random weights; for maps that mean something pass --checkpoint or --pretrained",
            file=sys.stderr,
        )


@contextmanager
def warnings_as_remarks(quiet: bool) -> Iterator[None]:
    """Print warnings as the command's own remarks."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        if not quiet:
            print(f"batchcam: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
