"""Read what :func:`~batchcam_captum.explain.explain_dataset` has written.

A store may come from a stranger, and Zarr does what an array's metadata say, which in its older format may be to unpickle. So the
metadata are compared with those that this package writes before Zarr reads any of them.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..optional import load
from .layout import FORMAT, KEY, MASK_METRICS, NAMES, Layout, Status

if TYPE_CHECKING:
    import pandas

#: Zarr's file of a group or an array, and the record of the chunks that are written.
METADATA, PROGRESS = "zarr.json", "batchcam-progress.json"
#: Metadata of Zarr's older format.
_OLDER = re.compile(r"\.z(group|array|attrs|metadata)")


class Store:
    """Maps, scores and samples of a data set, read on demand. Made by :func:`open_store`.

    The arrays are Zarr arrays: a slice reads the chunks that it touches, ``store.maps[:100]``; ``[:]`` reads everything.
    N samples, M maps per sample, K classes.

    Args:
        path: The store's folder.
        arrays: Its Zarr arrays by name.
        layout: Their sizes.
        about: ``settings``, ``class_names``, ``environments``, ``chunks`` (checksums of the chunks that are written).
    """

    #: (N, M, h, w) float16 or float32: signed, as the weighting gives them; NaN where there is none.
    maps: Any
    #: (N, M) int32: the class that each map explains; −1 where there is none.
    targets: Any
    #: (N, K) float32: what the model returned, before any softmax; NaN where there is none.
    scores: Any
    #: (N,) int32: the class with the highest score; −1 where there is none.
    predictions: Any
    #: (N,) float32: the highest softmax probability; NaN where there is none.
    confidences: Any
    #: (N,) int32: the true class; −1 where it is unknown.
    labels: Any
    #: (N,) strings: the samples' names; by default their positions in the data set.
    ids: Any
    #: (N,) strings: the samples' files; empty where there are none.
    paths: Any
    #: (N,) strings: why a sample is damaged; empty for the others.
    problems: Any
    #: (N,) uint8: 0 not written yet, 1 written, 2 damaged.
    status: Any
    #: (N, height, width, 3) uint8: small pictures of the inputs; None if the store has none.
    thumbnails: Any | None

    def __init__(
        self, path: Path, arrays: Mapping[str, Any], layout: Layout, about: Mapping[str, Any]
    ) -> None:
        self.path = path
        self.layout = layout
        self.about = about
        #: Name -> (N, M) float32, of maps and masks; empty if the data set has no masks. NaN where there is none.
        self.metrics = {name: arrays[name] for name in layout.metrics}
        for name in NAMES:
            if name not in MASK_METRICS:
                setattr(self, name, arrays.get(name))

    def __len__(self) -> int:
        return self.layout.samples

    def __repr__(self) -> str:
        done = "complete" if self.complete else "not complete"
        return f"Store({str(self.path)!r}, {len(self)} samples, maps {self.layout.maps} {self.layout.dtype}, {done})"

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (self.path,)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that the values depend on except machine and versions."""
        return dict(self.about["settings"])

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """K names, if they are known."""
        names = self.about["class_names"]
        return None if names is None else tuple(names)

    @property
    def complete(self) -> bool:
        """True if every sample is written or known to be damaged."""
        return len(self.about["chunks"]) == self.layout.chunks

    def written(self) -> np.ndarray[Any, Any]:
        """Return the positions of the samples that have maps."""
        return np.flatnonzero(np.asarray(self.status[:]) == Status.WRITTEN)

    def verify(self, chunks: Iterable[int] | None = None) -> dict[int, list[str]]:
        """Read the files of written chunks and compare them with their checksums.

        Args:
            chunks: Which chunks. Default: all that are written.

        Returns:
            Chunk -> its files that are missing, unreadable or changed; chunks without any are left out. ``explain_dataset`` with
            the same arguments computes them again.
        """
        found = {}
        for chunk in self.about["chunks"] if chunks is None else chunks:
            files = [f"{name}/{array.file_name(chunk)}" for name, array in self.layout.arrays().items()]
            sums = zip(files, self.about["chunks"][chunk], strict=True)
            if changed := [file for file, checksum in sums if _checksum(self.path / file) != checksum]:
                found[chunk] = changed
        return found

    def frame(self) -> pandas.DataFrame:
        """Return the samples as a table with one row per sample, in the order of the data set.

        Returns:
            ``id``, ``path``, ``status`` (``"missing"``, ``"written"``, ``"damaged"``), ``problem``, ``label``, ``prediction``,
            ``confidence``, ``correct`` (missing if the label is unknown), and the metrics of the first map.

        Raises:
            ModuleNotFoundError: If pandas is not installed.
        """
        pandas = load("pandas", purpose="Store.frame", extra="explain")
        labels, predictions = np.asarray(self.labels[:]), np.asarray(self.predictions[:])
        names = np.array([each.name.lower() for each in Status], dtype=object)
        columns = {
            "id": np.asarray(self.ids[:], dtype=object),
            "path": np.asarray(self.paths[:], dtype=object),
            "status": names[np.asarray(self.status[:])],
            "problem": np.asarray(self.problems[:], dtype=object),
            "label": pandas.array(labels, dtype="Int32"),
            "prediction": pandas.array(predictions, dtype="Int32"),
            "confidence": np.asarray(self.confidences[:]),
            "correct": pandas.array(labels == predictions, dtype="boolean"),
        }
        columns["label"][labels < 0] = pandas.NA
        columns["prediction"][predictions < 0] = pandas.NA
        columns["correct"][(labels < 0) | (predictions < 0)] = pandas.NA
        columns |= {name: np.asarray(array[:, 0]) for name, array in self.metrics.items()}
        return pandas.DataFrame(columns, index=pandas.RangeIndex(len(self), name="position"))

    def dataset(self, images: Dataset[Any] | None = None) -> StoredMaps:
        """Return the written samples as a ``torch.utils.data.Dataset`` of (image, map).

        Args:
            images: The data set that was explained, in the same order, of images or of tuples that begin with one. Default: the
                thumbnails, (3, height, width) float32 in [0, 1].

        Raises:
            ValueError: If there are neither images nor thumbnails, or for a data set of another length.
        """
        return StoredMaps(self, images)


class StoredMaps(Dataset[tuple[Any, Tensor]]):
    """(image, map) of each written sample, the map (M, h, w) in float32. Made by :meth:`.Store.dataset`.

    Zarr decompresses whole chunks, so each process keeps the one that it has read last. A batch in random order reads each chunk
    once.

    Attributes:
        positions: The positions of the samples in the store.
    """

    def __init__(self, store: Store, images: Dataset[Any] | None) -> None:
        self.store, self.images = store, images
        self.positions = store.written()
        self._kept: dict[str, tuple[int, np.ndarray[Any, Any]]] = {}
        if images is None and store.thumbnails is None:
            raise ValueError(
                "images: expected the data set that was explained, as the store has no thumbnails, got None"
            )
        if images is not None and len(images) != len(store):  # type: ignore[arg-type]
            raise ValueError(
                f"images: expected the {len(store)} samples of the store, got {len(images)}; pass the data set that was explained"  # type: ignore[arg-type]
            )

    def __len__(self) -> int:
        return len(self.positions)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": {}}

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, Tensor]]:
        """Return the samples of a batch, as a ``DataLoader`` asks for them."""
        positions = self.positions[np.asarray(indices, dtype=int)]
        maps = torch.from_numpy(self._rows("maps", positions).astype(np.float32, copy=False))
        if self.images is None:
            pixels = torch.from_numpy(self._rows("thumbnails", positions))
            images: list[Any] = list(pixels.permute(0, 3, 1, 2).float() / 255)
        else:
            samples = [self.images[int(position)] for position in positions]
            images = [each[0] if isinstance(each, tuple | list) else each for each in samples]
        return list(zip(images, maps, strict=True))

    def _rows(self, name: str, positions: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return rows of an array in any order."""
        array, layout = getattr(self.store, name), self.store.layout
        found = np.empty((len(positions), *array.shape[1:]), array.dtype)
        chunks = positions // layout.chunk
        for chunk in map(int, np.unique(chunks)):
            if name not in self._kept or self._kept[name][0] != chunk:
                self._kept[name] = chunk, np.asarray(array[layout.rows(chunk)])
            chosen = chunks == chunk
            found[chosen] = self._kept[name][1][positions[chosen] - chunk * layout.chunk]
        return found


def open_store(path: str | os.PathLike[str]) -> Store:
    """Open a store for reading, complete or not.

    Args:
        path: The store's folder.

    Returns:
        The store. Only metadata have been read.

    Raises:
        FileNotFoundError: If there is nothing.
        ValueError: If it is no store, a damaged one, one of another version, or one that holds arrays, codecs, folders or links
            that this package does not write.
        ModuleNotFoundError: If zarr is not installed.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: expected a store of explain_dataset or batchcam explain, got nothing; check the path"
        )
    zarr = load("zarr", purpose="a store", extra="explain")
    about = read_about(path)
    _check_files(path)
    layout = _read_layout(path)
    group = zarr.open_group(path, mode="r", zarr_format=3, use_consolidated=False)
    arrays = {name: group[name] for name in layout.arrays()}
    return Store(path, arrays, layout, about | read_progress(path, layout))


def read_about(path: Path) -> dict[str, Any]:
    """Return what a store's group says about it, without Zarr.

    Raises:
        ValueError: If the folder holds no store, or one of another version.
    """
    try:
        known = _read_json(path / METADATA)
        about = dict(known["attributes"][KEY])
        version = about["format"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"{path}: expected a store of explain_dataset or batchcam explain, got something else ({type(error).__name__})"
        ) from error
    if version != FORMAT:
        raise ValueError(
            f"{path}: expected a store of version {FORMAT}, got one of version {version!r}; read it with the version of "
            "batchcam-captum that wrote it, or remove the folder and explain the data set again"
        )
    _check_metadata(
        path,
        {"zarr_format": 3, "node_type": "group", "consolidated_metadata": None, "attributes": {KEY: about}},
        known,
    )
    for name, kind in {"settings": dict, "class_names": list | None}.items():
        if not isinstance(about.get(name), kind):
            raise _unexpected(path, f"{KEY}.{name}", f"a value of type {kind}", about.get(name))
    return about


def read_progress(path: Path, layout: Layout) -> dict[str, Any]:
    """Return ``environments`` and ``chunks`` of the progress record; both are empty if it cannot be read.

    Returns:
        ``chunks``: chunk -> the CRC-32 of its file in each array.
    """
    names = layout.arrays()
    try:
        known = _read_json(path / PROGRESS)
        chunks = {int(chunk): list(sums) for chunk, sums in known["chunks"].items()}
        environments = [dict(each) for each in known["environments"]]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {"environments": [], "chunks": {}}
    right = {
        chunk: sums
        for chunk, sums in chunks.items()
        if 0 <= chunk < layout.chunks and len(sums) == len(names)
    }
    return {"environments": environments, "chunks": right}


def _read_layout(path: Path) -> Layout:
    """Return the sizes of the arrays, whose metadata have to be those that this package writes."""
    names = [name for name in NAMES if (path / name).is_dir()]
    if lacking := [name for name in Layout(1, 1, (1,), 1).arrays() if name not in names]:
        raise ValueError(
            f"{path}: expected a whole store, got one without {', '.join(lacking)}; explain the data set again"
        )
    known, shapes = {}, {}
    for name in names:
        try:
            known[name] = _read_json(path / name / METADATA)
            shapes[name] = known[name]["shape"], known[name]["chunk_grid"]["configuration"]["chunk_shape"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ValueError(
                f"{path / name}: expected the metadata of a Zarr 3 array, got something else ({type(error).__name__}); explain "
                "the data set again"
            ) from error
        for key, sizes in zip(("shape", "chunk_grid"), shapes[name], strict=True):
            if (
                not isinstance(sizes, list)
                or not sizes
                or not all(type(size) is int and size > 0 for size in sizes)
            ):
                raise _unexpected(path / name, key, "positive integers", sizes)
    layout = Layout(
        samples=shapes["maps"][0][0],
        chunk=shapes["maps"][1][0],
        maps=tuple(shapes["maps"][0][1:]) or (1,),
        classes=shapes["scores"][0][-1],
        dtype="float16" if known["maps"]["data_type"] == "float16" else "float32",
        thumbnail=tuple(shapes["thumbnails"][0][1:3]) if "thumbnails" in names else None,
        metrics=tuple(name for name in MASK_METRICS if name in names),
    )
    for name, array in layout.arrays().items():
        _check_metadata(path / name, array.metadata(layout.chunk), known[name])
    return layout


def _check_metadata(folder: Path, expected: dict[str, Any], got: dict[str, Any]) -> None:
    """Compare metadata as text, because 1, 1.0 and true are equal in Python."""
    for key in sorted(expected.keys() | got.keys()):
        one, other = (json.dumps(each.get(key), sort_keys=True) for each in (expected, got))
        if one != other:
            raise _unexpected(folder, key, one, got.get(key))


def _check_files(path: Path) -> None:
    """Refuse links, special files, metadata of Zarr's older format, and folders that are not an array's."""
    for where, entry in entries(path):
        if entry.is_symlink():
            what = "a symbolic link"
        elif entry.is_dir(follow_symlinks=False):
            what = "" if where in NAMES else "a folder that is not an array's"
        elif entry.is_file(follow_symlinks=False):
            what = "metadata of Zarr's older format" if _OLDER.fullmatch(entry.name) else ""
        else:
            what = "a special file" if os.path.lexists(entry.path) else ""  # another process may be writing
        if what:
            raise ValueError(
                f"{path / where}: expected only files that this package writes in a store, got {what}; remove it if you know "
                "where it comes from, and do not open the store otherwise"
            )


def entries(path: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield what is in a store's folder and in those of its arrays, with the path below the store's folder."""
    for folder in ("", *NAMES):
        if (path / folder).is_symlink() and folder:
            continue  # the entry itself has been yielded
        try:
            with os.scandir(path / folder) as found:
                yield from ((f"{folder}/{entry.name}" if folder else entry.name, entry) for entry in found)
        except (FileNotFoundError, NotADirectoryError):
            continue


def _read_json(file: Path) -> dict[str, Any]:
    """Read an object from a regular file that is no link."""
    if file.is_symlink() or not file.is_file():
        raise FileNotFoundError(file)
    try:
        found = json.loads(file.read_bytes())
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(found, dict):
        raise TypeError("expected an object")
    return found


def _checksum(file: Path) -> int | None:
    try:
        return zlib.crc32(file.read_bytes())
    except OSError:
        return None


def _unexpected(folder: Path, key: str, expected: str, got: Any) -> ValueError:
    return ValueError(
        f"{folder / METADATA}: expected {key} = {expected}, as this package writes it, got {repr(got)[:200]}; explain the data "
        "set again, or ask where the store comes from"
    )
