"""Files that are either complete or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``path``; after the body it is moved there, or removed if the body raised.

    Args:
        path: the file to write. Its folder must exist.

    Raises:
        OSError: the folder is missing or cannot be written to.
    """
    path = Path(path)
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    except OSError as error:
        raise OSError(
            f"{path}: expected a folder that exists and can be written to, got {path.parent} ({error.strerror}); create it, or "
            f"choose another"
        ) from error
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
