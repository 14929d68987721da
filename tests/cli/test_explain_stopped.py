"""``batchcam explain`` stopped, gone on with, and tried again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest

from batchcam_captum.explain import layout, open_store
from batchcam_captum.explain import run as explaining
from batchcam_captum.explain.layout import Status
from tests.cli.test_explain import NAMES, bytes_of, make_files, of_folder, run
from tests.explain.test_sources import save

SLOW_FILE = """
import time
from model import Small

class Slow(Small):
    def forward(self, images):
        time.sleep(0.4)
        return super().forward(images)

def make():
    return Slow(2)
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("stopped"))


def test_an_interrupt_keeps_what_is_written(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(layout, "_CHUNK_SAMPLES", 2)
    assert of_folder(files, "--output", tmp_path / "whole") == 0
    batches = explaining.guarded_batches

    def interrupted(*arguments, **options):
        yield from islice(batches(*arguments, **options), 2)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(explaining, "guarded_batches", interrupted)
        capsys.readouterr()
        assert of_folder(files, "--output", tmp_path / "out") == 130
    error = capsys.readouterr().err
    assert (
        error
        == f"batchcam: interrupted; 4 images are in {tmp_path}/out and stay: give the same command again\n"
    )
    assert not open_store(tmp_path / "out").complete
    assert of_folder(files, "--output", tmp_path / "out") == 0
    assert "Explained 5 of 6 images, 4 of them earlier, " in capsys.readouterr().out
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_sigterm_ends_it_in_order(files, tmp_path):
    for number in range(60):
        save(tmp_path / "images" / f"{number}.png", seed=number)
    (tmp_path / "slow.py").write_text(SLOW_FILE)
    maps = ["--layer", "1", "--size", "16", "--batch-size", "1", "--workers", "2"]
    command = [sys.executable, "-c", "from batchcam_captum.explain import layout; layout._CHUNK_SAMPLES = 2;"
               "from batchcam_captum.cli import main; raise SystemExit(main())", "explain",
               f"{tmp_path}/slow.py:make", "--data", f"{tmp_path}/images", "--output", f"{tmp_path}/out", *maps]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(files), *sys.path])}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            until = time.monotonic() + 180
            while _written(tmp_path / "out") < 4:
                assert process.poll() is None
                assert time.monotonic() < until
                time.sleep(0.05)
            workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            process.terminate()
            error = process.communicate(timeout=180)[1]
        finally:
            process.kill()
    assert len(workers) >= 2
    assert process.returncode == 143
    done = _written(tmp_path / "out")
    assert 4 <= done < 60
    assert (
        error
        == f"batchcam: terminated; {done} images are in {tmp_path}/out and stay: give the same command again\n"
    )
    assert not any(Path("/proc", worker).exists() for worker in workers)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def _written(path):
    try:
        return int((open_store(path).status[:] == Status.WRITTEN).sum())
    except (OSError, ValueError):  # not there yet
        return 0


def test_images_that_were_mended_are_tried_again_when_asked_for(tmp_path, capsys, files):
    shutil.copytree(files / "images", tmp_path / "images")
    damaged = tmp_path / "images" / "dogs" / "0.png"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:60])

    def explained(*more):
        where = ["--data", tmp_path / "images", "--output", tmp_path / "out"]
        maps = ["--layer", "1", "--size", 16, "--batch-size", 2, "--workers", 0, "--quiet"]
        assert run(f"{files / 'model.py'}:make", *where, *maps, *more) == 0
        return capsys.readouterr().out, open_store(tmp_path / "out")

    remedy = "\nAfter repairing them: the same command with --retry-damaged\n"
    printed, store = explained()
    assert "Explained 4 of 6 images, " in printed
    assert remedy in printed
    damaged.write_bytes(whole)
    printed, store = explained()
    assert "Explained 4 of 6 images, 6 of them earlier\n" in printed
    assert store.status[3] == Status.DAMAGED
    printed, store = explained("--retry-damaged")
    assert "Explained 5 of 6 images, " in printed
    assert "earlier" not in printed  # all are in one chunk
    assert store.status[:].tolist() == [Status.WRITTEN] * 5 + [Status.DAMAGED]
    assert remedy in printed
    (tmp_path / "images" / "dogs" / "a b.png").write_bytes(whole)
    printed, store = explained("--retry-damaged")
    assert "Could not be read" not in printed
    assert (store.complete, set(store.status[:].tolist())) == (True, {Status.WRITTEN})


def test_files_that_are_missing_in_a_row_end_the_run(tmp_path, capsys, files):
    rows = [f"{files}/images/{NAMES[0]}", *(f"gone/{number}.png" for number in range(4))]
    (tmp_path / "list.csv").write_text("\n".join(["path", *rows]))
    listed = ["--data", tmp_path / "list.csv", "--layer", "1", "--size", 16, "--batch-size", 2]
    command = [f"{files / 'model.py'}:make", *listed, "--workers", 0, "--output", tmp_path / "out", "--quiet"]
    assert run(*command, "--max-missing", 4) == 1
    error = capsys.readouterr().err
    assert "got 4 in a row" in error
    assert error.count("\n") == 1
    assert run(*command, "--max-missing", 0) == 0
    assert open_store(tmp_path / "out").status[:].tolist() == [Status.WRITTEN] + [Status.DAMAGED] * 4
    (tmp_path / "list.csv").write_text("\n".join(["path", *rows[1:]]))
    assert run(*command[:-2], tmp_path / "other", "--max-missing", 2) == 1
    assert "got 2 in a row" in capsys.readouterr().err, "also before there is a store"
