"""The recipes of the documentation, run as they are: the real loops, Trainer and Accelerator."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "docs" / "recipes"
#: So small a weight measures the term and trains without it.
NOTHING = "1e-9"


@pytest.fixture
def recipe(capsys):
    """A recipe's ``main``; what it prints has to hold what it returns."""

    def run(name, *arguments):
        if name == "accelerate_training":
            from accelerate.state import AcceleratorState

            AcceleratorState._reset_state(reset_partial_state=True)  # one run a process, in real life
        capsys.readouterr()
        history = runpy.run_path(str(RECIPES / f"{name}.py"))["main"](
            [str(argument) for argument in arguments]
        )
        printed = capsys.readouterr().out
        for row in history[-1:]:
            for column, value in row.items():
                assert f"{column} {value:.4f}" in printed
        return history

    return run


pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning"),
    pytest.mark.filterwarnings(
        "ignore:Precision bf16-mixed is not supported by the model summary:UserWarning"
    ),
]


def test_plain_training_brings_the_cams_to_the_prototypes_and_learns(recipe):
    options = ("--device", "cpu", "--epochs", 3, "--batch-size", 32)
    without = recipe("plain", *options, "--precision", "float32", "--weight", NOTHING)
    for precision in ("bfloat16", "float16", "float32"):
        history = recipe("plain", *options, "--precision", precision)
        assert history[-1]["accuracy"] > 0.8, precision
        assert history[-1]["batch_cam"] < 0.5 * without[-1]["batch_cam"], precision
        assert history[-1]["dead_fraction"] < without[-1]["dead_fraction"], precision


def test_plain_training_resumes_bit_for_bit(recipe, tmp_path):
    options = ("--device", "cpu", "--precision", "float16")  # with a GradScaler, whose state matters too
    whole = recipe("plain", *options, "--epochs", 2, "--checkpoint", tmp_path / "whole.pt")
    recipe("plain", *options, "--epochs", 1, "--checkpoint", tmp_path / "resumed.pt")
    resumed = recipe("plain", *options, "--epochs", 2, "--checkpoint", tmp_path / "resumed.pt")
    assert resumed == whole
    ours, theirs = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("whole", "resumed"))
    for name, tensor in ours["model"].items():
        assert torch.equal(tensor, theirs["model"][name])
    assert (
        ours["regularizer"]["_extra_state"]["steps"]
        == theirs["regularizer"]["_extra_state"]["steps"]
        == 2 * 22
    )
    assert ours["scaler"] == theirs["scaler"]


def test_timm_with_mixup_and_ema(recipe):
    options = ("--device", "cpu", "--epochs", 4, "--size", 32)
    without, history = (
        recipe("timm_training", *options, "--weight", NOTHING),
        recipe("timm_training", *options),
    )
    assert history[-1]["accuracy"] > 0.5
    assert history[-1]["l1"] < 0.8 * without[-1]["l1"]
    assert history[-1]["batch_cam"] < 0.8 * without[-1]["batch_cam"]
    assert history[-1]["cosine"] > without[-1]["cosine"]


def test_accelerate_on_one_process(recipe):
    options = ("--cpu", "--epochs", 4)  # the rate goes down to zero, and two epochs of that are too few
    without, history = (
        recipe("accelerate_training", *options, "--weight", NOTHING),
        recipe("accelerate_training", *options),
    )
    assert history[-1]["accuracy"] > 0.75
    assert history[-1]["batch_cam"] < 0.5 * without[-1]["batch_cam"]
    # The cosine is through; 42 micro-batches an epoch are 21 steps.
    assert [row["learning_rate"] for row in history[1::2]] == pytest.approx([1e-3, 0], abs=1e-9)


def test_accelerate_counts_the_steps_of_an_epoch_that_micro_batches_do_not_divide(recipe):
    history = recipe("accelerate_training", "--cpu", "--epochs", 2, "--accumulate", 4)
    assert [row["learning_rate"] for row in history] == pytest.approx([1e-3, 0], abs=1e-9)


def test_accelerate_resumes(recipe, tmp_path):
    options = ("--cpu", "--precision", "no")
    # The scheduler's length is that of the whole training: the epochs are the same in both.
    whole = recipe("accelerate_training", *options, "--epochs", 2, "--checkpoint", tmp_path / "whole")
    main = runpy.run_path(str(RECIPES / "accelerate_training.py"))
    assert main["Progress"]().state_dict() == {"epochs": 0}
    again = recipe("accelerate_training", *options, "--epochs", 3, "--checkpoint", tmp_path / "whole")
    assert len(whole) == 2
    assert len(again) == 1  # the third alone
    saved = torch.load(tmp_path / "whole" / "custom_checkpoint_0.pkl", weights_only=True)
    assert saved["_extra_state"]["steps"] == 3 * 21
    assert again[0]["batch_cam"] < whole[0]["batch_cam"]


def rows(text):
    return [
        {name: float(value) for name, value in re.findall(r"(\w+) (-?\d+\.\d+)", line)}
        for line in text.splitlines()
        if line.startswith("epoch")
    ]


def test_accelerate_on_two_processes_trains_what_one_does_with_batches_twice_as_large(recipe):
    options = ["--cpu", "--epochs", "2", "--precision", "no", "--accumulate", "1"]
    script = [str(RECIPES / "accelerate_training.py"), *options, "--batch-size", "32"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *script],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    two = rows(done.stdout)
    one = recipe("accelerate_training", *options, "--batch-size", 64)
    assert len(two) == len(one) == 2
    for ours, theirs in zip(two, one, strict=True):
        assert ours["batch_cam"] == pytest.approx(theirs["batch_cam"], abs=1e-4)
        assert ours["learning_rate"] == theirs["learning_rate"]
        assert ours["accuracy"] == pytest.approx(theirs["accuracy"], abs=1.5 / 450)  # one image of rounding


@pytest.mark.parametrize("accumulate", [1, 2])
def test_lightning_trains_and_resumes(recipe, tmp_path, accumulate):
    options = ("--device", "cpu", "--accumulate", accumulate, "--folder", tmp_path)
    first = recipe("lightning_training", *options, "--epochs", 2)
    resumed = recipe("lightning_training", *options, "--epochs", 4, "--resume")
    assert (len(first), len(resumed)) == (2, 2)
    assert resumed[-1]["accuracy"] > first[0]["accuracy"]
    saved = torch.load(next(tmp_path.glob("**/last.ckpt")), weights_only=True)
    assert saved["state_dict"]["regularizer._extra_state"]["steps"] == 4 * 22 // accumulate
    assert saved["state_dict"]["regularizer.terms.batch_cam.prototypes.counts"].sum() == 1347


def test_lightning_brings_the_cams_to_the_prototypes(recipe, tmp_path):
    options = ("--device", "cpu", "--epochs", 3, "--folder", tmp_path)
    without = recipe("lightning_training", *options, "--weight", NOTHING)
    history = recipe("lightning_training", *options)
    assert history[-1]["batch_cam"] < 0.5 * without[-1]["batch_cam"]
    assert len(list(tmp_path.glob("**/events.out.tfevents.*"))) == 2


def test_the_page_explains_each_recipe():
    page = (RECIPES / "README.md").read_text(encoding="utf-8")
    for path in RECIPES.glob("*.py"):
        assert f"]({path.name})" in page
    for name in re.findall(r"\]\((\w+\.py)\)", page):
        assert (RECIPES / name).exists()


def test_the_extra_of_a_recipe_holds_what_it_imports():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = extras["optional-dependencies"]
    # Lightning itself does not require what its TensorBoardLogger writes with.
    assert any(each.startswith("tensorboard") for each in extras["lightning"])
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert {"lightning_logs/", "run.pt"} <= set(ignored)
