"""Where stores can be made, and what may be removed."""

import errno
import multiprocessing
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import zarr

from batchcam_captum.explain import open_store
from batchcam_captum.explain import writing as module
from batchcam_captum.explain.layout import KEY, Status
from batchcam_captum.explain.writing import is_free, remove_store

from .stores import CHUNK, LAYOUT, files, opened, write

RENAME = os.rename


def no_room(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_folders_that_are_no_stores_stay_as_they_are(tmp_path):
    """Also what looks as if a process that was killed had left it."""
    (tmp_path / "photos").mkdir()
    for name in ("film.partial", "cat.jpg"):
        (tmp_path / "photos" / name).write_text("mine")
    before = files(tmp_path)
    for overwrite in (False, True):
        with (
            pytest.raises(ValueError, match="photos: expected a store"),
            opened(tmp_path / "photos", overwrite=overwrite),
        ):
            pass
    (tmp_path / "file").write_text("mine")
    for call in (lambda: remove_store(tmp_path / "file"), lambda: opened(tmp_path / "file").__enter__()):
        with pytest.raises(ValueError, match="file: expected a store"):
            call()
    assert files(tmp_path) == before | {"file": b"mine"}


def test_stores_of_another_version_are_refused_but_can_be_overwritten(tmp_path, monkeypatch):
    path = tmp_path / "store"
    with monkeypatch.context() as patch:
        for each in ("writing", "store", "folders"):
            patch.setattr(f"batchcam_captum.explain.{each}.FORMAT", 7)
        with opened(path):
            pass
    with pytest.raises(ValueError, match="version 1, got one of version 7"), opened(path):
        pass
    with opened(path, overwrite=True) as writer:
        assert writer.missing() == [0, 1, 2]


def test_a_link_to_a_store_stays_one(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "store")
    for _ in range(2):
        with opened(tmp_path / "link", overwrite=True) as writer:
            write(writer, 0)
    assert (tmp_path / "link").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["link", "store"]
    assert len(open_store(tmp_path / "store").written()) == CHUNK


def test_a_store_that_cannot_be_made_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OSError, match="store: expected a folder that can be written to"),
        opened(tmp_path / "file" / "store"),
    ):
        pass

    monkeypatch.setattr(Path, "replace", no_room)
    with (
        pytest.raises(
            OSError, match="store: expected room to write to, got: No space left on device; make room"
        ),
        opened(tmp_path / "store"),
    ):
        pass
    assert os.listdir(tmp_path) == ["file"]


def test_a_new_store_may_be_read_by_others(tmp_path):
    (tmp_path / "group").mkdir()
    (tmp_path / "group").chmod(0o2770)
    for path in (tmp_path / "store", tmp_path / "group" / "store"):
        (path.parent / "usual").mkdir()
        with opened(path):
            pass
        assert path.stat().st_mode == (path.parent / "usual").stat().st_mode
        assert KEY in open_store(path)._group.attrs
        assert (open_store(path).status[:] == Status.MISSING).all()


@pytest.mark.parametrize("current", [False, True])
def test_an_empty_folder_stays_the_same_one(tmp_path, monkeypatch, current):
    """With its permissions and its group: somebody has made it on purpose, or stands in it, or it is a mount point."""
    with opened(tmp_path / "usual") as writer:
        write(writer, 0)
    path = tmp_path / "store"
    path.mkdir()
    path.chmod(0o2770)
    before = path.stat()
    (path / ".DS_Store").touch()
    if current:
        monkeypatch.chdir(path)
    for overwrite in (False, True):
        with opened("." if current else path, overwrite=overwrite) as writer:
            assert writer.missing() == [0, 1, 2]
            write(writer, 0)
        assert (path.stat().st_ino, path.stat().st_mode) == (before.st_ino, before.st_mode)
        (path / ".DS_Store").unlink(missing_ok=True)
        assert files(path) == files(tmp_path / "usual")
    assert sorted(os.listdir(tmp_path)) == ["store", "usual"]


def test_no_path_is_refused():
    with (
        pytest.raises(ValueError, match=r"store: expected the path of a folder, got ''; pass '\.'"),
        opened(""),
    ):
        pass


def test_a_store_that_cannot_be_made_inside_a_folder_leaves_it_empty(tmp_path, monkeypatch):
    path = tmp_path / "store"
    path.mkdir()

    def rename(source, target):
        if Path(target) in (path, path / "status"):
            no_room()
        return RENAME(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(OSError, match="store: expected room to write to"), opened(path):
        pass
    assert os.listdir(path) == []


@pytest.mark.parametrize("at", ["status", "zarr.json", "after"])
@pytest.mark.parametrize("action", ["make", "remove"])
def test_making_and_removing_may_be_killed(tmp_path, monkeypatch, action, at):
    """Whatever is left counts as nothing, or as a store."""
    path = tmp_path / "store"
    path.mkdir()
    monkeypatch.chdir(path)
    if action == "remove":
        with opened("."):
            pass

    def rename(source, target):
        if at == Path(target).name and os.fspath(source) != at:
            os.kill(os.getpid(), signal.SIGKILL)
        return RENAME(source, target)

    def run():
        os.rename = rename
        if at == "after":
            module.folders.shutil.rmtree = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
        if action == "remove":
            remove_store(".")
        else:
            opened(".").__enter__()

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert sorted(os.listdir(path))[0].startswith(".batchcam_captum.")
    there = (action, at) in (("make", "after"), ("remove", "zarr.json"))
    assert is_free(path) != there
    assert (path / "status").exists() == (
        there or (action == "remove" and at == "status") or at == "zarr.json"
    )
    with opened(".") as writer:
        write(writer, 0)
    with opened(tmp_path / "usual") as writer:
        write(writer, 0)
    assert files(path) == files(tmp_path / "usual")


def copied(source, target, version):
    """A store as it is, or one of another version that has an array of a name that is not known here."""
    shutil.copytree(source, target)
    if version != 1:
        RENAME(target / "maps", target / "heat")
        about = (target / "zarr.json").read_text()
        assert '"format": 1' in about
        (target / "zarr.json").write_text(about.replace('"format": 1', f'"format": {version}'))


@pytest.mark.parametrize("version", [1, 7])
def test_a_removal_may_be_killed_at_every_step(tmp_path, monkeypatch, version):
    """What is left counts as the store it was, or as nothing; and so does what is left of taking that away."""
    with opened(tmp_path / "usual") as writer:
        write(writer, 0)
    copied(tmp_path / "usual", tmp_path / "old", version)
    arrays = len(list((tmp_path / "old").glob("*/zarr.json")))
    left = 0

    def rename(source, target):
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        RENAME(source, target)

    def killed(step, action):
        nonlocal left
        left = step
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", rename)
            with pytest.raises(KeyboardInterrupt):
                action()

    for step in range(arrays + 1):  # the metadata are the first
        path = tmp_path / str(step)
        shutil.copytree(tmp_path / "old", path)
        killed(step, lambda path=path: remove_store(path))
        assert is_free(path) == (step > 0)
        assert len(list(path.glob("[a-z]*/zarr.json"))) == arrays - max(0, step - 1)
        if 0 < step < arrays:
            killed(1, lambda path=path: opened(path).__enter__())
            assert is_free(path)
            assert len(list(path.glob("[a-z]*/zarr.json"))) == arrays - step
        if step in (0, 2, arrays):
            with opened(path, overwrite=step != 2) as writer:
                assert writer.missing() == [0, 1, 2]
                write(writer, 0)
            assert files(path) == files(tmp_path / "usual")


def test_beside_what_a_killed_process_has_left_nothing_of_somebody_elses_is_removed(tmp_path):
    path = tmp_path / "store"
    with opened(tmp_path / "another"):
        pass

    def check():
        before = files(path)
        assert not is_free(path)
        for overwrite in (False, True):
            with (
                pytest.raises(ValueError, match="store: expected a store"),
                opened(path, overwrite=overwrite),
            ):
                pass
        assert files(path) == before

    half = path / ".batchcam_captum.abc.partial"
    half.mkdir(parents=True)
    assert is_free(path)
    for name in ("labels", "maps"):
        (path / name).mkdir()
        check()
        (path / name / "mine.txt").write_text("mine")
        check()
    shutil.copy(
        tmp_path / "another" / "zarr.json", half
    )  # what is left of a store, and now there may be more of it
    check()
    shutil.copytree(tmp_path / "another" / "scores", path / "scores")
    check()
    for name in ("labels", "maps"):
        shutil.rmtree(path / name)
    assert is_free(path)
    (path / "scores" / "mine.txt").write_text("mine")
    check()
    (path / "scores" / "mine.txt").rename(path / "thumbnails")
    check()
    (path / "thumbnails").unlink()
    with opened(path, overwrite=True) as writer:
        assert writer.missing() == [0, 1, 2]


def test_a_file_with_the_name_of_an_array_is_not_the_stores(tmp_path):
    path = tmp_path / "store"
    with opened(path, layout=replace(LAYOUT, thumbnail=None)):
        pass
    (path / "thumbnails").write_text("mine")
    with pytest.raises(ValueError, match=r"other files in its folder \(thumbnails\)"):
        remove_store(path)


def test_what_systems_put_into_folders_is_no_obstacle(tmp_path):
    path = tmp_path / "store"
    path.mkdir()
    names = (".nfs000000000012d6e700000001", "._maps", ".DS_Store")
    for overwrite in (False, True):
        for name in names:
            (path / name).touch()
        with opened(path, overwrite=overwrite) as writer:
            assert writer.missing() == [0, 1, 2]
            for name in names:
                (path / "maps" / name).touch()
            write(writer, 0)
    remove_store(path)
    assert is_free(path)
    assert sorted(os.listdir(path)) == sorted(names)


def test_several_processes_make_a_store_inside_one_folder(tmp_path):
    path, context = tmp_path / "store", multiprocessing.get_context("fork")
    path.mkdir()
    ready = context.Barrier(3)

    def run(rank):
        ready.wait(30)
        with opened(path, alone=False) as writer:
            write(writer, *writer.missing(rank, 3))
            writer.finish()

    processes = [context.Process(target=run, args=(rank,)) for rank in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert open_store(path).complete
    assert not list(path.glob(".*"))


def test_files_that_are_not_the_stores_are_never_removed(tmp_path):
    path = tmp_path / "store"
    with opened(path) as writer:
        write(writer, 0)
    zarr.open_group(path).create_array("embeddings", shape=(1,), dtype="f4")
    (path / ".DS_Store").touch()
    for name in ("notes.txt", "maps/read me", "film.partial"):
        (path / name).write_text("mine")
    before = files(tmp_path)
    with (
        pytest.raises(
            ValueError, match=r"\(embeddings, film\.partial, maps/read me, …\); move them away first"
        ),
        opened(path, overwrite=True),
    ):
        pass
    shutil.rmtree(path / "embeddings")
    before = {name: content for name, content in before.items() if "embeddings" not in name}
    with opened(path) as writer:  # resuming leaves the others as they are
        assert writer.missing() == [1, 2]
    assert files(tmp_path) == before
    for name in ("notes.txt", "maps/read me", "film.partial"):
        os.rename(path / name, tmp_path / name.replace("/", " "))
    with opened(path, overwrite=True) as writer:
        assert writer.missing() == [0, 1, 2]
    assert (tmp_path / "maps read me").read_text() == "mine"


def test_what_another_store_is_made_of_stays(tmp_path):
    for name in (".a.abc.partial", ".a.b.abc.partial"):
        (tmp_path / name / "maps").mkdir(parents=True)
    with opened(tmp_path / "a"):
        pass
    assert sorted(os.listdir(tmp_path)) == [".a.b.abc.partial", "a"]
