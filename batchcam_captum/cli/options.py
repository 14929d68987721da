"""The options that several commands share."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

#: The data sets that have a name.
KNOWN_DATA = ("digits", "mnist", "fashion-mnist")


def comma_separated(kind: Callable[[str], Any]) -> Callable[[Any], list[Any]]:
    """Return a parser of values with commas between them; after spaces, file names would be taken for values."""

    def parse(text: Any) -> list[Any]:
        try:
            values = [kind(part.strip()) for part in str(text).split(",") if part.strip()]
        except ValueError as error:
            raise typer.BadParameter(f"{error}; separate values by commas") from None
        if not values:
            raise typer.BadParameter("expected at least one value")
        return values

    return parse


_OWN = "Default: what the model was trained with."

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A model of timm or torchvision (resnet18, timm/resnet18, torchvision/resnet18), or a function without arguments "
        "that returns one (package.module:function, path/to/file.py:function).",
    ),
]
DemoModel = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A model of timm or torchvision (resnet18, timm/resnet18, torchvision/resnet18), a function without arguments "
        "that returns one (package.module:function, path/to/file.py:function), or demo for a checkpoint of batchcam demo.",
    ),
]
Checkpoint = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Weights: a state dict of torch.save, or safetensors.")
]
Pretrained = Annotated[
    bool, typer.Option("--pretrained", help="Use the library's own weights, which it may download.")
]
NumClasses = Annotated[
    int | None,
    typer.Option(
        metavar="K", min=1, help="Classes of a library's model. Default: as many as the weights have."
    ),
]
Layer = Annotated[
    str | None, typer.Option(metavar="NAME", help="The layer to explain. Default: the suggested one.")
]
Method = Annotated[str, typer.Option(metavar="NAME", help="How the channels are weighted.")]
Device = Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, ... or mps.")]
Size = Annotated[
    Any,
    typer.Option(
        parser=comma_separated(int),
        metavar="PIXELS",
        help=f"Height and width of the images, as 224,224, or one number for both. {_OWN}",
    ),
]
Mean = Annotated[
    Any,
    typer.Option(
        parser=comma_separated(float), metavar="NUMBERS", help=f"Mean of each channel, in [0, 1]. {_OWN}"
    ),
]
Std = Annotated[
    Any,
    typer.Option(
        parser=comma_separated(float), metavar="NUMBERS", help=f"Standard deviation of each channel. {_OWN}"
    ),
]
Data = Annotated[
    str,
    typer.Option(
        metavar="DATA",
        help="A folder of images, in which the folders are the classes; a CSV with the column path, and label and id if known; a "
        f"data set of torchvision, such as torchvision/CIFAR10; or {', '.join(KNOWN_DATA)}.",
    ),
]
DataRoot = Annotated[Path | None, typer.Option(metavar="DIR", help="The folder of torchvision's data sets.")]
BatchSize = Annotated[int, typer.Option(metavar="N", min=1, help="Images per batch.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print no progress and no remarks.")]


def printable(text: object) -> str:
    """Escape what would break a line or control a terminal; file names may contain anything."""
    line = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in str(text))
    encoding = sys.stdout.encoding or "utf-8"
    return line.encode(encoding, "backslashreplace").decode(encoding)


def remark(text: object, quiet: bool = False) -> None:
    """Print one line to standard error."""
    if not quiet:
        print("batchcam:", printable(text), file=sys.stderr)


@contextmanager
def warnings_as_remarks(quiet: bool) -> Iterator[None]:
    """Print the warnings of the body as remarks."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        remark(message, quiet)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def show_progress(quiet: bool) -> bool:
    """Return True if somebody watches."""
    return not quiet and sys.stderr.isatty()
