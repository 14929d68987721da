"""Processes that make one store at the same time."""

from __future__ import annotations

import os
import threading
import time

import pytest

from batchcam_captum.explain import open_store, writing
from tests.explain.stores import ENVIRONMENT, SETTINGS, Layout, opened, write

LAYOUT = Layout(samples=4, chunk=2, maps=(1, 2, 2), classes=3)


def test_one_that_was_faster_may_take_away_what_another_is_making(tmp_path, monkeypatch):
    chmod = os.chmod
    about = {"settings": SETTINGS, "environment": ENVIRONMENT, "alone": False}

    def overtaken(made, mode):
        monkeypatch.setattr(os, "chmod", chmod)
        with writing.writing(tmp_path / "store", LAYOUT, **about):
            assert not os.path.exists(made)  # cleared up as left by one that was killed
        return chmod(made, mode)

    monkeypatch.setattr(os, "chmod", overtaken)
    with writing.writing(tmp_path / "store", LAYOUT, **about) as writer:
        assert writer.missing() == [0, 1]
    assert os.listdir(tmp_path) == ["store"]
    assert len(open_store(tmp_path / "store")) == 4


def test_what_cannot_be_made_is_told_and_taken_away(tmp_path, monkeypatch):
    def full(made, mode):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "chmod", full)
    with (
        pytest.raises(OSError, match="No space left"),
        writing.writing(tmp_path / "store", LAYOUT, settings=SETTINGS, environment=ENVIRONMENT),
    ):
        pass
    assert os.listdir(tmp_path) == []


def test_what_one_notes_is_not_lost_to_another(tmp_path, monkeypatch):
    """That the store is complete, while another adds its machine."""
    note, path, reached = writing._note, tmp_path / "store", threading.Event()
    other = ENVIRONMENT | {"device": "cuda"}

    def slow(*arguments):
        if threading.current_thread() is not threading.main_thread():
            reached.set()
            time.sleep(0.3)
        note(*arguments)

    def join():
        with opened(path, environment=other, alone=False):
            pass

    with opened(path, alone=False) as writer:
        write(writer, 0, 1, 2)
        monkeypatch.setattr(writing, "_note", slow)
        thread = threading.Thread(target=join)
        thread.start()
        assert reached.wait(30)
        assert writer.finish()
        thread.join()
    about = open_store(path).about
    assert about["complete"]
    assert about["environments"] == [ENVIRONMENT, other]
