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
def at_work(folder: Path, alone: bool, tidy: Callable[[], None]) -> Iterator[None]:
    """Keep others out, or those at least that would write alone.

    Args:
        folder: of the store.
        alone: nobody else may write.
        tidy: called while nobody else writes, by the first who comes: it clears up after those who were killed.

    Raises:
        ValueError: another process is writing.
    """
    fcntl = _fcntl()
    if fcntl is None:
        yield
        return
    with _opened(folder, os.O_RDONLY) as descriptor:
        until = time.monotonic() + (0 if alone else _PATIENCE)
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                with suppress(BlockingIOError):
                    if not alone:
                        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                        break
                _wait(folder, until, error)
            except OSError:  # a file system without locks
                break
            else:
                tidy()
                if not alone:
                    fcntl.flock(descriptor, fcntl.LOCK_SH)
                break
        yield


@contextmanager
def making(folder: Path, needed: Callable[[], bool]) -> Iterator[bool]:
    """Let one process at a time make a store in a folder, and give whether it is still needed when it is this one's turn.

    Raises:
        ValueError: another process has not come to an end.
    """
    fcntl = _fcntl()
    if fcntl is None:
        yield needed()
        return
    with _opened(folder, os.O_RDONLY) as descriptor:
        until = time.monotonic() + _PATIENCE
        while needed():
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                _wait(folder, until, error)
            except OSError:  # a file system without locks
                break
            else:
                break
        yield needed()


@contextmanager
def changing(file: Path) -> Iterator[None]:
    """Let one process at a time read and rewrite something, for a moment.

    Args:
        file: one that stays what it is, and that all of these processes may write; nothing is written to it. Not a folder, which
            network file systems lock on each machine for itself.
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
    descriptor = os.open(path, flags)
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
