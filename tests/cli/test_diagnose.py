"""``batchcam diagnose``, called as a user calls it."""

from __future__ import annotations

import json

import pytest
import torch

from batchcam_captum.cli import main
from batchcam_captum.demo.data import load_data
from batchcam_captum.demo.model import SimpleCNN
from batchcam_captum.evaluation.diagnosis import FILES
from tests.datasets.files import write_idx
from tests.explain.test_sources import save

MODEL_FILE = """
from torch import nn

def make():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64, 2))

def no_scores():
    return nn.Conv2d(3, 4, 3)
"""


def save_demo(path, size, data, seed=0):
    """Write a checkpoint as ``batchcam demo`` does."""
    torch.manual_seed(seed)
    model = SimpleCNN(10, size).state_dict()
    statistics = {"mean": data.mean, "std": data.std}
    torch.save({"model": model, "num_classes": 10, "image_size": size, **statistics}, path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Checkpoints of the demo, of digits and of MNIST; a model, and folders of images."""
    folder = tmp_path_factory.mktemp("diagnose")
    for seed, name in enumerate(("before", "after")):
        save_demo(folder / f"{name}.pt", 8, load_data("digits"), seed)
    write_idx(folder / "MNIST" / "raw")
    save_demo(folder / "mnist.pt", 28, load_data("mnist", folder))
    (folder / "model.py").write_text(MODEL_FILE)
    for part in ("test", "train"):
        for label in ("cats", "dogs"):
            for number in range(3):
                save(folder / part / label / f"{number}.png", size=(24, 20), seed=number)
    return folder


def run(*arguments):
    return main(["diagnose", *map(str, arguments), "--quiet"])


def diagnosis_in(folder):
    return json.loads((folder / "diagnosis.json").read_text())


def test_checkpoints_of_the_demo(files, tmp_path, capsys):
    options = ["--data", "digits", "--layer", "features", "--output", tmp_path / "out", "--panels", 2]
    assert run("demo", "--checkpoint", files / "after.pt", "--before", files / "before.pt", *options) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FILES)
    found = diagnosis_in(tmp_path / "out")
    data = load_data("digits")
    for part in ("before", "after"):
        model = SimpleCNN(10, 8)
        model.load_state_dict(torch.load(files / f"{part}.pt", weights_only=True)["model"])
        with torch.no_grad():
            accuracy = (model(data.test.images).argmax(1) == data.test.labels).double().mean()
        assert found[part]["accuracy"] == pytest.approx(accuracy.item())
    assert found["after"] != found["before"]
    assert len(found["mistakes"]["worst"]) == 2
    assert found["settings"]["layer"] == "features"
    assert found["settings"]["mean"] == [pytest.approx(data.mean)]
    printed = capsys.readouterr().out
    assert f"{100 * found['after']['accuracy']:.2f}" in printed
    assert "class_maps.png" in printed


def test_named_data_sets(files, tmp_path):
    options = ["--data", "mnist", "--data-root", files, "--output", tmp_path, "--panels", 0]
    assert run("demo", "--checkpoint", files / "mnist.pt", *options, "--method", "hires_cam") == 0
    found = diagnosis_in(tmp_path)
    assert (found["samples"], found["classes"][0]) == (20, "zero")
    assert found["settings"]["method"] == "hires_cam"


def test_folders_of_images_and_a_csv(files, tmp_path):
    model = [f"{files / 'model.py'}:make", "--layer", "1", "--size", "16,20"]
    assert run(*model, "--data", files / "test", "--train", files / "train", "--output", tmp_path) == 0
    found = diagnosis_in(tmp_path)
    assert found["classes"] == ["cats", "dogs"]
    assert found["after"]["samples"] == [3, 3]
    assert found["settings"]["map_size"] == [14, 18]
    (tmp_path / "list.csv").write_text(
        f"path,label\n{files}/test/cats/0.png,cats\n{files}/test/dogs/1.png,dogs\n"
    )
    assert run(*model, "--data", tmp_path / "list.csv", "--output", tmp_path) == 0
    assert diagnosis_in(tmp_path)["after"]["samples"] == [1, 1]


def test_bad_input_gives_one_clear_line_and_leaves_nothing(files, tmp_path, capsys):
    model = [f"{files / 'model.py'}:make", "--data", files / "test"]
    demo = ["demo", "--checkpoint", files / "after.pt", "--data"]
    for name in ("a", "b"):
        (tmp_path / "damaged" / name).mkdir(parents=True)
        (tmp_path / "damaged" / name / "0.png").write_bytes(b"no image")
    (tmp_path / "plain.pt").write_bytes(b"nothing")
    torch.save({"model": {}}, tmp_path / "other.pt")
    cases = [
        ([*demo, "nowhere"], "--data: "),
        ([*demo, files / "test" / "cats"], "--data: "),
        ([*demo, files / "test"], "model: expected 2 scores"),
        ([*demo, "mnist"], "data-root"),
        ([*demo, "mnist", "--data-root", tmp_path / "gone"], "gone"),
        ([*demo, "mnist", "--data-root", tmp_path], "MNIST"),
        ([*demo, "mnist", "--data-root", files], "model: expected demo to take images of shape (2, 1, 28, 28)"),
        ([model[0], "--data", "digits"], "grayscale"),
        ([*model, "--size", "1"], "--size"),
        ([*demo, "digits", "--layer", "feature"], "layer"),
        ([*demo, "digits", "--before", files / "mnist.pt"], "does not fit SimpleCNN"),
        ([*demo, "digits", "--method", "cam"], "method"),
        ([*demo, "digits", "--train", files / "train"], "--train: "),
        ([*demo, "digits", "--std", "0"], "--std: "),
        (["demo", "--data", "digits"], "--checkpoint"),
        (["demo", "--data", "digits", "--checkpoint", tmp_path / "plain.pt"], "checkpoint: "),
        (["demo", "--data", "digits", "--checkpoint", tmp_path / "other.pt"], "image_size, mean, num_classes, std"),
        (["demo", "--data", "digits", "--checkpoint", tmp_path / "none.pt"], "checkpoint: "),
        ([*model, "--before", files / "after.pt"], "--before: "),
        ([*model, "--train", files], "--train: "),
        ([model[0], "--data", tmp_path / "damaged"], "0.png: not an image"),
        ([f"{files / 'model.py'}:no_scores", *model[1:]], "model: expected scores"),
    ]  # fmt: skip
    for arguments, named in cases:
        assert run(*arguments, "--output", tmp_path / "new" / "out") == 1, arguments
        error = capsys.readouterr().err
        assert error.startswith("batchcam: "), error
        assert error.count("\n") == 1, error
        assert named in error, error
        assert not (tmp_path / "new").exists()
