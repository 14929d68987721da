"""Write files that are either complete or not there."""

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
        path: The file to write. Its folder must exist.

    Raises:
        OSError: If the folder is missing or cannot be written to, or if the file cannot be replaced.
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


def replace_file(path: Path, data: bytes, *, sync: bool = False) -> None:
    """Write a file whole: to ``NAME.partial`` beside it, which is then renamed. For files that one process at a time writes.

    Args:
        path: The file.
        data: Its content.
        sync: Wait until the content is on the disk before renaming.

    Raises:
        OSError: If it cannot be written.
    """
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        file.write(data)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    partial.replace(path)


def umask() -> int:
    """Return the permissions that new files and folders of this process lack."""
    current = os.umask(0)
    os.umask(current)
    return current


@contextmanager
def written_together(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary folder inside ``folder``; after the body its files are moved to ``folder``, where they replace others.

    If the body raises, or a folder is in the way, no file is moved. Each file is whole at any time; a process that is killed
    while it moves them leaves some old and some new.

    Args:
        folder: Where the files go. It must exist.

    Raises:
        OSError: If the folder is missing or cannot be written to, or if a file cannot be replaced.
    """
    folder = Path(folder)
    try:
        made = tempfile.TemporaryDirectory(dir=folder, prefix=".incomplete-")
    except OSError as error:
        raise _no_folder(folder, folder, error) from error
    with made as name:
        yield Path(name)
        files = sorted(Path(name).iterdir())
        refuse_folders(*(folder / file.name for file in files))
        for file in files:
            _move(file, folder / file.name)


def refuse_folders(*paths: Path) -> None:
    """Raise if a folder stands where a file is to be written.

    Args:
        paths: The files.

    Raises:
        OSError: If one of them is a folder.
    """
    for path in paths:
        if path.is_dir():
            raise OSError(
                f"{path}: expected a file to replace, or nothing, got a folder; move it away, or choose another place"
            )


def _move(source: Path, target: Path) -> None:
    """Replace the target, or name it in the error instead of the temporary file."""
    try:
        source.replace(target)
    except OSError as error:
        refuse_folders(target)
        raise OSError(
            f"{target}: expected a file that can be replaced, got: {error.strerror or error}; move it away, or choose "
            "another place"
        ) from error


def _no_folder(path: Path, folder: Path, error: OSError) -> OSError:
    return OSError(
        f"{path}: expected a folder that exists and can be written to, got {folder} ({error.strerror}); create it, or choose "
        "another"
    )


@contextmanager
def output_folder(folder: Path, names: Iterable[str] = ()) -> Iterator[None]:
    """Make a command's ``--output`` and check that it can be written to, before anything takes time.

    If the body raises, new folders are removed as far as they are empty.

    Args:
        folder: Where the results go.
        names: The files that will be written there.

    Raises:
        OSError: If the folder cannot be written to, or if a folder is in the place of a file.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"--output: expected a folder that can be written to, got {folder} ({error.strerror}); choose another"
        ) from error
    refuse_folders(*(folder / name for name in names))
    try:
        yield
    except BaseException:
        with suppress(OSError):  # not empty
            for path in new:
                path.rmdir()
        raise
