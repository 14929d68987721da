"""Files are complete or not there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from batchcam_captum.files import written_together, written_whole


def test_file_is_moved_in_place_after_the_body(tmp_path):
    path = tmp_path / "result.json"
    path.write_text("old")
    with written_whole(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".json"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_nothing_half_written_is_left_and_the_old_file_stays(tmp_path, kind):
    path = tmp_path / "result.json"
    path.write_text("old")

    def fail():
        with written_whole(path) as temporary:
            temporary.write_text("half")
            raise kind

    with pytest.raises(kind):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_permissions_are_those_of_any_new_file(tmp_path):
    with written_whole(tmp_path / "whole"):
        pass
    (tmp_path / "plain").touch()
    modes = {stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("whole", "plain")}
    assert len(modes) == 1


@pytest.mark.parametrize("name", ["file/result.json", "missing/result.json"])
def test_folder_that_cannot_be_written_to(tmp_path, name):
    (tmp_path / "file").touch()
    with (
        pytest.raises(
            OSError,
            match=r"expected a folder that exists and can be written to, got .*; create it, or choose another",
        ),
        written_whole(tmp_path / name),
    ):
        pytest.fail("the body must not run")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_folder_in_the_place_of_the_file_is_named(tmp_path):
    path = tmp_path / "result.json"
    path.mkdir()
    with (
        pytest.raises(
            OSError, match=rf"^{path}: expected a file to replace, or nothing, got a folder; move it away"
        ),
        written_whole(path) as temporary,
    ):
        temporary.write_text("new")
    assert list(tmp_path.iterdir()) == [path]


def content(folder):
    return {path.name: path.read_text() if path.is_file() else None for path in folder.iterdir()}


def write_together(folder, **texts):
    with written_together(folder) as temporary:
        for name, text in texts.items():
            (temporary / name).write_text(text)


def test_files_are_moved_together_after_the_body(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "other").write_text("kept")
    with written_together(tmp_path) as temporary:
        (temporary / "a").write_text("new")
        (temporary / "b").write_text("new")
        assert (tmp_path / "a").read_text() == "old"
        assert temporary.is_relative_to(tmp_path)
    assert content(tmp_path) == {"a": "new", "b": "new", "other": "kept"}
    (tmp_path / "plain").touch()
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_body_that_raises_moves_no_file(tmp_path, kind):
    (tmp_path / "a").write_text("old")

    def fail():
        with written_together(tmp_path) as temporary:
            (temporary / "a").write_text("new")
            raise kind

    with pytest.raises(kind):
        fail()
    assert content(tmp_path) == {"a": "old"}


def test_folder_in_the_place_of_one_file_stops_all(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "c").mkdir()
    with pytest.raises(OSError, match=rf"^{tmp_path / 'c'}: expected a file to replace"):
        write_together(tmp_path, a="new", b="new", c="new")
    assert content(tmp_path) == {"a": "old", "c": None}


@pytest.mark.parametrize("kind", [PermissionError(13, "Permission denied"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", range(5))
def test_moves_that_were_done_are_undone(tmp_path, monkeypatch, kind, step):
    """Five moves: a and b aside, a, b and c in place."""
    (tmp_path / "a").write_text("old")
    (tmp_path / "b").symlink_to("a")
    replace, calls = Path.replace, []

    def failing(source, target):
        calls.append(source)
        if len(calls) == step + 1:
            raise kind
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(type(kind) if isinstance(kind, KeyboardInterrupt) else OSError) as caught:
        write_together(tmp_path, a="new", b="new", c="new")
    if isinstance(kind, PermissionError):
        path = tmp_path / "aabbc"[step]
        assert str(caught.value).startswith(
            f"{path}: expected a file that can be replaced, got: Permission denied; move it away"
        )
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}
    assert (tmp_path / "a").read_text() == "old"
    assert (tmp_path / "b").is_symlink()


@pytest.mark.parametrize("name", ["file", "missing"])
def test_folder_for_several_files_that_cannot_be_written_to(tmp_path, name):
    (tmp_path / "file").touch()
    with (
        pytest.raises(
            OSError, match=r"expected a folder that exists and can be written to, got .*; create it"
        ),
        written_together(tmp_path / name),
    ):
        pytest.fail("the body must not run")
