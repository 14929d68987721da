"""Stores that are written a chunk at a time, by one process or by several."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..optional import load
from . import folders
from .differing import differences, plain
from .folders import is_free, real
from .layout import FORMAT, KEY, Layout, Status
from .locks import at_work, changing
from .remedies import named
from .store import Store, open_store

__all__ = ["OtherSettingsError", "StoreWriter", "is_free", "remove_store", "writing"]

#: How many of those files are named that are in the way.
_NAMED = 3


class OtherSettingsError(ValueError):
    """A store that was begun with other settings."""


class StoreWriter:
    """A store being written. Use :func:`writing`."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path = path
        self.layout = layout
        self._group = _group(path, "r+")

    def status(self) -> np.ndarray[Any, Any]:
        """Of every sample, :class:`.Status`."""
        return np.asarray(self._group["status"][:])

    def missing(self, rank: int = 0, world_size: int = 1, *, retry_damaged: bool = False) -> list[int]:
        """The chunks of a rank that are not written yet.

        Args:
            rank: 0 … world_size − 1.
            world_size: how many processes share the chunks.
            retry_damaged: those with a damaged sample, too. They are what they were until they are written anew, as a whole.
        """
        status = self.status()
        wanted = [Status.MISSING, Status.DAMAGED] if retry_damaged else [Status.MISSING]
        return [
            chunk
            for chunk in range(rank, self.layout.chunks, world_size)
            if np.isin(status[self.layout.rows(chunk)], wanted).any()
        ]

    def write(self, chunk: int, columns: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Write a chunk, and say so last. One that is there is taken back before, so that a process may be killed at any point.

        Args:
            chunk: which one.
            columns: array name -> the chunk's rows. What is left out is filled as in a store that is new.

        Raises:
            OSError: the disk is full, or the folder cannot be written to; what was written before is kept.
        """
        self.take_back([chunk])
        rows = self.layout.rows(chunk)
        with named(self.path, kept=True):
            for name, array in self.layout.arrays().items():
                self._group[name][rows] = columns.get(name, array.fill)

    def take_back(self, chunks: Iterable[int]) -> None:
        """Count chunks as missing again, and the store as not complete. Those that are missing stay as they are.

        Args:
            chunks: which ones.

        Raises:
            OSError: see :meth:`write`.
        """
        with named(self.path, kept=True):
            os.stat(self.path / folders.METADATA)  # Zarr would make folders where the store is gone
            status = self._group["status"]
            parts = [self.layout.rows(chunk) for chunk in chunks]
            there = [rows for rows in parts if (np.asarray(status[rows]) != Status.MISSING).any()]
            if not there:
                return
            with _changing(self.path) as about:
                if about["complete"]:
                    about["complete"] = False
                    for count in ("written", "damaged"):
                        about.pop(count, None)
                    _note(self.path, about)
                for rows in there:
                    status[rows] = Status.MISSING

    def finish(self) -> bool:
        """Note in the store whether it is complete; return that. The last of several processes to come here notes it.

        Raises:
            OSError: see :meth:`write`.
        """
        with named(self.path, kept=True), _changing(self.path) as about:
            status = self.status()
            if (status == Status.MISSING).any():
                return False
            about |= {
                "complete": True,
                "written": int((status == Status.WRITTEN).sum()),
                "damaged": int((status == Status.DAMAGED).sum()),
            }
            _note(self.path, about)
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
        path: of the store's folder. One that is there and empty, a mount point for example, becomes the store's.
        layout: its sizes.
        settings: all that its numbers depend on but for machine and versions, in plain values that JSON holds.
        environment: machine and versions, with its ``device``, of which the kind alone is kept. Those of a run that goes on are
            added, where they differ.
        class_names: K names.
        overwrite: remove a store that is there.
        alone: no other process writes. Otherwise several may, that have different chunks.

    Raises:
        OtherSettingsError: a store of other settings; the message names them.
        ValueError: no path, a folder that is no store, a store of another version, or one that another process is writing;
            settings with NaN; with ``overwrite``, files that are not the store's.
        TypeError: settings that JSON does not hold.
        OSError: a folder that cannot be written to.
    """
    path = real(path)
    about = {
        "format": FORMAT,
        "settings": plain(settings),
        "class_names": None if class_names is None else list(class_names),
        "environments": [_machine(environment)],
        "complete": False,
    }
    if overwrite:
        remove_store(path)
    with ExitStack() as held:
        with named(path, kept=True):
            _make(path, layout, about)
            open_store(path)  # refuses what is none, before anything in there is cleared up
            held.enter_context(at_work(path, _to_lock(path), alone, tidy=lambda: folders.clear_up(path)))
            _check(open_store(path), layout, about)
            writer = StoreWriter(path, layout)
        yield writer


def remove_store(path: str | os.PathLike[str]) -> None:
    """Remove a store, of whatever settings, and nothing else.

    Raises:
        ValueError: there is something else, or something else as well, or a store that another process is writing.
        OSError: it cannot be written to.
    """
    path = real(path)
    if is_free(path):
        return
    with named(path):
        store = open_store(path, any_format=True)  # refuses what is none
        arrays = folders.arrays(path, store.about["format"])
        if others := folders.foreign(path, arrays):
            several = ", ".join([*others[:_NAMED], *(["…"] if len(others) > _NAMED else [])])
            raise ValueError(
                f"{path}: expected a store and nothing else to remove, got other files in its folder ({several}); move them away "
                "first"
            )
        file = _to_lock(path)
        # Another version may have no such array, and one that is damaged.
        with at_work(path, file if file.exists() else path, True, tidy=lambda: folders.clear_up(path)):
            removed = folders.remove(path, arrays)
        # What other processes have open may stay for now, on NFS; who writes there next clears up.
        shutil.rmtree(removed, ignore_errors=True)


def _to_lock(path: Path) -> Path:
    """Not the file that :func:`_changing` locks."""
    return path / "maps" / folders.METADATA


def _zarr() -> Any:
    return load("zarr", purpose="a store", extra="explain")


def _group(path: Path, mode: str) -> Any:
    return _zarr().open_group(path, mode=mode, zarr_format=3, use_consolidated=False)


def _machine(environment: Mapping[str, Any]) -> dict[str, Any]:
    """The second GPU of a machine gives the numbers of the first."""
    found = plain(environment)
    return found | ({"device": found["device"].partition(":")[0]} if "device" in found else {})


def _make(path: Path, layout: Layout, about: Mapping[str, Any]) -> None:
    def build(folder: Path) -> None:
        group = _zarr().create_group(folder)
        for name, array in layout.arrays().items():
            group.create_array(
                name,
                shape=array.shape,
                chunks=(layout.chunk, *array.shape[1:]),
                dtype=array.dtype,
                fill_value=array.fill,
            )
        group.attrs[KEY] = dict(about)

    if is_free(path):
        with named(path):
            folders.make(path, build)


@contextmanager
def _changing(path: Path) -> Iterator[dict[str, Any]]:
    """The store's metadata as they are now, which no other process changes meanwhile. :func:`_note` keeps what is changed.

    Zarr replaces the file in one step, so that those who read need no lock. It is not the file to lock, then: that of ``status``
    always stays as it was made.
    """
    with changing(path / "status" / folders.METADATA):
        yield dict(_group(path, "r").attrs[KEY])


def _note(path: Path, about: Mapping[str, Any]) -> None:
    _group(path, "r+").attrs[KEY] = dict(about)


def _check(store: Store, layout: Layout, about: Mapping[str, Any]) -> None:
    """Refuse a store of other settings, and add this machine to those that worked on it."""
    differing = differences(
        store.settings | {"class_names": store.about["class_names"]},
        about["settings"] | {"class_names": about["class_names"]},
    )
    if not differing:
        differing = differences(
            {name: [*array.shape, "chunks of", array.chunks[0]] for name, array in store.arrays().items()},
            {name: [*array.shape, "chunks of", layout.chunk] for name, array in layout.arrays().items()},
        )
    if differing:
        raise OtherSettingsError(
            f"{store.path}: expected a store of the same settings, got {'; '.join(differing)}; give the settings that are "
            "there to go on with it, choose another folder, or pass overwrite=True (--overwrite) to remove it and begin anew"
        )
    with _changing(store.path) as there:
        known = there["environments"]
        added = [each for each in about["environments"] if each not in known]
        if added:
            # In an order that does not hang on which process came first.
            there["environments"] = sorted(
                [*known, *added], key=lambda each: json.dumps(each, sort_keys=True)
            )
            _note(store.path, there)
