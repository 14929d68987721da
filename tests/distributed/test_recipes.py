"""The recipes for several processes, as their first lines say, on two of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.distributed.group import ROOT

RECIPES = ("ddp", "fsdp2")


@pytest.fixture(scope="module")
def printed():
    """What each recipe prints; they run side by side."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    running = {
        name: subprocess.Popen(
            [*command, str(ROOT / "docs" / "recipes" / f"{name}.py")],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for name in RECIPES
    }
    outputs = {}
    for name, process in running.items():
        try:
            outputs[name] = process.communicate(timeout=180)[0]
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun ends its workers
            outputs[name] = f"hangs: {process.communicate()[0]}"
    return outputs


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_trains(printed, name):
    found = re.search(r"test accuracy (\S+) .*'batch_cam': (\S+),", printed[name])
    assert found, printed[name]
    accuracy, term = map(float, found.groups())
    first = float(re.search(r"epoch 0 .*'batch_cam': ([^,]+),", printed[name])[1])
    assert accuracy > 0.9
    assert term < first


def test_both_ways_of_spreading_a_model_train_alike(printed):
    """DDP and FSDP2 differ in where the parameters lie, and in nothing else."""
    terms = [re.findall(r"'batch_cam': ([^,]+),", printed[name]) for name in RECIPES]
    assert [float(term) for term in terms[0]] == pytest.approx([float(term) for term in terms[1]], rel=0.01)
    assert len(terms[0]) > 2
