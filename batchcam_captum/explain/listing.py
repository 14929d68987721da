"""Which samples there are to explain: the images of a folder, those that a CSV lists, and torchvision's data sets."""

from __future__ import annotations

import csv
import os
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..loading.images import SUFFIXES, files_in, reason_of
from ..optional import load

#: What may stand between the values of a CSV; spreadsheets write the second where the first is the decimal sign.
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}


@dataclass(frozen=True)
class Listing:
    """Which images there are, in their order."""

    files: tuple[str, ...]  #: what is opened: absolute paths
    ids: tuple[str, ...]  #: of the samples
    labels: tuple[
        int, ...
    ]  #: a place among ``names``, or a class of the model where there are none; −1: not known
    names: tuple[str, ...] | None = None  #: of the classes that the labels count

    def __len__(self) -> int:
        return len(self.files)

    @property
    def paths(self) -> tuple[str, ...]:
        """The files as text that can be written anywhere."""
        return tuple(map(as_text, self.files))


def list_folder(folder: str | os.PathLike[str]) -> Listing:
    """The images of a folder, at any depth, in the order of their names; hidden ones are left out.

    The folders directly inside are taken as classes, in torchvision's order; an image that lies in none has no label. An id is
    the path below the folder.

    Args:
        folder: its path.

    Returns:
        The files with their ids, labels and classes: what :func:`~batchcam_captum.explain.ImageFiles` is made of.

    Raises:
        FileNotFoundError: no folder.
        ValueError: no image in it.
        OSError: a folder in it that cannot be searched.
    """
    folder = os.path.abspath(folder)
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"data: expected a folder of images, got {as_text(folder)}; check the path")
    unreadable: dict[str, str] = {}
    files = tuple(files_in(folder, unreadable))
    if unreadable:
        path, reason = next(iter(unreadable.items()))
        raise OSError(f"data: expected folders that can be searched, got {as_text(path)} ({reason})")
    if not files:
        raise ValueError(
            f"data: expected images in {as_text(folder)} or in folders below, got none of {' '.join(sorted(SUFFIXES))}; check "
            "the path"
        )
    with os.scandir(folder) as entries:
        classes = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    places = {name: place for place, name in enumerate(classes)}
    parts = [os.path.relpath(path, folder).split(os.sep) for path in files]
    labels = tuple(places[part[0]] if len(part) > 1 else -1 for part in parts)
    named = max(labels) >= 0
    return Listing(
        files,
        tuple(as_text("/".join(part)) for part in parts),
        labels,
        tuple(map(as_text, classes)) if named else None,
    )


def list_csv(path: str | os.PathLike[str]) -> Listing:
    """The images that a CSV lists: a header, and a row for each.

    Its columns are ``path``, below the folder of the CSV unless it is absolute; and, as far as they are there, ``label``, an
    index or the name of a class, empty where it is not known; and ``id``, by default the path as it is written. Others are
    ignored. Labels are indices where all of them are integers. The files need not exist: those that cannot be read are damaged.
    Between values are commas, or semicolons or tabs where the header has its column ``path`` with these alone.

    Args:
        path: of the CSV, in UTF-8.

    Returns:
        The files with their ids, labels and classes: what :func:`~batchcam_captum.explain.ImageFiles` is made of.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no CSV, one without a column ``path`` or without rows, a row without a path, an id that comes twice.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            delimiter = _delimiter(file.readline())
            file.seek(0)
            rows = csv.DictReader(file, strict=True, restval="", delimiter=delimiter)
            columns = [str(column).strip() for column in rows.fieldnames or ()]
            rows.fieldnames = columns
            if "path" not in columns:
                raise ValueError(
                    f"data: expected the columns path and, where known, label and id, with commas between, in {path}, got "
                    f"{', '.join(columns) or 'an empty file'}"
                )
            found = [(rows.line_num, row) for row in rows]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"data: expected a CSV of paths, got {path}; check the path") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"data: expected a CSV in UTF-8, got {path} ({error}); save it as such") from error
    if not found:
        raise ValueError(f"data: expected a row for each image in {path}, got the header alone")
    between = _DELIMITERS[delimiter]
    for line, row in found:
        if None in row:
            raise ValueError(
                f"data: expected {len(columns)} values in every row of {path}, got more in line {line}; put what has {between} "
                "in double quotes"
            )
        if not row["path"]:
            raise ValueError(f"data: expected a path in every row of {path}, got none in line {line}")
    folder = os.path.abspath(path.parent)
    ids = tuple(row.get("id", "").strip() or row["path"] for _, row in found)
    if "id" in columns and (twice := next((each for each, n in Counter(ids).items() if n > 1), None)):
        raise ValueError(f"data: expected an id for each sample in {path}, got {twice!r} twice")
    labels, names = _labels([row.get("label", "").strip() for _, row in found])
    return Listing(tuple(os.path.join(folder, row["path"]) for _, row in found), ids, labels, names)


def _delimiter(header: str) -> str:
    """By the header: the first with which it has a column ``path``; guesses from the rows fail with paths of any kind."""
    for delimiter in _DELIMITERS:
        with suppress(csv.Error):  # told where the rows are read
            columns = next(csv.reader([header], strict=True, delimiter=delimiter), [])
            if "path" in map(str.strip, columns):
                return delimiter
    return ","


def _labels(written: list[str]) -> tuple[tuple[int, ...], tuple[str, ...] | None]:
    """Labels, and the names of the classes that they count, in order, where they are not indices already."""
    known = {label for label in written if label}
    try:
        indices = {label: int(label) for label in known}
    except ValueError:
        names = tuple(sorted(known))
        places = {name: place for place, name in enumerate(names)}
        return tuple(places.get(label, -1) for label in written), names
    return tuple(max(indices.get(label, -1), -1) for label in written), None


def torchvision_data(name: str, root: str | os.PathLike[str] | None, split: str) -> Any:
    """A data set of torchvision that is on the disk already.

    Args:
        name: of its class, ``"CIFAR10"``.
        root: the folder that torchvision keeps it in.
        split: ``"test"``, ``"train"`` or what the class calls it.

    Raises:
        ValueError: no class of this name, one that does not take these arguments, or one whose samples are no images.
        FileNotFoundError: it is not there.
        ModuleNotFoundError: torchvision is not installed.
    """
    import inspect
    from difflib import get_close_matches

    datasets = load("torchvision.datasets", purpose=f"data: {name}", package="torchvision")
    kind = getattr(datasets, name, None) if name in datasets.__all__ else None
    if kind is None:
        close = get_close_matches(name, datasets.__all__) or ["CIFAR10", "ImageNet", "…"]
        raise ValueError(
            f"data: expected a data set of torchvision, got {name!r}; it has {', '.join(close)}, or give a folder of images"
        )
    taken = inspect.signature(kind).parameters
    options: dict[str, Any] = {}
    if "root" in taken:
        if root is None:
            raise FileNotFoundError(
                f"data: expected the folder that holds {name}, got none; pass --data-root DIR"
            )
        options["root"] = root
    for argument in ("split", "image_set"):
        if argument in taken:
            options[argument] = split
    if "train" in taken:
        if split not in ("train", "test"):
            raise ValueError(f"data: expected the split train or test of {name}, got {split!r}")
        options["train"] = split == "train"
    try:
        data = kind(**options)
    except Exception as error:  # whatever it raises for what is not there
        if isinstance(error, FileNotFoundError | RuntimeError):
            reason = reason_of(error).partition(" You can use download")[0]  # no command here downloads
            raise FileNotFoundError(
                f"data: expected the files of {name} in {root}, got: {reason} Download them there with torchvision, or pass "
                "another --data-root DIR"
            ) from error
        raise ValueError(
            f"data: expected torchvision to open {name} with {options}, got {type(error).__name__}: {reason_of(error)}"
        ) from error
    _check_samples(data, name)
    return data


def _check_samples(data: Any, name: str) -> None:
    """That the first sample is an image; where it is damaged, it is not known."""
    try:
        sample = data[0]
    except Exception:  # noted as damaged later
        return
    if not isinstance(sample, tuple | list) or not hasattr(sample[0], "resize"):
        got = type(sample[0] if isinstance(sample, tuple | list) else sample).__name__
        raise ValueError(
            f"data: expected a data set of images, got {name}, whose samples begin with {got}; pass a function of your own to "
            "explain_dataset"
        )


def names_of(data: Any) -> tuple[str, ...] | None:
    """The names of the classes that a data set of torchvision knows."""
    names = getattr(data, "classes", None)
    if not isinstance(names, list | tuple) or not names:
        return None
    return tuple(str(name[0]) if isinstance(name, tuple | list) else str(name) for name in names)


def as_text(path: str) -> str:
    """A path whose bytes may be no UTF-8, as text."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
