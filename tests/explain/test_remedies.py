"""Errors of the system come with the store's path and with what to do."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from batchcam_captum.explain.remedies import named
from batchcam_captum.explain.writing import is_free, remove_store

from .stores import files, opened, write


def error_of(number, *_):
    raise OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "room to write to, got: No space .*; what is written is kept: make room and run the same again"),
        (errno.EDQUOT, "room to write to, got: .*quota.*; what is written is kept: make room and run the same again"),
        (errno.EACCES, "a folder that can be written to, got: Perm.*; what is written is kept: see to its permissions"),
        (errno.EROFS, "a folder that can be written to, got: Read-only .*; what is written is kept: see to its permissions"),
        (errno.ENOENT, "a folder that stays .*, got: No such .*; somebody has removed it: run the same again"),
        (errno.EIO, "a folder that can be written to, got: Input/output error; what is written is kept$"),
    ],
)  # fmt: skip
def test_each_error_has_its_remedy(number, said):
    with (
        pytest.raises(OSError, match=f"of mine: expected {said}") as caught,
        named(Path("of mine")),
        named(Path("of mine"), kept=True),
    ):
        error_of(number)
    assert caught.value.errno == number
    assert str(caught.value).count("expected") == 1


def test_errors_that_are_not_the_systems_stay_as_they_are():
    with pytest.raises(OSError, match=r"^own words$"), named(Path("store")):
        raise OSError("own words")


@pytest.mark.parametrize("place", ["listdir", "open", "unlink"])
def test_a_store_that_may_not_be_touched_says_so(tmp_path, monkeypatch, place):
    """When it is looked at, when it is locked, and when it is cleared up."""
    path = tmp_path / "store"
    with opened(path):
        pass
    (path / "maps" / "0.abc.partial").touch()
    before = files(path)
    monkeypatch.setattr(Path if place == "unlink" else os, place, lambda *_, **__: error_of(errno.EACCES))
    for action in (lambda: opened(path).__enter__(), lambda: remove_store(path)):
        with pytest.raises(PermissionError, match=r"store: expected a folder that can be .*permissions"):
            action()
    if place == "listdir":
        with pytest.raises(PermissionError, match=r"store: expected a folder that can be .*permissions"):
            is_free(path)
    monkeypatch.undo()
    assert files(path) == before


def test_nothing_is_written_where_the_store_was(tmp_path):
    path = tmp_path / "store"
    with opened(path) as writer:
        write(writer, 0)
        shutil.rmtree(path)
        for chunk in (0, 1):
            with pytest.raises(FileNotFoundError, match=r"store: .*; somebody has removed it"):
                write(writer, chunk)
    assert os.listdir(tmp_path) == []
