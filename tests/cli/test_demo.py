"""The command line, called as a user calls it."""

import json
import re
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch

from batchcam_captum import __version__
from batchcam_captum.cli import main
from batchcam_captum.demo.model import SimpleCNN
from batchcam_captum.demo.train import train_both

QUICK = ["demo", "--epochs", "1", "--quiet"]
FILES = {"cross_entropy.pt", "maps.png", "misclassified.png", "regularized.pt", "results.json"}


def without_times(results: dict) -> dict:
    for run in results["runs"]:
        del run["step_ratio"]
        for arm in ("cross_entropy", "regularized"):
            del run[arm]["seconds_per_step"]
    return results["runs"]


def results_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of one run, which was not there before, and what it printed."""
    folder = tmp_path_factory.mktemp("demo") / "new" / "folder"
    with redirect_stdout(StringIO()) as printed:
        assert main([*QUICK, "--output", str(folder)]) == 0
    return folder, printed.getvalue()


def test_demo_writes_its_files_and_the_table_it_prints(finished):
    folder, printed = finished
    assert {path.name for path in folder.iterdir()} == FILES
    results = results_of(folder)
    assert results["table"] in printed
    assert results["environment"]["torch"] == torch.__version__
    assert all(
        (folder / name).read_bytes().startswith(b"\x89PNG") for name in ("maps.png", "misclassified.png")
    )
    for row in ("test accuracy", "L1", "SSIM", "cosine", "dead cams", "milliseconds a step", "ratio"):
        assert row in printed


def test_checkpoint_gives_the_accuracy_of_the_table(finished):
    from batchcam_captum.demo.data import load_data

    folder, _ = finished
    data = load_data("digits")
    for name in ("cross_entropy", "regularized"):
        checkpoint = torch.load(folder / f"{name}.pt", weights_only=True)
        model = SimpleCNN(checkpoint["num_classes"], checkpoint["image_size"])
        model.load_state_dict(checkpoint["model"])
        with torch.no_grad():
            accuracy = (model(data.test.images).argmax(1) == data.test.labels).double().mean()
        assert accuracy.item() == pytest.approx(results_of(folder)["runs"][0][name]["accuracy"])


def test_several_seeds_give_a_spread_and_files_of_their_own(tmp_path, capsys, finished):
    assert main([*QUICK, "--seeds", "0", "1", "--output", str(tmp_path)]) == 0
    assert "±" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"results.json"} | {
        name.replace(".", f"-seed{seed}.") for name in FILES - {"results.json"} for seed in (0, 1)
    }
    # The same seed gives the same numbers, and another seed others.
    (alone,), (first, second) = (without_times(results_of(folder)) for folder in (finished[0], tmp_path))
    assert alone == first
    assert alone["cross_entropy"] != second["cross_entropy"]


@pytest.mark.parametrize("loss", ["prototype", "prototype_contrastive", "image"])
def test_every_loss_can_be_chosen(tmp_path, loss):
    assert main([*QUICK, "--loss", loss, "--distance", "l1", "--output", str(tmp_path)]) == 0


def test_weight_zero_leaves_both_arms_alike(tmp_path):
    assert main([*QUICK, "--weight", "0", "--output", str(tmp_path)]) == 0
    run = without_times(results_of(tmp_path))[0]
    assert run["cross_entropy"] == run["regularized"]


def test_module_can_be_run():
    done = subprocess.run(
        [sys.executable, "-m", "batchcam_captum", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"batchcam-captum {__version__}"


absent = [
    name
    for name, there in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available()))
    if not there
]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--loss", "shape"], "loss: expected one of .*'batch_cam'.*got 'shape'"),
        (["--distance", "l3"], "distance: expected one of .*'l1'.*got 'l3'"),
        (["--epochs", "0"], "epochs: expected at least 1, got 0"),
        (["--batch-size", "-1"], "batch_size: expected at least 1, got -1"),
        *(
            (
                ["--learning-rate", value],
                f"batchcam: learning_rate: expected a finite number above 0, got {value}",
            )
            for value in ("0.0", "-1.0", "nan", "inf")
        ),
        *(
            (["--weight", value], f"batchcam: weight: expected a finite number of at least 0, got {value}")
            for value in ("-1.0", "nan", "inf")
        ),
        (["--seeds", "1", "1"], "seeds: expected at least one, and each once"),
        (["--seeds", str(2**70)], "seeds: expected integers of 64 bits, got .*; pass smaller ones"),
        *(
            (["--device", name], f"device: expected cpu, cuda, .* got '{name}' .{{,250}}; pass cpu")
            for name in ("foo", "", "meta", "xla", "hpu", "cuda:-1", "cuda:99", *absent)
        ),
        (["--data", "mnist"], "--data-root: expected the folder that holds mnist, got none"),
        (
            ["--data", "mnist", "--data-root", "/no/such/folder"],
            "--data-root: expected a folder, got /no/such/folder",
        ),
    ],
)
def test_bad_arguments_are_explained_and_leave_nothing(tmp_path, capsys, arguments, message):
    folder = tmp_path / "new" / "folder"
    assert main([*QUICK, "--output", str(folder), *arguments]) == 1
    captured = capsys.readouterr()
    assert re.search(message, captured.err)
    assert "Traceback" not in captured.err
    assert not list(tmp_path.iterdir())


def test_folder_that_cannot_be_written_to_is_refused_before_the_training(tmp_path, capsys):
    blocker = tmp_path / "file"
    blocker.write_text("kept")
    assert main([*QUICK, "--output", str(blocker / "folder")]) == 1
    assert "--output: expected a folder that can be written to" in capsys.readouterr().err
    assert blocker.read_text() == "kept"
    assert list(tmp_path.iterdir()) == [blocker]


def earlier_results(folder: Path, name: str | None = None) -> dict[str, bytes]:
    """Files of an earlier run, one of them replaced by a folder."""
    for file in FILES - {name}:
        (folder / file).write_bytes(b"earlier " + file.encode())
    if name is not None:
        (folder / name).mkdir()
    return content(folder)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() if path.is_file() else b"folder" for path in folder.iterdir()}


@pytest.mark.parametrize("name", sorted(FILES))
def test_folder_in_the_place_of_a_result_is_refused_before_the_training(tmp_path, capsys, monkeypatch, name):
    def train(*_, **__):
        pytest.fail("trained first")

    monkeypatch.setattr("batchcam_captum.demo.run.train_both", train)
    before = earlier_results(tmp_path, name)
    assert main([*QUICK, "--output", str(tmp_path)]) == 1
    assert (
        f"{tmp_path / name}: expected a file to replace, or nothing, got a folder" in capsys.readouterr().err
    )
    assert content(tmp_path) == before


def test_folder_in_the_place_of_a_seeds_result_is_refused(tmp_path, capsys):
    (tmp_path / "maps-seed1.png").mkdir()
    assert main([*QUICK, "--seeds", "0", "1", "--output", str(tmp_path)]) == 1
    assert f"{tmp_path / 'maps-seed1.png'}: expected a file" in capsys.readouterr().err


def test_folder_that_appears_during_the_training_leaves_earlier_results_as_they_were(
    tmp_path, capsys, monkeypatch
):
    def train(*arguments, **options):
        (tmp_path / "regularized.pt").unlink()
        (tmp_path / "regularized.pt").mkdir()
        return train_both(*arguments, **options)

    monkeypatch.setattr("batchcam_captum.demo.run.train_both", train)
    earlier_results(tmp_path)
    before = {**content(tmp_path), "regularized.pt": b"folder"}
    assert main([*QUICK, "--output", str(tmp_path)]) == 1
    assert f"{tmp_path / 'regularized.pt'}: expected a file to replace" in capsys.readouterr().err
    assert content(tmp_path) == before


def test_full_disk_leaves_earlier_results_as_they_were_and_is_explained(tmp_path, capsys):
    resource = pytest.importorskip("resource")
    before = earlier_results(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (400_000, limits[1])
    )  # enough for a picture, not for a checkpoint
    try:
        assert main([*QUICK, "--output", str(tmp_path)]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error = capsys.readouterr().err
    assert re.search(
        rf"{tmp_path}/cross_entropy.pt: expected to write it, got: .*; free some space, or choose another --output",
        error,
    )
    assert ".incomplete" not in error
    assert content(tmp_path) == before


def test_interrupt_leaves_nothing(tmp_path, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("batchcam_captum.demo.run.train_both", interrupt)
    assert main([*QUICK, "--output", str(tmp_path / "folder")]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
