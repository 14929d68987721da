"""Data sets to explain, and how their labels become classes of a model.

A sample is (image, label), the label −1 if there is none. Reading a damaged one raises an error of one line; ``explain_dataset``
notes it and continues.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from ..loading import Preprocessing
from ..loading.images import SUFFIXES, files_in, read_image, reason_of
from ..optional import load

_LISTED = 5


@dataclass(frozen=True)
class Listing:
    """Image files in their order."""

    files: tuple[str, ...]  #: absolute paths, as they are opened
    ids: tuple[str, ...]  #: of the samples
    labels: tuple[int, ...]  #: indices of ``names``, or of the model's classes if there are none; −1: unknown
    names: tuple[str, ...] | None = None  #: of the classes

    def __len__(self) -> int:
        return len(self.files)

    @property
    def paths(self) -> tuple[str, ...]:
        """The files as text that can be written anywhere."""
        return tuple(map(as_text, self.files))


def list_folder(folder: str | os.PathLike[str]) -> Listing:
    """List the images of a folder, at any depth, in the order of their names; hidden ones are left out.

    The folders directly inside are taken as classes, in torchvision's order; an image outside of them has no label. An id is the
    path below the folder.

    Args:
        folder: Its path.

    Returns:
        The files with their ids, labels and classes, for :func:`~batchcam_captum.explain.ImageFiles`.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If there is no image in it.
        OSError: If a folder in it cannot be searched.
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
    parts = [os.path.relpath(path, folder).split(os.sep) for path in files]
    labels = tuple(classes.index(part[0]) if len(part) > 1 else -1 for part in parts)
    names = tuple(map(as_text, classes)) if max(labels) >= 0 else None
    return Listing(files, tuple(as_text("/".join(part)) for part in parts), labels, names)


def list_csv(path: str | os.PathLike[str]) -> Listing:
    """List the images that a CSV names: a header, and one row per image.

    Its columns are ``path``, relative to the folder of the CSV unless it is absolute; and optionally ``label``, an index or the
    name of a class, empty if it is unknown; and ``id``, by default the path as it is written. Others are ignored. Labels are
    indices if all of them are integers. The files need not exist: those that cannot be read are damaged. Values are separated by
    commas, or by semicolons or tabs if the header is.

    Args:
        path: A CSV file in UTF-8.

    Returns:
        The files with their ids, labels and classes, for :func:`~batchcam_captum.explain.ImageFiles`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no CSV, has no column ``path`` or no rows, if a row has no path, or if an id comes twice.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            separators = [
                each for each in ",;\t" if "path" in (name.strip(' "\r\n') for name in header.split(each))
            ]
            file.seek(0)
            rows = csv.DictReader(file, strict=True, restval="", delimiter=(separators or [","])[0])
            columns = [name.strip() for name in rows.fieldnames or ()]
            rows.fieldnames = columns
            found = [(rows.line_num, row) for row in rows]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"data: expected a CSV of paths, got {path}; check the path") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"data: expected a CSV in UTF-8, got {path} ({error}); save it as such") from error
    if columns.count("path") != 1:
        raise ValueError(
            f"data: expected one column path in {path}, got {columns}; add the header path,label,id"
        )
    if not found:
        raise ValueError(f"data: expected one row per image in {path}, got only the header")
    for line, row in found:
        if None in row or not row["path"]:
            got = f"more than {len(columns)} values" if None in row else "no path"
            raise ValueError(
                f"data: expected {columns} in every row of {path}, got {got} in line {line}; quote the values"
            )
    folder = os.path.abspath(path.parent)
    ids = tuple(row.get("id", "").strip() or row["path"] for _, row in found)
    if "id" in columns and (twice := next((each for each, n in Counter(ids).items() if n > 1), None)):
        raise ValueError(f"data: expected a different id for each sample in {path}, got {twice!r} twice")
    labels, names = _labels([row.get("label", "").strip() for _, row in found])
    return Listing(tuple(os.path.join(folder, row["path"]) for _, row in found), ids, labels, names)


def _labels(written: list[str]) -> tuple[tuple[int, ...], tuple[str, ...] | None]:
    """Return labels, and the names of the classes unless all labels are integers already."""
    known = sorted({label for label in written if label})
    try:
        return tuple(max(int(label), -1) if label else -1 for label in written), None
    except ValueError:
        return tuple(known.index(label) if label else -1 for label in written), tuple(known)


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Image files as a model takes them: (image, label), (C, H, W) float32 and a class of the model, −1 if it is unknown.

    They are read by :func:`~batchcam_captum.loading.read_image`. The data set can be pickled, as spawned workers of a
    ``DataLoader`` need.

    Args:
        listing: From :func:`list_folder` or :func:`list_csv`.
        preprocessing: What the model expects, see :func:`~batchcam_captum.loading.preprocessing`.
        classes: The labels as classes of the model; None: as they are.

    Attributes:
        paths: The files.
        ids: The samples' names.
        labels: One per sample.
        class_names: None if they are unknown.

    Raises:
        ValueError: If the preprocessing does not fit.
        ModuleNotFoundError: If Pillow is not installed.
    """

    def __init__(
        self, listing: Listing, preprocessing: Preprocessing | None = None, classes: Classes | None = None
    ) -> None:
        self.preprocessing = preprocessing or Preprocessing()
        self.paths, self.ids = listing.paths, listing.ids
        self.labels = listing.labels if classes is None else tuple(map(classes, listing.labels))
        self.class_names = listing.names if classes is None else classes.names
        self._files = listing.files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Read an image.

        Raises:
            OSError: If the file is missing, damaged, truncated or no image; ``strerror`` says which.
        """
        return self.preprocessing(read_image(self._files[index])), self.labels[index]


class TorchvisionImages(Dataset[tuple[Tensor, int]]):
    """A data set of torchvision as a model takes it: (image, label), as :class:`ImageFiles`.

    Args:
        data: The data set; its samples are (PIL image, target). Targets that are no integers are unknown labels.
        preprocessing: What the model expects.
        classes: The targets as classes of the model; None: as they are.

    Attributes:
        labels: One per sample, −1 if it is unknown; None if they are not known before the samples are read.
        class_names: None if they are unknown.
    """

    def __init__(
        self, data: Any, preprocessing: Preprocessing | None = None, classes: Classes | None = None
    ) -> None:
        self.data = data
        self.preprocessing = preprocessing or Preprocessing()
        self.classes = classes
        targets = integers(getattr(data, "targets", None))
        self.labels = targets if targets is None or classes is None else list(map(classes, targets))
        self.class_names = names_of(data) if classes is None else classes.names

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Read a sample; a damaged one raises whatever the data set raises."""
        image, target = self.data[index][:2]
        try:
            label = target.__index__()
        except (AttributeError, TypeError, ValueError):  # boxes, a mask, several attributes
            label = -1
        return self.preprocessing(image), label if self.classes is None else self.classes(label)


def torchvision_data(name: str, root: str | os.PathLike[str] | None, split: str) -> Any:
    """Return a data set of torchvision that is on the disk already.

    Args:
        name: The name of its class, such as ``"CIFAR10"``.
        root: The folder in which torchvision keeps it.
        split: ``"test"``, ``"train"`` or what the class calls it.

    Raises:
        ValueError: If there is no such class, if it does not take these arguments, or if its samples are no images.
        FileNotFoundError: If it is not there.
        ModuleNotFoundError: If torchvision is not installed.
    """
    import inspect

    datasets = load("torchvision.datasets", purpose=f"data: {name}", package="torchvision")
    if name not in datasets.__all__:
        raise ValueError(
            f"data: expected a data set of torchvision, such as CIFAR10 or ImageNet, got {name!r}; check the name, or pass a "
            "folder of images"
        )
    taken = inspect.signature(getattr(datasets, name)).parameters
    if "root" in taken and root is None:
        raise FileNotFoundError(
            f"data: expected the folder that holds {name}, got none; pass --data-root DIR"
        )
    if "train" in taken and split not in ("train", "test"):
        raise ValueError(f"data: expected the split train or test of {name}, got {split!r}")
    given = {"root": root, "split": split, "image_set": split, "train": split == "train"}
    options = {key: value for key, value in given.items() if key in taken}
    try:
        data = getattr(datasets, name)(**options)
    except (FileNotFoundError, RuntimeError) as error:
        reason = reason_of(error).partition(" You can use download")[0]  # no command here downloads
        raise FileNotFoundError(
            f"data: expected the files of {name} in {root}, got: {reason} Download them there with torchvision, or pass "
            "another --data-root DIR"
        ) from error
    except Exception as error:  # whatever else it raises
        raise ValueError(
            f"data: expected torchvision to open {name} with {options}, got {type(error).__name__}: {reason_of(error)}"
        ) from error
    try:
        sample = data[0]
    except Exception:  # explain_dataset lists it as damaged
        return data
    if not isinstance(sample, tuple | list) or not hasattr(sample[0], "resize"):
        got = type(sample[0] if isinstance(sample, tuple | list) else sample).__name__
        raise ValueError(
            f"data: expected a data set of images, got {name}, whose samples begin with {got}; call explain_dataset from Python"
        )
    return data


@dataclass(frozen=True)
class Classes:
    """How the labels of a data set become classes of a model. Made by :func:`match_classes`."""

    names: tuple[str, ...] | None  #: of the model's K classes
    order: Sequence[int]  #: label of the data set -> class of the model; labels beyond it are unknown
    remark: str | None = None  #: what the user should know

    def __call__(self, label: int) -> int:
        """Return the class of a label, −1 if it is unknown."""
        return self.order[label] if 0 <= label < len(self.order) else -1


def match_classes(
    names: Sequence[str] | None,
    classes: int,
    *,
    given: tuple[str, ...] | None = None,
    packaged: tuple[str, ...] | None = None,
    also: Mapping[str, int] | None = None,
) -> Classes:
    """Match the labels of a data set with the classes of a model.

    By name if the names of the model's classes are known; otherwise in order if there are as many. In every other case the labels
    mean something else, and are left out.

    Args:
        names: The names of the data's classes; None: the labels are classes of the model.
        classes: K of the model.
        given: The names of its classes as the user gives them.
        packaged: The names that are known otherwise.
        also: Other words for its classes.

    Raises:
        ValueError: If there are not K names, or if only some of the data's are among those given.
    """
    if given is not None and len(given) != classes:
        raise ValueError(
            f"classes: expected {classes} names, one for each class of the model, got {len(given)}"
        )
    known = given if given is not None else packaged
    if names is None:
        return Classes(known, range(classes))
    counts = Counter(known or ())  # two of ImageNet's classes are both called crane
    places = dict(also or {}) if known is not None else {}
    places |= {name: place for place, name in enumerate(known or ()) if counts[name] == 1}
    lacking = [name for name in names if name not in places]
    if not lacking:
        return Classes(known, [places[name] for name in names])
    if given is not None and len(lacking) < len(names):
        more = f", … and {len(lacking) - _LISTED} more" if len(lacking) > _LISTED else ""
        raise ValueError(
            f"classes: expected a name for each class of the data, got none for {', '.join(lacking[:_LISTED]) + more}; add them, "
            "or name the classes alike"
        )
    if len(names) == classes:
        return Classes(given or tuple(names), range(classes))
    return Classes(
        known,
        (),
        f"the data has {len(names)} classes and the model {classes}: samples have no label; name the model's classes with "
        "--classes FILE, as the data calls them",
    )


def integers(values: Any) -> list[int] | None:
    """Return a sequence or a tensor of integers as a list; None for anything else."""
    values = values.tolist() if isinstance(values, Tensor) else values
    if isinstance(values, list | tuple) and all(type(each) is int for each in values):
        return list(values)
    return None


def names_of(data: Any) -> tuple[str, ...] | None:
    """Return the names of the classes that a data set of torchvision knows."""
    names = getattr(data, "classes", None)
    if not isinstance(names, list | tuple) or not names:
        return None
    return tuple(str(name[0]) if isinstance(name, tuple | list) else str(name) for name in names)


def as_text(path: str) -> str:
    """Return a path, whose bytes may be no UTF-8, as text."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
