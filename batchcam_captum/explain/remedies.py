"""What to do about errors of the system."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ROOM = (errno.ENOSPC, errno.EDQUOT) if hasattr(errno, "EDQUOT") else (errno.ENOSPC,)
_RIGHTS = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def named(path: Path, *, kept: bool = False) -> Iterator[None]:
    """Say of which store an error of the system is, and what to do; one that says it already stays as it is.

    Args:
        path: of the store.
        kept: there is something written, and it stays as it is.

    Raises:
        OSError: of the same number.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror
        if error.errno is None or reason is None or reason.startswith(f"{path}: expected"):
            raise
        so_far = "what is written is kept: " if kept else ""
        if error.errno in _ROOM:
            expected, remedy = "room to write to", f"{so_far}make room and run the same again"
        elif error.errno in _RIGHTS:
            expected = "a folder that can be written to"
            remedy = f"{so_far}see to its permissions, or choose another"
        elif error.errno == errno.ENOENT:
            expected = "a folder that stays where it is"
            remedy = "somebody has removed it: run the same again to begin anew"
        else:
            expected = "a folder that can be written to"
            remedy = "what is written is kept" if kept else "choose another"
        raise OSError(error.errno, f"{path}: expected {expected}, got: {reason}; {remedy}") from error
