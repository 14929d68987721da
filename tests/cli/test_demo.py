"""``batchcam demo``, called as a user calls it."""

import json
import re
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch

from batchcam_captum.cli import main
from batchcam_captum.demo.data import Images, load_data
from batchcam_captum.demo.model import SimpleCNN
from batchcam_captum.demo.train import train_both
from batchcam_captum.evaluation.figures import message_figure

QUICK = ["demo", "--epochs", "1", "--quiet"]
FILES = {"cross_entropy.pt", "maps.png", "misclassified.png", "regularized.pt", "results.json"}


@pytest.fixture
def small(monkeypatch):
    """A data set of few images, and figures that are drawn in no time."""
    data = load_data("digits")
    train, test = (
        Images(part.images[:count], part.labels[:count])
        for part, count in ((data.train, 128), (data.test, 50))
    )
    monkeypatch.setattr(
        "batchcam_captum.demo.run.load_data", lambda *_, **__: replace(data, train=train, test=test)
    )
    for name in ("report.figure_of_maps", "run.draw_misclassified"):
        monkeypatch.setattr(f"batchcam_captum.demo.{name}", lambda *_: message_figure("none"))


def results_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def without_times(results: dict) -> list[dict]:
    for run in results["runs"]:
        del run["step_ratio"]
        for arm in ("cross_entropy", "regularized"):
            del run[arm]["seconds_per_step"]
    return results["runs"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of one run, which did not exist, and what it printed."""
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
    for row in ("test accuracy", "L1", "SSIM", "cosine", "dead cams", "milliseconds", "ratio"):
        assert row in printed
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in FILES if name.endswith("png"))


def test_checkpoint_gives_the_accuracy_of_the_table(finished):
    folder, _ = finished
    data = load_data("digits")
    for name in ("cross_entropy", "regularized"):
        checkpoint = torch.load(folder / f"{name}.pt", weights_only=True)
        model = SimpleCNN(checkpoint["num_classes"], checkpoint["image_size"])
        model.load_state_dict(checkpoint["model"])
        with torch.no_grad():
            accuracy = (model(data.test.images).argmax(1) == data.test.labels).double().mean()
        assert accuracy.item() == pytest.approx(results_of(folder)["runs"][0][name]["accuracy"])


def test_several_seeds_give_a_spread_and_files_of_their_own(tmp_path, capsys, small):
    assert main([*QUICK, "--seeds", "0,1", "--output", str(tmp_path)]) == 0
    assert "±" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"results.json"} | {
        name.replace(".", f"-seed{seed}.") for name in FILES - {"results.json"} for seed in (0, 1)
    }
    first, second = without_times(results_of(tmp_path))
    assert main([*QUICK, "--seeds", "1", "--output", str(tmp_path)]) == 0
    (alone,) = without_times(results_of(tmp_path))
    assert alone == second
    assert alone["cross_entropy"] != first["cross_entropy"]


@pytest.mark.parametrize("loss", ["prototype", "prototype_contrastive", "image"])
def test_weight_zero_leaves_both_arms_alike_with_every_loss(tmp_path, small, loss):
    before = torch.get_num_threads()
    options = ["--weight", "0", "--loss", loss, "--distance", "l1"]
    assert main([*QUICK, *options, "--output", str(tmp_path)]) == 0
    run = without_times(results_of(tmp_path))[0]
    assert run["cross_entropy"] == run["regularized"]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--loss", "shape"], "loss: .*'batch_cam'"),
        (["--distance", "l3"], "distance: .*'l1'"),
        (["--epochs", "0"], "epochs: "),
        (["--batch-size", "-1"], "batch_size: "),
        (["--learning-rate", "inf"], "learning_rate: "),
        (["--weight", "nan"], "weight: "),
        (["--seeds", "1,1"], "seeds: "),
        (["--seeds", str(2**70)], "seeds: "),
        (["--device", "meta"], "device: "),
        (["--data", "mnist"], "data-root"),
        (["--data", "mnist", "--data-root", "/no/such/folder"], "/no/such/folder"),
    ],
)
def test_bad_arguments_are_explained_and_leave_nothing(tmp_path, capsys, arguments, named):
    assert main([*QUICK, "--output", str(tmp_path / "new" / "folder"), *arguments]) == 1
    error = capsys.readouterr().err
    assert re.match(f"batchcam: .*{named}", error)
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def earlier_results(folder: Path) -> dict[str, bytes]:
    for file in FILES:
        (folder / file).write_bytes(b"earlier " + file.encode())
    return content(folder)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() if path.is_file() else b"folder" for path in folder.iterdir()}


@pytest.mark.parametrize("seeds", ["0", "0,1"])
def test_output_that_cannot_be_written_is_refused_before_the_training(tmp_path, capsys, monkeypatch, seeds):
    monkeypatch.setattr("batchcam_captum.demo.run.train_both", lambda *_, **__: pytest.fail("trained"))
    (tmp_path / "file").touch()
    blocker = tmp_path / ("maps.png" if seeds == "0" else "maps-seed1.png")
    blocker.mkdir()
    for output, named in ((tmp_path, blocker), (tmp_path / "file" / "folder", "--output")):
        assert main([*QUICK, "--seeds", seeds, "--output", str(output)]) == 1
        assert str(named) in capsys.readouterr().err
    assert content(tmp_path) == {"file": b"", blocker.name: b"folder"}


def test_folder_that_appears_during_the_training_leaves_earlier_results(tmp_path, capsys, monkeypatch, small):
    def train(*arguments, **options):
        (tmp_path / "regularized.pt").unlink()
        (tmp_path / "regularized.pt").mkdir()
        return train_both(*arguments, **options)

    monkeypatch.setattr("batchcam_captum.demo.run.train_both", train)
    before = {**earlier_results(tmp_path), "regularized.pt": b"folder"}
    assert main([*QUICK, "--output", str(tmp_path)]) == 1
    assert str(tmp_path / "regularized.pt") in capsys.readouterr().err
    assert content(tmp_path) == before


def test_full_disk_leaves_earlier_results(tmp_path, capsys, small):
    resource = pytest.importorskip("resource")
    before = earlier_results(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, limits[1]))  # enough for a picture, not for weights
    try:
        assert main([*QUICK, "--output", str(tmp_path)]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error = capsys.readouterr().err
    assert f"{tmp_path}/cross_entropy.pt: " in error
    assert ".incomplete" not in error
    assert content(tmp_path) == before


def test_interrupt_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("batchcam_captum.demo.run.train_both", interrupt)
    assert main([*QUICK, "--output", str(tmp_path / "folder")]) == 130
    assert not list(tmp_path.iterdir())
