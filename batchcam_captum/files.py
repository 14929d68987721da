"""Files that are either complete or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``path``; after the body it is moved there, or removed if the body raised.

    Args:
        path: the file to write. Its folder must exist.

    Raises:
        OSError: the folder is missing or cannot be written to, or the file cannot be replaced.
    """
    path = Path(path)
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    except OSError as error:
        raise _no_folder(path, path.parent, error) from error
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~umask())
        _move(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def umask() -> int:
    """The permissions that new files and folders of this process lack."""
    current = os.umask(0)
    os.umask(current)
    return current


@contextmanager
def written_together(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary folder inside ``folder``; after the body its files are moved to ``folder``, all of them or none.

    Files of the same names are replaced. If the body or a move raises, nothing new is left and the old files are as they were.

    Args:
        folder: where the files go. It must exist.

    Raises:
        OSError: the folder is missing or cannot be written to, or a file cannot be replaced.
    """
    folder = Path(folder)
    try:
        made = tempfile.TemporaryDirectory(dir=folder, prefix=".incomplete-")
    except OSError as error:
        raise _no_folder(folder, folder, error) from error
    with made as name:
        new, old = Path(name, "new"), Path(name, "old")
        new.mkdir()
        old.mkdir()
        yield new
        names = sorted(path.name for path in new.iterdir())
        refuse_folders(*(folder / name for name in names))
        try:
            for name in names:
                if os.path.lexists(folder / name):
                    _move(folder / name, old / name, blamed=folder / name)
                _move(new / name, folder / name)
        except BaseException:
            # What was done is read from the disk, so that an interrupt may come at any point.
            for name in names:
                if os.path.lexists(old / name):
                    (old / name).replace(folder / name)
                elif not os.path.lexists(new / name):
                    (folder / name).unlink(missing_ok=True)
            raise


def refuse_folders(*paths: Path) -> None:
    """Raise if a folder stands where a file is to be written.

    Args:
        paths: of the files.

    Raises:
        OSError: one of them is a folder.
    """
    for path in paths:
        if path.is_dir():
            raise OSError(
                f"{path}: expected a file to replace, or nothing, got a folder; move it away, or choose another place"
            )


def _move(source: Path, target: Path, blamed: Path | None = None) -> None:
    """Replace the target, or say which of the user's files is in the way; temporary names would not help."""
    try:
        source.replace(target)
    except OSError as error:
        blamed = blamed or target
        refuse_folders(blamed)
        raise OSError(
            f"{blamed}: expected a file that can be replaced, got: {error.strerror or error}; move it away, or choose "
            "another place"
        ) from error


def _no_folder(path: Path, folder: Path, error: OSError) -> OSError:
    return OSError(
        f"{path}: expected a folder that exists and can be written to, got {folder} ({error.strerror}); create it, or choose "
        "another"
    )


@contextmanager
def folders_taken_back(*folders: Path) -> Iterator[None]:
    """If the body raises, remove those of the folders, and of their parents, that were not there before and are empty.

    Args:
        folders: what the body may make.
    """
    missing = [path for folder in folders for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        for path in missing:
            with suppress(OSError):  # never made, or not empty
                path.rmdir()
        raise


@contextmanager
def output_folder(folder: Path, names: Iterable[str] = ()) -> Iterator[None]:
    """Make a command's ``--output`` and see that it can be written to, before anything takes time.

    If the body raises, folders that were made are removed, as far as they are empty.

    Args:
        folder: where the results go.
        names: of the files that are going to be written there.

    Raises:
        OSError: the folder cannot be written to, or a folder stands where a file is to be written.
    """
    with folders_taken_back(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise OSError(
                f"--output: expected a folder that can be written to, got {folder} ({error.strerror}); choose another"
            ) from error
        refuse_folders(*(folder / name for name in names))
        yield
