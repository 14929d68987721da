"""Stores are written in parts, resumed, and removed; nothing else is."""

import errno
import itertools
import json
import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from batchcam_captum.explain import OtherSettingsError, open_store, writing
from batchcam_captum.explain.layout import Status, chunk_size
from batchcam_captum.explain.store import PROGRESS
from batchcam_captum.explain.writing import check_output, remove_store

from .stores import COLUMNS, ENVIRONMENT, LAYOUT, SAMPLES, SETTINGS, files, opened, write


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A store that was written in one go."""
    path = tmp_path_factory.mktemp("whole") / "store"
    with opened(path) as writer:
        write(writer, *writer.missing())
    return path


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "store")


@pytest.fixture(autouse=True)
def no_patience(monkeypatch):
    monkeypatch.setattr(writing, "_RECORD_TIMEOUT", 5)
    monkeypatch.setattr(writing, "_WRITER_TIMEOUT", 0)


def resume(path):
    """Write what is missing, and return which chunks that was."""
    with opened(path) as writer:
        missing = writer.missing()
        write(writer, *missing)
    return missing


def test_a_store_holds_what_was_written(whole):
    store = open_store(whole)
    assert store.complete
    for name, column in COLUMNS.items():
        np.testing.assert_array_equal(getattr(store, name)[:], column)
    assert set(store.problems[:]) == {""}
    assert store.settings == SETTINGS
    assert store.about["environments"] == [ENVIRONMENT]
    assert store.verify() == {}


def test_ranks_share_the_chunks_and_any_number_may_resume(tmp_path, whole):
    with opened(tmp_path, rank=1, world_size=2) as writer:
        assert writer.missing() == [1]
        write(writer, 1)
    assert list(open_store(tmp_path).written()) == list(range(8, 16))
    assert not open_store(tmp_path).complete
    assert resume(tmp_path) == [0, 2]
    assert files(tmp_path) == files(whole)


def write_part(path, rank, barrier):
    with opened(path, rank=rank, world_size=3) as writer:
        barrier.wait(60)
        write(writer, *writer.missing())


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_several_processes_make_and_write_one_store(tmp_path, whole):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    processes = [
        context.Process(target=write_part, args=(tmp_path / "s", rank, barrier)) for rank in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 3
    assert files(tmp_path / "s") == files(whole)


class Killed(BaseException):
    pass


def kill_at(step, patch):
    """Stop the process before its file operation of this number."""
    operations = itertools.count()
    for name in ("replace", "unlink", "rmdir", "mkdir"):
        real = getattr(Path, name)

        def counted(*arguments, real=real, **options):
            if next(operations) == step:
                raise Killed
            return real(*arguments, **options)

        patch.setattr(Path, name, counted)


def mend(path):
    """Write a chunk again of which a sample was damaged."""
    with opened(path) as writer:
        write(writer, *writer.missing(retry_damaged=True))


DAMAGED = COLUMNS | {"status": np.where(np.arange(SAMPLES) == 9, Status.DAMAGED, 1).astype(np.uint8)}


@pytest.mark.parametrize(("action", "stride"), [("write", 7), ("mend", 5), ("remove", 11)])
def test_a_process_may_be_killed_at_any_step(tmp_path, whole, action, stride):
    for step in itertools.count(step=stride):
        path = tmp_path / str(step)
        if action == "mend":
            with opened(path) as writer:
                write(writer, 0, 1, 2, columns=DAMAGED)
        elif action == "remove":
            shutil.copytree(whole, path)
        try:
            with pytest.MonkeyPatch.context() as patch:
                kill_at(step, patch)
                {"write": resume, "mend": mend, "remove": remove_store}[action](path)
        except Killed:
            resume(path)
            mend(path)
            assert files(path) == files(whole)
        else:
            break
    assert step > 20


@pytest.mark.parametrize("name", ["maps/c.1.0.0.0", "ids/c.1", "status/c.1"])
@pytest.mark.parametrize("damage", ["lost", "emptied", "swapped"])
def test_files_that_were_lost_or_changed_are_found_and_written_again(copy, whole, name, damage):
    if damage == "lost":
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(b"" if damage == "emptied" else (copy / "targets/c.0.0").read_bytes())
    assert open_store(copy).verify() == {1: [name]}
    assert resume(copy) == [1]
    assert files(copy) == files(whole)


@pytest.mark.parametrize("text", ["", "[]", '{"chunks": {"0": [1], "99": []}, "environments": []}'])
def test_a_progress_record_that_cannot_be_read_counts_as_none(copy, whole, text):
    (copy / PROGRESS).write_text(text)
    assert not open_store(copy).complete
    assert resume(copy) == [0, 1, 2]
    assert files(copy) == files(whole)


def test_damaged_samples_are_tried_again_and_none_is_lost(tmp_path, whole):
    with opened(tmp_path) as writer:
        write(writer, 0, 1, 2, columns=DAMAGED)
    before = files(tmp_path)
    with opened(tmp_path) as writer:
        assert writer.missing() == []
        assert writer.missing(retry_damaged=True) == [1]
        write(writer, 1, columns=DAMAGED)  # nothing is better
        worse = COLUMNS | {"status": np.where(np.arange(SAMPLES) == 10, Status.DAMAGED, 1).astype(np.uint8)}
        write(writer, 1, columns=worse)
        assert files(tmp_path) == before
        with pytest.warns(UserWarning, match="1 of the store's samples cannot be read now"):
            writer.warn_lost()
        write(writer, 1)
    assert files(tmp_path) == files(whole)


def test_chunks_are_forgotten(copy, whole):
    with opened(copy) as writer:
        writer.forget([0, 2])
        store = open_store(copy)
        assert list(store.written()) == list(range(8, 16))
        assert not store.complete
        write(writer, 0, 2)
    assert files(copy) == files(whole)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"settings": SETTINGS | {"method": "hires_cam"}}, "method = 'grad_cam' there, 'hires_cam' here"),
        ({"settings": SETTINGS | {"data": {"folder": "pictures"}}}, "data.size = 224 there, None here"),
        ({"class_names": None}, r"class_names = \['cat', 'dog', 'ship'\] there, None here"),
        (
            {"layout": LAYOUT.__class__(SAMPLES, 4, (1, 4, 4), 3, thumbnail=(16, 16))},
            "chunk = 8 there, 4 here",
        ),
    ],
)
def test_other_settings_are_refused_and_named(copy, options, said):
    before = files(copy)
    with pytest.raises(OtherSettingsError, match=said), opened(copy, **options):
        pass
    assert files(copy) == before


@pytest.mark.parametrize(
    ("value", "kind"), [(Path("a"), TypeError), ({"a": float("nan")}, ValueError), ({1, 2}, TypeError)]
)
def test_settings_that_could_not_be_compared_are_refused(tmp_path, value, kind):
    with pytest.raises(kind, match="weights"), opened(tmp_path / "s", settings={"weights": value}):
        pass
    assert not any(tmp_path.iterdir())


def test_machines_are_listed_once_each_in_any_order(tmp_path):
    first, second = ENVIRONMENT, ENVIRONMENT | {"device": "cuda"}
    for name, order in (("a", (first, second, first)), ("b", (second, first))):
        for environment in order:
            with opened(tmp_path / name, environment=environment):
                pass
        assert open_store(tmp_path / name).about["environments"] == [first, second]


@pytest.mark.parametrize(
    ("part", "refused"), [((0, 1), True), ((0, 2), True), ((1, 2), False), ((1, 3), True)]
)
def test_two_writers_never_share_a_chunk(tmp_path, part, refused):
    rank, world_size = part
    with opened(tmp_path, rank=0, world_size=2):
        if refused:
            with (
                pytest.raises(ValueError, match="another process"),
                opened(tmp_path, rank=rank, world_size=world_size),
            ):
                pass
        else:
            with opened(tmp_path, rank=rank, world_size=world_size) as writer:
                write(writer, *writer.missing())
        with pytest.raises(ValueError, match="another process"):
            remove_store(tmp_path)
    remove_store(tmp_path)


def test_a_full_disk_keeps_what_is_written(tmp_path, whole, monkeypatch):
    real = writing.replace_file

    def full(path, data, **options):
        if path.name == "c.1.0.0.0":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, data, **options)

    monkeypatch.setattr(writing, "replace_file", full)
    with pytest.raises(OSError, match=f"{tmp_path}.*No space left.*run the same again") as caught:
        resume(tmp_path)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert resume(tmp_path) == [1, 2]
    assert files(tmp_path) == files(whole)


def test_a_store_that_somebody_removes_is_not_made_again(tmp_path):
    with opened(tmp_path / "store") as writer:
        shutil.rmtree(tmp_path / "store")
        with pytest.raises(OSError, match="store"):
            write(writer, 0)
    assert not (tmp_path / "store" / "maps").exists()


def make_foreign(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")


@pytest.mark.parametrize("name", ["notes.txt", "maps/notes.txt", "maps/c/notes.txt", "mine/zarr.json", "c.0"])
def test_a_store_with_other_files_is_not_removed(copy, name):
    make_foreign(copy / name)
    before = files(copy)
    with pytest.raises(ValueError, match=name.removesuffix("/notes.txt").removesuffix("/zarr.json")):
        remove_store(copy)
    assert files(copy) == before


@pytest.mark.parametrize("name", ["notes.txt", "maps/zarr.json", PROGRESS, "zarr.json"])
def test_a_folder_that_is_no_store_stays_as_it_is(tmp_path, name):
    make_foreign(tmp_path / name)
    if name == PROGRESS:
        make_foreign(tmp_path / "notes.txt")
    before = files(tmp_path)
    for action in (remove_store, check_output, resume):
        with pytest.raises(ValueError, match="got something else"):
            action(tmp_path)
    assert files(tmp_path) == before


def test_a_store_of_another_version_is_neither_resumed_nor_removed(copy):
    known = json.loads((copy / "zarr.json").read_text())
    known["attributes"]["batchcam_captum"]["format"] = 1
    (copy / "zarr.json").write_text(json.dumps(known))
    before = files(copy)
    for action in (remove_store, resume):
        with pytest.raises(ValueError, match="got one of version 1"):
            action(copy)
    assert files(copy) == before


@pytest.mark.parametrize("name", ["maps/c.1.0.0.0", ".batchcam.lock", f"{PROGRESS}.partial"])
def test_a_link_in_a_store_is_not_written_through(copy, tmp_path, name):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (copy / name).unlink(missing_ok=True)
    (copy / name).symlink_to(outside)
    for action in (remove_store, resume):
        with pytest.raises((ValueError, OSError), match=r"store"):
            action(copy)
    assert outside.read_text() == "mine"


def test_an_existing_folder_and_a_link_to_one_are_used(tmp_path, whole):
    (tmp_path / "folder").mkdir(mode=0o750)
    (tmp_path / "link").symlink_to("folder")
    before = os.stat(tmp_path / "folder")
    resume(tmp_path / "link")
    remove_store(tmp_path / "link")
    resume(tmp_path / "link")
    after = os.stat(tmp_path / "folder")
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert (tmp_path / "link").is_symlink()
    assert files(tmp_path / "folder") == files(whole)


def test_paths_that_cannot_be_a_store(tmp_path):
    (tmp_path / "file").touch()
    for path in ("", tmp_path / "file"):
        with pytest.raises(ValueError, match=r"expected"):
            check_output(path)
    with pytest.raises(OSError, match="file"):
        resume(tmp_path / "file" / "store")


def test_chunks_are_whole_batches_of_limited_size():
    assert chunk_size(32, (1, 7, 7), "float32") == 256
    assert chunk_size(100, (1, 7, 7), "float32") == 200
    assert chunk_size(1000, (1, 7, 7), "float32") == 1000
    assert chunk_size(8, (1000, 14, 14), "float32") == 80  # at most 64 MiB
    assert chunk_size(8, (1000, 14, 14), "float16") == 168
