"""A rank of ``torchrun`` that is killed: what all have written stays, and whoever goes on ends in the same bytes."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import numpy as np

from batchcam_captum.cli import main
from batchcam_captum.explain import layout, open_store
from tests.cli.test_explain import MODEL_FILE, bytes_of
from tests.distributed.group import ROOT
from tests.explain.test_sources import save

#: Seven chunks of two images; the second rank has those of odd numbers, and is killed when the last of them alone is missing.
COUNT, LAST = 14, 5
SCRIPT = f"""
import os, signal, sys
from batchcam_captum.cli import main
from batchcam_captum.explain import layout
from batchcam_captum.explain.writing import StoreWriter

layout._CHUNK_SAMPLES = 2
write = StoreWriter.write

def killed(self, chunk, columns):
    if chunk == {LAST}:
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, chunk, columns)

StoreWriter.write = killed
sys.exit(main(sys.argv[1:]))
"""


def test_a_rank_that_is_killed_loses_nothing(tmp_path, capsys, monkeypatch):
    (tmp_path / "model.py").write_text(MODEL_FILE)
    (tmp_path / "killed.py").write_text(SCRIPT)
    for number in range(COUNT):
        save(tmp_path / "images" / f"{number:02}.png", seed=number)
    images = ["--data", f"{tmp_path}/images", "--size", "8", "--workers", "0", "--batch-size", "2"]
    command = ["explain", f"{tmp_path}/model.py:make", *images, "--layer", "1"]

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, str(tmp_path / "killed.py"), *command, "--output", f"{tmp_path}/out"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode != 0
    assert re.search(r"Signal 9 \(SIGKILL\)|exitcode *: -9", done.stderr), done.stderr
    store = open_store(tmp_path / "out")
    assert not store.complete
    left = store.status[:].reshape(-1, 2)
    assert left[1::2].tolist() == [[1, 1], [1, 1], [0, 0]], done.stderr
    written = int((left != 0).sum())

    monkeypatch.setattr(layout, "_CHUNK_SAMPLES", 2)
    before = store.maps[:][: 2 * LAST]
    assert main([*command, "--output", f"{tmp_path}/out"]) == 0
    assert f"Explained {COUNT} of {COUNT} images, {written} of them earlier" in capsys.readouterr().out
    assert main([*command, "--output", f"{tmp_path}/whole"]) == 0
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")
    kept = left.ravel()[: 2 * LAST] == 1
    np.testing.assert_array_equal(before[kept], open_store(tmp_path / "out").maps[:][: 2 * LAST][kept])
