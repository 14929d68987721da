"""``batchcam explain`` stopped, resumed, and tried again."""

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


def test_damaged_images_are_tried_again_on_request(tmp_path, capsys, files):
    shutil.copytree(files / "images", tmp_path / "images")
    options = ["--data", tmp_path / "images", "--layer", "1", "--size", 16, "--workers", 0, "--quiet"]
    command = [f"{files / 'model.py'}:make", *options, "--output", tmp_path / "out"]
    assert run(*command) == 0
    assert "--retry-damaged" in capsys.readouterr().out
    shutil.copy(tmp_path / "images" / "dogs" / "0.png", tmp_path / "images" / "dogs" / "a b.png")
    assert run(*command) == 0
    assert "Explained 5 of 6 images, 6 of them earlier\n" in capsys.readouterr().out
    assert run(*command, "--retry-damaged") == 0
    assert "Explained 6 of 6 images" in capsys.readouterr().out
    assert set(open_store(tmp_path / "out").status[:].tolist()) == {Status.WRITTEN}


def test_files_that_are_missing_in_a_row_end_the_run(tmp_path, capsys, files):
    rows = [f"{files}/images/{NAMES[0]}", *(f"gone/{number}.png" for number in range(4))]
    (tmp_path / "list.csv").write_text("\n".join(["path", *rows]))
    options = ["--data", tmp_path / "list.csv", "--layer", "1", "--size", 16, "--workers", 0, "--quiet"]
    command = [f"{files / 'model.py'}:make", *options, "--output", tmp_path / "out"]
    assert run(*command, "--max-missing", 4) == 1
    assert "got 4 in a row" in capsys.readouterr().err
    assert run(*command, "--max-missing", 0) == 0
    assert open_store(tmp_path / "out").status[:].tolist() == [Status.WRITTEN] + [Status.DAMAGED] * 4
