"""Files are complete or not there."""

from __future__ import annotations

import os
import stat

import pytest

from batchcam_captum.files import (
    output_folder,
    replace_file,
    written_together,
    written_whole,
)


def content(folder):
    return {path.name: path.read_text() if path.is_file() else None for path in folder.iterdir()}


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def test_a_file_is_moved_in_place_after_the_body(tmp_path):
    path = tmp_path / "result.json"
    path.write_text("old")
    with written_whole(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".json")
    (tmp_path / "plain").touch()
    assert content(tmp_path) == {"result.json": "new", "plain": ""}
    assert mode(path) == mode(tmp_path / "plain")


def test_files_are_moved_together_after_the_body(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "other").write_text("kept")
    with written_together(tmp_path) as temporary:
        (temporary / "a").write_text("new")
        (temporary / "b").write_text("new")
        assert (tmp_path / "a").read_text() == "old"
        assert temporary.is_relative_to(tmp_path)
    assert content(tmp_path) == {"a": "new", "b": "new", "other": "kept"}
    assert mode(tmp_path / "a") == mode(tmp_path / "other")


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("together", [False, True])
def test_a_body_that_raises_leaves_the_old_file(tmp_path, kind, together):
    (tmp_path / "a").write_text("old")
    context = written_together(tmp_path) if together else written_whole(tmp_path / "a")

    def fail():
        with context as temporary:
            (temporary / "a" if together else temporary).write_text("half")
            raise kind

    with pytest.raises(kind):
        fail()
    assert content(tmp_path) == {"a": "old"}


@pytest.mark.parametrize("name", ["file", "missing"])
@pytest.mark.parametrize("together", [False, True])
def test_a_folder_that_cannot_be_written_to(tmp_path, name, together):
    (tmp_path / "file").touch()
    context = written_together(tmp_path / name) if together else written_whole(tmp_path / name / "a")
    with pytest.raises(OSError, match=f"{tmp_path / name}"), context:
        pytest.fail("the body must not run")
    assert content(tmp_path) == {"file": ""}


@pytest.mark.parametrize("together", [False, True])
def test_a_folder_instead_of_the_file_is_named(tmp_path, together):
    (tmp_path / "a").write_text("old")
    (tmp_path / "c").mkdir()
    context = written_together(tmp_path) if together else written_whole(tmp_path / "c")

    def write():
        with context as temporary:
            for file in (temporary / "a", temporary / "c") if together else (temporary,):
                file.write_text("new")

    with pytest.raises(OSError, match=rf"^{tmp_path / 'c'}: .*folder"):
        write()
    assert content(tmp_path) == {"a": "old", "c": None}


def test_a_file_is_replaced(tmp_path):
    for data, sync in ((b"one", False), (b"two", True)):
        replace_file(tmp_path / "a", data, sync=sync)
        assert content(tmp_path) == {"a": data.decode()}


def test_an_output_folder_is_checked_before_the_body(tmp_path):
    with output_folder(tmp_path / "new" / "er", ["a"]):
        assert (tmp_path / "new" / "er").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="--output"), output_folder(tmp_path / "file"):
        pytest.fail("the body must not run")
    with pytest.raises(OSError, match="er"), output_folder(tmp_path / "new", ["er"]):
        pytest.fail("the body must not run")
