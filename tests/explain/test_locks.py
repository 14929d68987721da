"""Who may write a store when, as network file systems have it, and while it is removed and made anew."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import stat
import threading

import pytest

from batchcam_captum.explain import locks
from batchcam_captum.explain.writing import remove_store

from .stores import files, opened, write

fcntl = pytest.importorskip("fcntl")  # not on Windows
FLOCK = fcntl.flock


@pytest.fixture
def without_locks_on_folders(monkeypatch):
    """Other machines see locks on files alone."""

    def flock(descriptor, kind):
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            FLOCK(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.usefixtures("without_locks_on_folders")
def test_other_machines_are_kept_out(tmp_path):
    path = tmp_path / "store"
    with opened(path, alone=False):
        half = path / "maps" / "0.abc123.partial"
        half.write_text("another machine is writing it")
        with opened(path, alone=False):
            assert half.exists()
        for options in ({}, {"overwrite": True}):
            with pytest.raises(ValueError, match="nobody is writing"), opened(path, **options):
                pass
        assert half.exists()
    with opened(path):
        assert not half.exists()


@pytest.mark.usefixtures("without_locks_on_folders")
def test_other_machines_make_a_store_in_one_folder(tmp_path):
    path, context = tmp_path / "store", multiprocessing.get_context("fork")
    path.mkdir()
    ready = context.Barrier(4)

    def run(rank):
        ready.wait(30)
        with opened(path, alone=False) as writer:
            write(writer, *writer.missing(rank, 4))

    processes = [context.Process(target=run, args=(rank,)) for rank in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    with opened(path) as writer:
        assert writer.missing() == []
    assert not list(path.glob(".*"))


def test_a_store_that_is_made_anew_meanwhile_is_locked_itself(tmp_path, monkeypatch):
    """And not the file of the one that is gone."""
    path = tmp_path / "store"
    with opened(path) as writer:
        write(writer, 0)

    def anew(descriptor, kind):
        monkeypatch.setattr(fcntl, "flock", FLOCK)
        with opened(path, overwrite=True):
            pass
        FLOCK(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", anew)
    with opened(path, alone=False) as writer:
        assert writer.missing() == [0, 1, 2]
        with pytest.raises(ValueError, match="nobody is writing"), opened(path):
            pass


@pytest.mark.parametrize("patience", [0.0, 30.0])
def test_one_that_writes_alone_may_come_between(tmp_path, monkeypatch, patience):
    """As the first of several gives its lock back to take the one that others may have, too. It waits, but not for ever."""
    path, release, taken = tmp_path / "store", threading.Event(), threading.Event()
    monkeypatch.setattr(locks, "_PATIENCE", patience)

    def come_between():
        with opened(path):
            taken.set()
            release.wait(30)

    thread = threading.Thread(target=come_between)
    with opened(path):
        pass

    def flock(descriptor, kind):
        if kind & fcntl.LOCK_SH and not taken.is_set():
            FLOCK(descriptor, fcntl.LOCK_UN)
            thread.start()
            assert taken.wait(30)
            if patience:
                threading.Timer(0.3, release.set).start()
        FLOCK(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", flock)
    try:
        if patience:
            with opened(path, alone=False) as writer:
                assert release.is_set()
                write(writer, 0)
        else:
            with pytest.raises(ValueError, match="nobody is writing"), opened(path, alone=False):
                pass
    finally:
        release.set()
        thread.join()


def test_a_store_is_not_made_while_one_is_taken_away(tmp_path, monkeypatch):
    path, rename = tmp_path / "store", os.rename
    with opened(path):
        pass
    waits, threads = threading.Event(), []
    monkeypatch.setattr(locks, "_wait", lambda *_: waits.set())

    def make():
        with opened(path, alone=False) as writer:
            write(writer, 0)

    def slow(source, target):
        rename(source, target)
        if not threads:
            threads.append(threading.Thread(target=make))
            threads[0].start()
            assert waits.wait(30)

    monkeypatch.setattr(os, "rename", slow)
    remove_store(path)
    threads[0].join()
    with opened(path) as writer:
        assert writer.missing() == [1, 2]


def test_a_store_that_lacks_arrays_can_be_removed(tmp_path):
    path = tmp_path / "store"
    with opened(path):
        pass
    shutil.rmtree(path / "maps")
    with pytest.raises(ValueError, match="expected a whole store, got one without maps"), opened(path):
        pass
    remove_store(path)
    assert files(tmp_path) == {}
