"""Write a store a chunk at a time, in one process or in several.

The files of a chunk come first, then its entry in the progress record. A process may be killed at any point: a chunk that is not
in the record is computed again.
"""

from __future__ import annotations

import json
import os
import re
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..files import replace_file
from ..optional import load
from .layout import FORMAT, KEY, NAMES, Array, Layout, Status
from .store import METADATA, PROGRESS, Store, entries, open_store, read_about, read_progress

#: Lock of the progress record, held for a moment; a writer holds ``….lock.RANK-of-WORLD_SIZE`` as long as it runs.
_LOCK = ".batchcam.lock"
#: Seconds to wait for the record, and for a writer: workers of a killed process hold its lock until they notice.
_RECORD_TIMEOUT, _WRITER_TIMEOUT = 60, 10
#: What this package writes into a store's folder and into those of its arrays. Nothing else is ever removed.
_OWN_FILES = re.compile(
    rf"({re.escape(METADATA)}|{re.escape(PROGRESS)})(\.partial)?|{re.escape(_LOCK)}(\.\d+-of-\d+)?|"
    rf"({'|'.join(NAMES)})/(zarr\.json|c(\.\d+)+)(\.partial)?"
)
_NAMED = 3


class OtherSettingsError(ValueError):
    """Raised for a store that was begun with other settings."""


class StoreWriter:
    """A store that is being written. Made by :func:`writing`."""

    def __init__(self, store: Store, rank: int, world_size: int) -> None:
        self.path, self.layout = store.path, store.layout
        self._store = store
        self._own = range(rank, self.layout.chunks, world_size)
        self._recorded = {chunk for chunk in self._own if chunk in store.about["chunks"]}
        self._lost = 0

    def missing(self, *, retry_damaged: bool = False) -> list[int]:
        """Return the chunks of this writer that have to be computed; those whose files were lost or changed are among them.

        Args:
            retry_damaged: Include chunks with damaged samples. They stay as they are until they are written again.
        """
        self.forget(self._store.verify(sorted(self._recorded)))
        done = {
            chunk
            for chunk in self._recorded
            if not retry_damaged or (self._status(chunk) != Status.DAMAGED).all()
        }
        return [chunk for chunk in self._own if chunk not in done]

    def write(self, chunk: int, columns: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Write a chunk. One that is recorded is replaced if that brings damaged samples back and loses none.

        Args:
            chunk: Which chunk.
            columns: Array name -> the chunk's rows; missing ones are filled with the array's fill value.

        Raises:
            OSError: If the disk is full or the folder cannot be written to. What was written before is kept.
        """
        arrays = self.layout.arrays()
        if chunk in self._recorded and not self._is_better(chunk, columns["status"]):
            return
        self.forget([chunk])
        with _os_errors(self.path):
            sums = []
            for name, array in arrays.items():
                data = _encode(array, self.layout.chunk, columns.get(name))
                replace_file(self.path / name / array.file_name(chunk), data)
                sums.append(zlib.crc32(data))
            with _progress(self.path, self.layout) as progress:
                progress["chunks"][chunk] = sums
        self._recorded.add(chunk)

    def forget(self, chunks: Iterable[int]) -> None:
        """Mark chunks as missing, so that they are computed again.

        Raises:
            OSError: If the folder cannot be written to.
        """
        status = self.layout.arrays()["status"]
        chunks = set(chunks)
        with _os_errors(self.path):
            for chunk in chunks:
                (self.path / "status" / status.file_name(chunk)).unlink(missing_ok=True)
            if chunks & self._recorded:
                with _progress(self.path, self.layout) as progress:
                    for chunk in chunks:
                        progress["chunks"].pop(chunk, None)
        self._recorded -= chunks

    def warn_lost(self) -> None:
        """Warn of samples that were written earlier and could not be read again."""
        if self._lost:
            warnings.warn(
                f"{self._lost} of the store's samples cannot be read now; their chunks are left unchanged, damaged samples "
                "included",
                stacklevel=4,
            )

    def _status(self, chunk: int) -> np.ndarray[Any, Any]:
        return np.asarray(self._store.status[self.layout.rows(chunk)])

    def _is_better(self, chunk: int, status: np.ndarray[Any, Any]) -> bool:
        before = self._status(chunk)
        lost = int(((before == Status.WRITTEN) & (status == Status.DAMAGED)).sum())
        self._lost += lost
        return not lost and bool(((before == Status.DAMAGED) & (status == Status.WRITTEN)).any())


@contextmanager
def writing(
    path: str | os.PathLike[str],
    layout: Layout,
    *,
    settings: Mapping[str, Any],
    environment: Mapping[str, Any],
    class_names: tuple[str, ...] | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[StoreWriter]:
    """Make a store, or resume one.

    Args:
        path: The store's folder. An existing empty folder is used.
        layout: The sizes of its arrays.
        settings: Everything that its values depend on except machine and versions, in plain values.
        environment: Machine and versions. Those of a run that resumes are added if they differ.
        class_names: K names.
        rank: Which part of the chunks this process writes, 0 … world_size − 1.
        world_size: The number of parts.

    Raises:
        OtherSettingsError: If the store has other settings; the message names them.
        ValueError: If the folder is no store or another process is writing the same chunks; if settings hold NaN.
        TypeError: If settings hold values that JSON does not know.
        OSError: If the folder cannot be written to.
    """
    about = {
        "format": FORMAT,
        "settings": _plain(settings),
        "class_names": None if class_names is None else list(class_names),
    }
    path, machine = check_output(path), _plain(environment)
    with _os_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        with _locked(path / _LOCK, _RECORD_TIMEOUT):
            held.enter_context(_locked(path / f"{_LOCK}.{rank}-of-{world_size}", _WRITER_TIMEOUT))
            for other in path.glob(f"{_LOCK}.*-of-*"):
                if not other.name.endswith(f"-of-{world_size}"):  # its chunks overlap these
                    with _locked(other, _WRITER_TIMEOUT):
                        pass
            if not (check_output(path) / METADATA).exists():
                with _os_errors(path):
                    _create(path, layout, about)
            _check_settings(open_store(path), layout, about)
        with _os_errors(path), _progress(path, layout) as progress:
            if machine not in progress["environments"]:
                progress["environments"].append(machine)
        yield StoreWriter(open_store(path), rank, world_size)


def check_output(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a folder that is a store, or that a store can be made in.

    Raises:
        ValueError: If there is something else, or a store of another version.
    """
    if not os.fspath(path):
        raise ValueError("store: expected the path of a folder, got ''; pass '.' for the current one")
    path = Path(path).resolve()
    if path.exists() and not _is_free(path):
        read_about(path)
    return path


def remove_store(path: str | os.PathLike[str]) -> None:
    """Remove a store's files by their names; its folder stays.

    Raises:
        ValueError: If there is something else, or something else as well, or if another process is writing the store.
        OSError: If it cannot be removed.
    """
    path = check_output(path)
    if not path.exists():
        return
    with _os_errors(path), _locked(path / _LOCK, _RECORD_TIMEOUT):
        if others := _foreign_files(path):
            listed = ", ".join([*others[:_NAMED], *(["…"] if len(others) > _NAMED else [])])
            raise ValueError(
                f"{path}: expected a store and nothing else to remove, got other files in its folder ({listed}); move them away "
                "first"
            )
        for lock in path.glob(f"{_LOCK}.*"):
            with _locked(lock, _WRITER_TIMEOUT):
                pass
        _remove(path)


def _is_free(path: Path) -> bool:
    """Return True for an empty folder, or one in which a killed process has begun to make or to remove a store."""
    if not path.is_dir() or (path / METADATA).exists():
        return False
    names = {where for where, _ in entries(path) if not where.startswith(_LOCK)}
    return not names or (bool(names & {PROGRESS, f"{PROGRESS}.partial"}) and not _foreign_files(path))


def _foreign_files(path: Path) -> list[str]:
    """Return what this package has not written into a store's folder."""
    return sorted(
        where
        for where, entry in entries(path)
        if not (entry.is_dir(follow_symlinks=False) and where in NAMES)
        and not (entry.is_file(follow_symlinks=False) and _OWN_FILES.fullmatch(where))
    )


def _create(path: Path, layout: Layout, about: Mapping[str, Any]) -> None:
    """Write the progress record first, which marks the folder as this package's, and the group's metadata last."""
    _remove(path)
    replace_file(path / PROGRESS, _json({"environments": [], "chunks": {}}))
    for name, array in layout.arrays().items():
        (path / name).mkdir()
        replace_file(path / name / METADATA, _json(array.metadata(layout.chunk)))
    group = {"zarr_format": 3, "node_type": "group", "attributes": {KEY: about}}
    replace_file(path / METADATA, _json(group), sync=True)


def _remove(path: Path) -> None:
    """Remove a store in the reverse order of making one. Lock files stay."""
    (path / METADATA).unlink(missing_ok=True)
    for where in [where for where, _ in entries(path) if "/" in where and _OWN_FILES.fullmatch(where)]:
        (path / where).unlink()
    for name in NAMES:
        if (path / name).exists():
            (path / name).rmdir()
    for name in (f"{METADATA}.partial", f"{PROGRESS}.partial", PROGRESS):
        (path / name).unlink(missing_ok=True)


@contextmanager
def _locked(file: Path, timeout: float) -> Iterator[None]:
    filelock = load("filelock", purpose="a store", extra="explain")
    lock = filelock.FileLock(file)
    try:
        with _os_errors(file.parent):
            lock.acquire(timeout=timeout)
    except filelock.Timeout as error:
        raise ValueError(
            f"{file.parent}: expected a store that nobody is writing, got one that another process is writing; wait for it"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _progress(path: Path, layout: Layout) -> Iterator[dict[str, Any]]:
    """Read the progress record for a change, and replace it afterwards."""
    with _locked(path / _LOCK, _RECORD_TIMEOUT):
        progress = read_progress(path, layout)
        yield progress
        machines = sorted(progress["environments"], key=lambda each: json.dumps(each, sort_keys=True))
        chunks = dict(sorted(progress["chunks"].items()))
        replace_file(path / PROGRESS, _json({"environments": machines, "chunks": chunks}), sync=True)


def _encode(array: Array, chunk: int, values: np.ndarray[Any, Any] | None) -> bytes:
    """Return a chunk as Zarr's codecs of :meth:`.Array.metadata` encode it."""
    codecs = load("numcodecs", purpose="a store", extra="explain")
    whole = np.full(
        (chunk, *array.shape[1:]), array.fill, dtype=object if array.dtype == "string" else array.dtype
    )
    if values is not None:
        whole[: len(values)] = values
    if array.dtype == "string":
        data = codecs.VLenUTF8().encode(whole)
    else:
        data = whole.astype(whole.dtype.newbyteorder("<"), copy=False)
    return bytes(codecs.Zstd(level=0).encode(data))


def _check_settings(store: Store, layout: Layout, about: Mapping[str, Any]) -> None:
    there = store.settings | {"class_names": store.about["class_names"]}
    here = about["settings"] | {"class_names": about["class_names"]}
    differing = differences(there, here) or differences(asdict(store.layout), asdict(layout))
    if differing:
        raise OtherSettingsError(
            f"{store.path}: expected a store of the same settings, got {'; '.join(differing)}; pass the settings of the store to "
            "resume it, choose another folder, or pass overwrite=True (--overwrite) to remove it and start again"
        )


def differences(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the settings that differ, as ``name = A there, B here``; nested ones have a dotted name."""
    found: list[str] = []
    for key in sorted(there.keys() | here.keys()):
        one, other = there.get(key), here.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            found += differences(one, other, f"{prefix}{key}.")
        elif one != other:
            found.append(f"{prefix}{key} = {_shortened(one)} there, {_shortened(other)} here")
    return found


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:40]}…{text[-19:]}"


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as JSON gives them back.

    Raises:
        TypeError: If one is unknown to JSON, such as a path.
        ValueError: If one is NaN, which does not equal itself, or infinite.
    """
    found = {}
    for name, value in values.items():
        try:
            found[str(name)] = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise type(error)(
                f"{name}: expected text, finite numbers, True, False, None, or lists and dicts of these, got {value!r} ({error})"
            ) from error
    return found


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


@contextmanager
def _os_errors(path: Path) -> Iterator[None]:
    """Name the store in an error of the system, and say what to do."""
    try:
        yield
    except OSError as error:
        if error.errno is None or str(path) in str(error.strerror):
            raise
        raise OSError(
            error.errno,
            f"{path}: expected a folder that can be written to, got: {error.strerror}; what is written is kept: free disk space "
            "or check the folder and its permissions, then run the same again",
        ) from error
