"""Locks on stores, which the system takes back from a process that ends, however that may be."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

#: Seconds that a rank waits for the one that makes the store.
_PATIENCE = 60.0
#: Descriptors of the locks of this process.
_HELD: set[int] = set()


@contextmanager
def at_work(folder: Path, file: Path, alone: bool, tidy: Callable[[], None]) -> Iterator[None]:
    """Keep others out, or those at least that would write alone.

    Args:
        folder: of the store.
        file: in there, one that stays what it is as long as the store does, and that nobody else locks; nothing is written to it.
            Not a folder, if there is such a file: network file systems lock folders on each machine for itself, or not at all.
        alone: nobody else may write.
        tidy: called while nobody else writes, by the first who comes: it clears up after those who were killed.

    Raises:
        ValueError: another process is writing.
        OSError: there is no such file, or it cannot be written to.
    """
    fcntl = _fcntl()
    if fcntl is None:
        yield
        return
    until = time.monotonic() + (0 if alone else _PATIENCE)
    while True:
        with _opened(file, os.O_RDONLY if file.is_dir() else os.O_RDWR) as descriptor:
            try:
                there = _at_work(fcntl, descriptor, file, alone, tidy)
            except BlockingIOError as error:
                _wait(folder, until, error)
                continue
            except _NoLocksError:
                there = True
            if there:
                yield
                return


class _NoLocksError(Exception):
    """Of a file system."""


def _at_work(fcntl: Any, descriptor: int, file: Path, alone: bool, tidy: Callable[[], None]) -> bool:
    """Lock it, and return whether it is still the one that is there: the store may have been removed meanwhile, and made anew.

    Raises:
        BlockingIOError: another process has it.
    """
    try:
        _lock(fcntl, descriptor, fcntl.LOCK_EX)
    except BlockingIOError:
        if alone:
            raise
    else:
        if not _is_at(descriptor, file):
            return False
        tidy()
        if alone:
            return True
    # Who had the other lock has given it back now: another process may have come in between.
    _lock(fcntl, descriptor, fcntl.LOCK_SH)
    return _is_at(descriptor, file)


def _lock(fcntl: Any, descriptor: int, kind: int) -> None:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        raise _NoLocksError from error


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


@contextmanager
def making(folder: Path, file: Path, needed: Callable[[], bool]) -> Iterator[bool]:
    """Let one process at a time make or take away a store in a folder, and give whether it is still needed when it is its turn.

    Args:
        folder: of the store.
        file: in there, which is made for this and removed again; see :func:`at_work` for why it is not the folder.
        needed: asked before and after waiting.

    Raises:
        ValueError: another process has not come to an end.
        OSError: nothing can be written there.
    """
    fcntl = _fcntl()
    if fcntl is None:
        yield needed()
        return
    until = time.monotonic() + _PATIENCE
    while needed():
        with _opened(file, os.O_RDWR | os.O_CREAT) as descriptor:
            try:
                _lock(fcntl, descriptor, fcntl.LOCK_EX)
            except BlockingIOError as error:
                _wait(folder, until, error)
                continue
            except _NoLocksError:
                pass
            if not _is_at(descriptor, file):  # another process is done, and has removed it
                continue
            try:
                yield needed()
            finally:
                file.unlink(missing_ok=True)
            return
    yield False


@contextmanager
def changing(file: Path) -> Iterator[None]:
    """Let one process at a time read and rewrite something, for a moment.

    Args:
        file: one that stays what it is, and that all of these processes may write; nothing is written to it. Not a folder, see
            :func:`at_work`.
    """
    fcntl = _fcntl()
    if fcntl is None:
        yield
        return
    with _opened(file, os.O_RDWR) as descriptor:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def _fcntl() -> Any | None:
    """None on Windows, where nothing is locked."""
    try:
        return import_module("fcntl")
    except ImportError:
        return None


def _wait(folder: Path, until: float, error: BlockingIOError) -> None:
    if time.monotonic() >= until:
        raise ValueError(
            f"{folder}: expected a store that nobody is writing, got one that another process has open; wait for it"
        ) from error
    time.sleep(0.1)


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags, 0o666)
    _HELD.add(descriptor)
    try:
        yield descriptor
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
