"""Writing stores: going on, refusing, several at once, and everything that can break off."""

import errno
import multiprocessing
import os
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest

from batchcam_captum.explain import OtherSettingsError, open_store
from batchcam_captum.explain.layout import Layout, Status, chunk_size

from .stores import CHUNK, COLUMNS, ENVIRONMENT, LAYOUT, SAMPLES, SETTINGS, files, opened, write

resource = pytest.importorskip("resource")  # not on Windows


def no_room(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def in_a_fork(action):
    """Run it in another process, and return its exit code."""
    process = multiprocessing.get_context("fork").Process(target=action)
    process.start()
    process.join(60)
    return process.exitcode


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The files of a store that was written in one go."""
    path = tmp_path_factory.mktemp("whole") / "store"
    with opened(path) as writer:
        write(writer, 0, 1, 2)
        assert writer.finish()
    return files(path.parent)


def test_a_store_holds_what_was_written(tmp_path, whole):
    path = tmp_path / "new" / "folders" / "store"
    with opened(path) as writer:
        assert writer.missing() == [0, 1, 2]
        write(writer, 2, 0)
        assert writer.missing() == [1]
        assert not writer.finish()
        assert not open_store(path).complete
        write(writer, 1)
        assert writer.finish()
    store = open_store(path)
    assert store.complete
    assert store.about["written"] == SAMPLES
    for name, column in COLUMNS.items():
        np.testing.assert_array_equal(store.arrays()[name][:], column)
    assert files(path.parent) == whole  # whatever the order


def test_ranks_share_the_chunks(tmp_path):
    with opened(tmp_path / "store", alone=False) as writer:
        write(writer, 1)
        parts = [writer.missing(rank, 2) for rank in range(2)]
    assert parts == [[0, 2], []]


def test_a_run_that_was_killed_goes_on_to_the_same_bytes(tmp_path, whole):
    """In the middle of an array's file, which Zarr has under another name until it is whole."""
    path = tmp_path / "store"

    def killed(self, target):
        if "scores" in str(target) and "/c/1/" in str(target):
            os.kill(os.getpid(), signal.SIGKILL)
        return os.replace(self, target)

    def run():
        Path.replace = killed
        with opened(path) as writer:
            write(writer, 0, 1, 2)

    assert in_a_fork(run) == -signal.SIGKILL
    left = [name for name in files(tmp_path) if name.endswith(".partial")]
    assert len(left) == 1
    (tmp_path / ".store.abc.partial" / "maps").mkdir(
        parents=True
    )  # of one that was killed while it made the store
    store = open_store(path)
    assert store.written().tolist() == list(range(CHUNK))
    with opened(path) as writer:
        assert writer.missing() == [1, 2]
        write(writer, *writer.missing())
        writer.finish()
    assert files(tmp_path) == whole
    assert os.listdir(tmp_path) == ["store"]


def test_damaged_samples_are_tried_again(tmp_path, monkeypatch, whole):
    """Until its chunk is written anew a store says that it is not complete, whenever it is killed."""
    path, rows = tmp_path / "store", LAYOUT.rows(1)
    damaged = {name: column[rows].copy() for name, column in COLUMNS.items()}
    damaged["maps"][1], damaged["status"][1] = np.nan, Status.DAMAGED
    damaged["problems"] = np.array(["", "OSError: gone", *[""] * 6], dtype=object)
    with opened(path) as writer:
        write(writer, 0, 2)
        writer.write(1, damaged)
        assert writer.finish()
    assert open_store(path).about["damaged"] == 1
    with opened(path) as writer:
        assert writer.missing() == []
        parts = [writer.missing(rank, 2, retry_damaged=True) for rank in range(2)]
        assert parts == [[], [1]]
        assert open_store(path).complete
        with monkeypatch.context() as patch:
            replace = Path.replace
            patch.setattr(Path, "replace", lambda a, b: (no_room if "maps" in a.parts else replace)(a, b))
            with pytest.raises(OSError, match="No space left"):
                write(writer, 1)
    store = open_store(path)
    assert not store.complete
    assert not {"written", "damaged"} & store.about.keys()
    assert store.written().tolist() == [*range(CHUNK), *range(2 * CHUNK, SAMPLES)]
    with opened(path) as writer:
        assert writer.missing() == [1]
        write(writer, 1)
        writer.finish()
    assert files(tmp_path) == whole


def test_chunks_are_taken_back(tmp_path, whole):
    path = tmp_path / "store"
    with opened(path) as writer:
        write(writer, 0, 1, 2)
        writer.finish()
        before = files(path / "status")
        writer.take_back([])
        assert open_store(path).complete
        writer.take_back([2, 1])
        store = open_store(path)
        assert not store.complete
        assert not {"written", "damaged"} & store.about.keys()
        assert writer.missing() == [1, 2]
        assert store.written().tolist() == list(range(CHUNK))
        assert files(path / "status")["c/0"] == before["c/0"]
        write(writer, 1, 2)
        writer.finish()
    assert files(tmp_path) == whole


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"settings": SETTINGS | {"layer": "layer3"}}, "layer = 'layer4' there, 'layer3' here"),
        ({"settings": SETTINGS | {"data": {"folder": "pictures", "size": 299}}}, "data.size = 224 there, 299 here"),
        ({"settings": SETTINGS | {"crop": 0.9}}, "crop = None there, 0.9 here"),
        ({"class_names": None}, r"class_names = \['cat', 'dog', 'ship'\] there, None here"),
        ({"layout": Layout(SAMPLES, 4, (1, 4, 4), 3, "float32", (16, 16))}, "maps = .*there.* 'chunks of', 4"),
        ({"layout": Layout(SAMPLES, CHUNK, (1, 4, 4), 3, "float32")}, "thumbnails = .* there, None here"),
    ],
)  # fmt: skip
def test_other_settings_are_refused_and_named(tmp_path, options, said):
    with opened(tmp_path / "store") as writer:
        write(writer, 0)
    before = files(tmp_path)
    with (
        pytest.raises(OtherSettingsError, match=f"same settings, got .*{said}.*overwrite"),
        opened(tmp_path / "store", **options),
    ):
        pass
    assert files(tmp_path) == before
    with opened(tmp_path / "store", overwrite=True, **options) as writer:
        assert writer.missing() == list(range(writer.layout.chunks))


def test_machines_are_listed_once_each_in_any_order(tmp_path):
    """Which process comes first makes no difference, nor which of the GPUs it has."""
    others = [ENVIRONMENT | {"device": device} for device in ("cuda:1", "cuda:0")]
    for place, environments in enumerate([(ENVIRONMENT, *others), (*others, ENVIRONMENT)]):
        for environment in environments:
            with opened(tmp_path / str(place), environment=environment):
                pass
        found = open_store(tmp_path / str(place)).about["environments"]
        assert found == [ENVIRONMENT, ENVIRONMENT | {"device": "cuda"}]
    assert files(tmp_path / "0") == files(tmp_path / "1")


def test_one_that_writes_alone_keeps_others_out(tmp_path):
    path = tmp_path / "store"
    with opened(path) as writer:
        for options in ({}, {"overwrite": True}):
            with (
                pytest.raises(ValueError, match="nobody is writing, got one that another process"),
                opened(path, **options),
            ):
                pass
        write(writer, 0)
    with opened(path, alone=False):
        with pytest.raises(ValueError, match="nobody is writing"), opened(path):
            pass
        with opened(path, alone=False) as writer:
            assert writer.missing() == [1, 2]


def test_several_processes_write_at_once(tmp_path, whole):
    """They all make the store, and each writes its part; the last says that it is complete."""
    path, context = tmp_path / "store", multiprocessing.get_context("fork")
    ready, done = context.Barrier(3), context.Barrier(3)

    def run(rank):
        ready.wait(30)
        with opened(path, alone=False) as writer:
            write(writer, *writer.missing(rank, 3))
            done.wait(30)
            writer.finish()

    processes = [context.Process(target=run, args=(rank,)) for rank in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert files(tmp_path) == whole


def test_another_process_that_makes_the_store_first_may_clear_up_what_this_one_makes(tmp_path, monkeypatch):
    path, made = tmp_path / "store", tempfile.mkdtemp

    def overtaken(**options):
        folder = made(**options)
        monkeypatch.setattr(tempfile, "mkdtemp", made)
        with opened(path):
            pass
        assert not Path(folder).exists()
        Path(folder).write_text("so that nothing can be made in it")
        return folder

    monkeypatch.setattr(tempfile, "mkdtemp", overtaken)
    with opened(path) as writer:
        assert writer.missing() == [0, 1, 2]
    next(tmp_path.glob(".store.*")).unlink()


@pytest.mark.parametrize("real", [False, True])
def test_a_full_disk_loses_nothing(tmp_path, monkeypatch, whole, real):
    """As Python tells of one, and with the system's limit on the size of files, which is met in the middle of one."""
    path = tmp_path / "store"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(path) as writer:
        write(writer, 0)
        if real:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2048, limits[1]))
        else:
            monkeypatch.setattr(Path, "replace", no_room)
        try:
            said = "expected .*; what is written is kept" + (
                "$" if real else ": make room and run the same again"
            )
            with pytest.raises(OSError, match=f"store: {said}") as caught:
                write(writer, 1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    monkeypatch.undo()
    assert caught.value.errno == (errno.EFBIG if real else errno.ENOSPC)
    assert not [name for name in files(tmp_path) if name.endswith(".partial")]
    with opened(path) as writer:
        assert writer.missing() == [1, 2]
        write(writer, 1, 2)
        writer.finish()
    assert files(tmp_path) == whole


def test_chunks_are_whole_batches_of_a_bearable_size():
    assert chunk_size(32, (1, 7, 7), "float32") == 256
    assert chunk_size(100, (1, 7, 7), "float32") == 200
    assert chunk_size(1000, (1, 7, 7), "float32") == 1000
    assert chunk_size(8, (1000, 14, 14), "float32") == 80  # of 64 MiB at most
    assert chunk_size(8, (1000, 14, 14), "float16") == 168
    assert [LAYOUT.rows(chunk) for chunk in range(LAYOUT.chunks)] == [
        slice(0, 8),
        slice(8, 16),
        slice(16, 22),
    ]
