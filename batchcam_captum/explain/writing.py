"""Stores that are written a chunk at a time, by one process or by several."""

from __future__ import annotations

import glob
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..files import umask
from ..optional import load
from .layout import FORMAT, KEY, Layout, Status
from .store import Store, open_store

#: Seconds that a rank waits for the one that makes the store.
_PATIENCE = 60.0
_PARTIAL = ".partial"
#: Descriptors of the locks of this process.
_HELD: set[int] = set()


class OtherSettingsError(ValueError):
    """A store that was begun with other settings."""


class StoreWriter:
    """A store being written. Use :func:`writing`."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path = path
        self.layout = layout
        self._group = _zarr().open_group(path, mode="r+")

    def status(self) -> np.ndarray[Any, Any]:
        """Of every sample, :class:`.Status`."""
        return np.asarray(self._group["status"][:])

    def missing(self, rank: int = 0, world_size: int = 1) -> list[int]:
        """The chunks of a rank that are not written yet."""
        status = self.status()
        return [
            chunk
            for chunk in range(rank, self.layout.chunks, world_size)
            if (status[self.layout.rows(chunk)] == Status.MISSING).any()
        ]

    def write(self, chunk: int, columns: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Write a chunk, and say so last.

        Args:
            chunk: which one.
            columns: array name -> the chunk's rows. What is left out stays as it is filled.

        Raises:
            OSError: the disk is full, or the folder cannot be written to; what was written before is kept.
        """
        rows = self.layout.rows(chunk)
        try:
            for name in self.layout.arrays():
                if name in columns:
                    self._group[name][rows] = columns[name]
        except OSError as error:
            raise OSError(
                error.errno,
                f"{self.path}: expected a folder with room to write to, got: {error.strerror or error}; what is written is kept: "
                "make room and run the same again",
            ) from error

    def finish(self) -> bool:
        """Note in the store whether it is complete; return that. The last of several processes to come here notes it."""
        status = self.status()
        if (status == Status.MISSING).any():
            return False
        group = _zarr().open_group(self.path, mode="r+")  # anew: others may have noted something
        about = dict(group.attrs[KEY])
        about |= {
            "complete": True,
            "written": int((status == Status.WRITTEN).sum()),
            "damaged": int((status == Status.DAMAGED).sum()),
        }
        group.attrs[KEY] = about
        return True


@contextmanager
def writing(
    path: str | os.PathLike[str],
    layout: Layout,
    *,
    settings: Mapping[str, Any],
    environment: Mapping[str, Any],
    class_names: tuple[str, ...] | None = None,
    overwrite: bool = False,
    alone: bool = True,
) -> Iterator[StoreWriter]:
    """Make a store, or go on with one.

    Args:
        path: of the store's folder.
        layout: its sizes.
        settings: all that its numbers depend on but for machine and versions, in plain values that JSON holds.
        environment: machine and versions. Those of a run that goes on are added, where they differ.
        class_names: K names.
        overwrite: remove a store that is there.
        alone: no other process writes. Otherwise several may, that have different chunks.

    Raises:
        OtherSettingsError: a store of other settings; the message names them.
        ValueError: a folder that is no store, a store of another version, or one that another process is writing.
        OSError: a folder that cannot be written to.
    """
    path = _real(path)
    if overwrite:
        remove_store(path)
    about = {
        "format": FORMAT,
        "settings": _plain(settings),
        "class_names": None if class_names is None else list(class_names),
        "environments": [_plain(environment)],
        "complete": False,
    }
    _make(path, layout, about)
    open_store(path, any_format=True)  # refuses what is none, before anything in there is cleared up
    with _locked(path, alone):
        _check(open_store(path), layout, about)
        yield StoreWriter(path, layout)


def remove_store(path: str | os.PathLike[str]) -> None:
    """Remove a store, of whatever settings, and nothing else.

    Raises:
        ValueError: there is something else, or a store that another process is writing.
    """
    path = _real(path)
    if is_empty(path):
        return
    open_store(path, any_format=True)  # refuses what is none
    with _locked(path, alone=True):
        # Out of the way in one step: of a store that is half removed nobody could say that it was one.
        removed = tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=_PARTIAL)
        os.rename(path, Path(removed, path.name))
    shutil.rmtree(removed)


def _real(path: str | os.PathLike[str]) -> Path:
    """Where a link leads, which could not be replaced by a folder."""
    path = Path(path)
    return path.resolve() if path.is_symlink() else path


def is_empty(path: Path) -> bool:
    """Whether a store can be made there: nothing, or a folder with nothing in it."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def _zarr() -> Any:
    return load("zarr", purpose="a store", extra="explain")


def _plain(values: Mapping[str, Any]) -> Any:
    """As JSON gives it back, so that what is read can be compared with what would be written."""
    return json.loads(json.dumps(values))


def _make(path: Path, layout: Layout, about: Mapping[str, Any]) -> None:
    """Make the store whole, or not at all; where another process was faster, its store stays."""
    if not is_empty(path):
        return
    made = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        made = tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=_PARTIAL)
        group = _zarr().create_group(made)
        for name, array in layout.arrays().items():
            group.create_array(
                name,
                shape=array.shape,
                chunks=(layout.chunk, *array.shape[1:]),
                dtype=array.dtype,
                fill_value=array.fill,
            )
        group.attrs[KEY] = dict(about)
        os.chmod(made, 0o777 & ~umask())
        os.rename(made, path)
    except OSError as error:
        # The process that was faster may have cleared up what this one was making.
        if is_empty(path):
            raise OSError(
                error.errno,
                f"{path}: expected a folder that can be written to, got: {error.strerror or error}; make room, or choose another",
            ) from error
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)


@contextmanager
def _locked(path: Path, alone: bool) -> Iterator[None]:
    """Keep others out, or those at least that would write alone; the first who comes clears up after those who were killed."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    _HELD.add(descriptor)
    try:
        until = time.monotonic() + (0 if alone else _PATIENCE)
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                with suppress(BlockingIOError):
                    if not alone:
                        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                        break
                if time.monotonic() >= until:
                    raise ValueError(
                        f"{path}: expected a store that nobody is writing, got one that another process has open; wait for it"
                    ) from error
                time.sleep(0.1)
            except OSError:  # a file system without locks
                break
            else:
                _clear_up(path)
                if not alone:
                    fcntl.flock(descriptor, fcntl.LOCK_SH)
                break
        yield
    finally:
        if descriptor in _HELD:
            _HELD.remove(descriptor)
            os.close(descriptor)


def _let_go() -> None:
    """In a process that was forked, such as a worker of a loader: it may outlive this one, and would keep the lock."""
    while _HELD:
        os.close(_HELD.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def _clear_up(path: Path) -> None:
    """Remove what processes that were killed have left half written."""
    for folder, _, files in os.walk(path):
        for name in files:
            if name.endswith(_PARTIAL):
                Path(folder, name).unlink(missing_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*{_PARTIAL}"):
        shutil.rmtree(left, ignore_errors=True)


def _check(store: Store, layout: Layout, about: Mapping[str, Any]) -> None:
    """Refuse a store of other settings, and add this machine to those that worked on it."""
    there, wanted = dict(store.about), dict(about)
    differing = differences(
        there["settings"] | {"class_names": there["class_names"]},
        wanted["settings"] | {"class_names": wanted["class_names"]},
    )
    if not differing:
        differing = differences(
            {name: [*array.shape, "chunks of", array.chunks[0]] for name, array in store.arrays().items()},
            {name: [*array.shape, "chunks of", layout.chunk] for name, array in layout.arrays().items()},
        )
    if differing:
        raise OtherSettingsError(
            f"{store.path}: expected a store of the same settings, got {'; '.join(differing)}; choose another folder, or pass "
            "overwrite=True (--overwrite) to begin anew"
        )
    added = [each for each in wanted["environments"] if each not in there["environments"]]
    if added:
        there["environments"] = [*there["environments"], *added]
        _zarr().open_group(store.path, mode="r+").attrs[KEY] = there


def differences(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Settings that differ, each as ``name = A there, B here``; those inside of others with a dotted name."""
    found: list[str] = []
    for key in sorted(there.keys() | here.keys()):
        name, one, other = prefix + key, there.get(key), here.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            found += differences(one, other, f"{name}.")
        elif one != other:
            found.append(f"{name} = {_short(one)} there, {_short(other)} here")
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
