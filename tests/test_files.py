"""Files are complete or not there."""

from __future__ import annotations

import os
import stat

import pytest

from batchcam_captum.files import written_whole


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
