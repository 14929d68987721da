"""Folders of stores: made whole or not at all, taken away in one step, with nothing of anybody else's."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from ..files import umask
from .layout import FORMAT, KEY, NAMES
from .locks import making
from .remedies import named

#: Ends the names of what is half made.
_PARTIAL = ".partial"
#: Zarr's file of a group or an array, and its folder of an array's chunks.
METADATA, _CHUNKS = "zarr.json", "c"
#: Zarr's names for files that are not whole yet.
_FILE = re.compile(r"(zarr|\d+)\.[0-9a-f]+\.partial")
#: A folder inside a store's folder, from which the store is moved there, or to which it is moved away.
_INSIDE = re.compile(rf"\.{KEY}\.[^.]+\.partial")
#: One of them, a file: who has locked it makes a store in there, or takes one away.
_LOCK = f".{KEY}.lock{_PARTIAL}"
#: What systems put into folders by themselves; NFS does for a file that is removed while it is open.
_OF_SYSTEMS = re.compile(r"\.DS_Store|Thumbs\.db|desktop\.ini|lost\+found|\.nfs[0-9a-f]+|\._.+")


def real(path: str | os.PathLike[str]) -> Path:
    """The absolute path, and where links lead, which could not be replaced by a folder.

    Raises:
        ValueError: no path.
    """
    if not os.fspath(path):
        raise ValueError("store: expected the path of a folder, got ''; pass '.' for the current one")
    return Path(path).resolve()


def is_free(path: Path) -> bool:
    """Whether a store can be made there: nothing, a folder with nothing in it, or with what a killed process has left in one.

    Raises:
        OSError: it cannot be read.
    """
    with named(path):
        if not path.exists():
            return True
        if not path.is_dir():
            return False
        while True:
            names = _names(path)
            others = {name for name in names if not _INSIDE.fullmatch(name)}
            if not others or METADATA in others:
                return not others
            free = others <= _left(path) and not foreign(path, others)
            # While another process makes or takes away a store, what was seen does not fit together.
            if free or _names(path) == names:
                return free


def _left(path: Path) -> set[str]:
    """The arrays of a store that a killed process has half made in a folder, or half taken away, and of no other.

    The metadata of the group, by which it is known, are in a temporary folder as long as there are any.
    """
    found: set[str] = set()
    whole = {name for name in arrays(path) if (path / name / METADATA).is_file()}
    for each in path.iterdir():
        if _INSIDE.fullmatch(each.name):
            try:
                version = json.loads((each / METADATA).read_bytes())["attributes"][KEY]["format"]
            except (OSError, ValueError, LookupError, TypeError):
                continue
            found |= whole & set(arrays(path, version))
    return found


def arrays(path: Path, version: int | None = None) -> list[str]:
    """The names of a store's arrays. Which ones another version has is not known: all that are there."""
    if version == FORMAT:
        return list(NAMES)
    found = [each.parent.name for each in path.glob(f"*/{METADATA}")]
    return [name for name in found if not _INSIDE.fullmatch(name)]


def make(path: Path, build: Callable[[Path], None]) -> None:
    """Make a store whole, or not at all; where another process was faster, its store stays.

    A folder that is there stays what it is, with its permissions: it may be a mount point, or one in which somebody stands.

    Args:
        path: absolute, see :func:`is_free`.
        build: fills an empty folder.

    Raises:
        OSError: nothing can be written there.
        ValueError: another process is making the store, and does not come to an end.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        try:
            _make_beside(path, build)
        except OSError:
            # Another process was faster, and may have cleared up what this one was making; or it makes one in there.
            if not path.is_dir():
                raise
        else:
            return
    _make_inside(path, build)


def _make_beside(path: Path, build: Callable[[Path], None]) -> None:
    made = tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=_PARTIAL)
    try:
        build(Path(made))
        inherited = os.stat(made).st_mode & stat.S_ISGID
        os.chmod(made, inherited | (0o777 & ~umask()))
        os.rename(made, path)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _make_inside(path: Path, build: Callable[[Path], None]) -> None:
    """The metadata of the group, by which a store is known, come last."""
    with making(path, path / _LOCK, lambda: is_free(path)) as needed:
        if not needed:
            return
        if left := _left(path):
            _take_away(path, left)
        _clear(path)
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


def remove(path: Path, names: Iterable[str]) -> Path:
    """Take a store out of its folder, which stays.

    The metadata of the group go first, in one step: no store is ever without some of its arrays.

    Args:
        path: absolute.
        names: of its arrays.

    Returns:
        A folder in there, to be removed when nothing of it is open or locked any more.
    """
    with making(path, path / _LOCK, lambda: True):
        return _take_away(path, [METADATA, *names])


def _take_away(path: Path, names: Iterable[str]) -> Path:
    removed = Path(tempfile.mkdtemp(dir=path, prefix=f".{KEY}.", suffix=_PARTIAL))
    for name in names:
        if (path / name).exists():
            try:
                os.rename(path / name, removed / name)
            except OSError:
                if not os.listdir(removed):
                    removed.rmdir()
                raise
    return removed


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
        elif (path / array).exists():
            found.append(array)
    return sorted(found)


def clear_up(path: Path) -> None:
    """Remove what processes that were killed have left half written in a store, or half made beside it."""
    for folder, _, files in os.walk(path):
        for name in files:
            if _FILE.fullmatch(name):
                Path(folder, name).unlink(missing_ok=True)
    beside = re.compile(rf"\.{re.escape(path.name)}\.[^.]+\.partial")  # not what is made for "NAME.more"
    for each in path.parent.glob(f".*{_PARTIAL}"):
        if beside.fullmatch(each.name):
            shutil.rmtree(each, ignore_errors=True)
    _clear(path)
    (path / _LOCK).unlink(missing_ok=True)


def _clear(path: Path) -> None:
    for each in path.iterdir():
        if _INSIDE.fullmatch(each.name) and each.name != _LOCK:
            shutil.rmtree(each, ignore_errors=True)


def _names(path: Path) -> set[str]:
    try:
        return {name for name in os.listdir(path) if not _OF_SYSTEMS.fullmatch(name)}
    except FileNotFoundError:  # by now
        return set()
