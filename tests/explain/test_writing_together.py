"""Processes that make one store at the same time."""

from __future__ import annotations

import os

import pytest

from batchcam_captum.explain import open_store, writing
from tests.explain.stores import ENVIRONMENT, SETTINGS, Layout

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
