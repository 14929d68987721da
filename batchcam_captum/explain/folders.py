"""Folders of stores: made whole or not at all, taken away in one step, with nothing of anybody else's."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from ..files import umask
from .layout import KEY, NAMES
from .locks import making

#: Ends the names of what is half made.
_PARTIAL = ".partial"
#: Zarr's file of a group or an array, and its folder of an array's chunks.
METADATA, _CHUNKS = "zarr.json", "c"
#: Zarr's names for files that are not whole yet.
_FILE = re.compile(r"(zarr|\d+)\.[0-9a-f]+\.partial")
#: A folder inside a store's folder, from which the store is moved there, or to which it is moved away.
_INSIDE = re.compile(rf"\.{KEY}\.[^.]+\.partial")
#: What systems put into folders by themselves.
_OF_SYSTEMS = frozenset({".DS_Store", "Thumbs.db", "desktop.ini", "lost+found"})


def real(path: str | os.PathLike[str]) -> Path:
    """The absolute path, and where links lead, which could not be replaced by a folder.

    Raises:
        ValueError: no path.
    """
    if not os.fspath(path):
        raise ValueError("store: expected the path of a folder, got ''; pass '.' for the current one")
    return Path(path).resolve()


def is_empty(path: Path) -> bool:
    """Whether a store can be made there: nothing, a folder with nothing in it, or with what a killed process has left in one.

    Such a process has made or removed a store; that there is a temporary folder and no metadata of the group tells it.
    """
    if not path.exists():
        return True
    if not path.is_dir():
        return False
    names = _names(path)
    others = {name for name in names if not _INSIDE.fullmatch(name)}
    return not others or (others < names and others <= set(NAMES))


def make(path: Path, build: Callable[[Path], None]) -> None:
    """Make a store whole, or not at all; where another process was faster, its store stays.

    Args:
        path: absolute, see :func:`is_empty`.
        build: fills an empty folder.

    Raises:
        OSError: nothing can be written there.
        ValueError: another process is making the store, and does not come to an end.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.samefile(os.curdir):
            # Another folder in its place would not be the one that somebody stands in, such as a shell.
            _make_inside(path, build)
        else:
            _make_beside(path, build)
    except OSError:
        # The process that was faster may have cleared up what this one was making.
        if not is_empty(path):
            return
        if not path.is_dir():
            raise
        # A mount point, a folder in one that is read-only, or one in which a killed process has left something.
        _make_inside(path, build)


def _make_beside(path: Path, build: Callable[[Path], None]) -> None:
    made = tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=_PARTIAL)
    try:
        build(Path(made))
        os.chmod(made, 0o777 & ~umask())
        os.rename(made, path)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _make_inside(path: Path, build: Callable[[Path], None]) -> None:
    """The metadata of the group, by which a store is known, come last."""
    with making(path, lambda: is_empty(path)) as needed:
        if not needed:
            return
        for name in _names(path):
            shutil.rmtree(path / name)
        made = Path(tempfile.mkdtemp(dir=path, prefix=f".{KEY}.", suffix=_PARTIAL))
        try:
            build(made)
            names = sorted(os.listdir(made), key=METADATA.__eq__)
            try:
                for name in names:
                    os.rename(made / name, path / name)
            except BaseException:
                # What was done is read from the disk, so that an interrupt may come at any point.
                for name in reversed(names):
                    if not (made / name).exists():
                        os.rename(path / name, made / name)
                raise
        finally:
            shutil.rmtree(made, ignore_errors=True)


def remove(path: Path, names: Iterable[str]) -> None:
    """Take away a store. Its folder stays: it may be a mount point, or one in which somebody stands.

    The metadata of the group go first, in one step: of a store that is half removed nobody could say that it was one.

    Args:
        path: absolute.
        names: of its arrays.
    """
    removed = Path(tempfile.mkdtemp(dir=path, prefix=f".{KEY}.", suffix=_PARTIAL))
    try:
        os.rename(path / METADATA, removed / METADATA)
    except OSError:
        removed.rmdir()
        raise
    for name in names:
        if (path / name).exists():
            os.rename(path / name, removed / name)
    shutil.rmtree(removed)


def foreign(path: Path, arrays: Iterable[str]) -> list[str]:
    """What is in a store's folder, or in those of its arrays, and is not a store's: paths relative to it."""
    arrays = set(arrays)
    found = [
        name
        for name in _names(path) - arrays - {METADATA}
        if not (_INSIDE.fullmatch(name) or _FILE.fullmatch(name))
    ]
    for array in arrays:
        if (path / array).is_dir():
            names = _names(path / array) - {METADATA, _CHUNKS}
            found += [f"{array}/{name}" for name in names if not _FILE.fullmatch(name)]
    return sorted(found)


def clear_up(path: Path) -> None:
    """Remove what processes that were killed have left half written in a store, or half made beside it."""
    for folder, _, files in os.walk(path):
        for name in files:
            if _FILE.fullmatch(name):
                Path(folder, name).unlink(missing_ok=True)
    beside = re.compile(rf"\.{re.escape(path.name)}\.[^.]+\.partial")  # not what is made for "NAME.more"
    left = [each for each in path.parent.glob(f".*{_PARTIAL}") if beside.fullmatch(each.name)]
    left += [each for each in path.iterdir() if _INSIDE.fullmatch(each.name)]
    for each in left:
        shutil.rmtree(each, ignore_errors=True)


def _names(path: Path) -> set[str]:
    return set(os.listdir(path)) - _OF_SYSTEMS
