"""``batchcam diagnose``, called as a user calls it."""

from __future__ import annotations

import json
import types

import pytest
import torch

from batchcam_captum.cli import main
from batchcam_captum.demo.data import load_data
from batchcam_captum.demo.model import SimpleCNN
from batchcam_captum.demo.run import _checkpoint
from batchcam_captum.evaluation.diagnosis import FILES
from tests.datasets.files import write_idx

MODEL_FILE = """
from torch import nn

def make():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64, 2))

def no_scores():
    return nn.Conv2d(3, 4, 3)
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two checkpoints of the demo, of digits and of MNIST; a model, its weights, and folders of images."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("diagnose")
    digits = load_data("digits")
    for seed, name in enumerate(("before", "after")):
        torch.manual_seed(seed)
        arm = types.SimpleNamespace(model=SimpleCNN(10, 8))
        torch.save(_checkpoint(arm, digits, seed), folder / f"{name}.pt")
    write_idx(folder / "MNIST" / "raw")
    mnist = load_data("mnist", folder)
    torch.save(_checkpoint(types.SimpleNamespace(model=SimpleCNN(10, 28)), mnist, 0), folder / "mnist.pt")
    (folder / "model.py").write_text(MODEL_FILE)
    generator = torch.Generator().manual_seed(0)
    for part in ("test", "train"):
        for label in ("cats", "dogs"):
            (folder / part / label).mkdir(parents=True)
            for number in range(3):
                pixels = torch.randint(256, (20, 24, 3), dtype=torch.uint8, generator=generator)
                Image.fromarray(pixels.numpy()).save(folder / part / label / f"{number}.png")
    return folder


def run(*arguments):
    return main(["diagnose", *map(str, arguments), "--quiet"])


def test_checkpoints_of_the_demo(files, tmp_path, capsys):
    arguments = ["--data", "digits", "--layer", "features", "--output", tmp_path / "out", "--panels", 2]
    assert run("demo", "--checkpoint", files / "after.pt", "--before", files / "before.pt", *arguments) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FILES)
    found = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
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
    assert found["settings"]["mean"] == pytest.approx(data.mean)
    assert found["settings"]["prototypes"] == "mean training images of digits"
    printed = capsys.readouterr().out
    assert f"{100 * found['after']['accuracy']:.2f}" in printed
    assert "class_maps.png" in printed


def test_data_sets_of_torchvision(files, tmp_path):
    arguments = [
        "--data",
        "mnist",
        "--data-root",
        files,
        "--output",
        tmp_path,
        "--method",
        "hires_cam",
        "--panels",
        0,
    ]
    assert run("demo", "--checkpoint", files / "mnist.pt", *arguments) == 0
    found = json.loads((tmp_path / "diagnosis.json").read_text())
    assert found["samples"] == 20
    assert found["classes"][0] == "zero"
    assert found["settings"]["method"] == "hires_cam"


def test_folders_of_images(files, tmp_path):
    arguments = [
        f"{files / 'model.py'}:make",
        "--data",
        files / "test",
        "--size",
        "16,20",
        "--output",
        tmp_path,
    ]
    assert run(*arguments, "--layer", "1", "--train", files / "train") == 0
    found = json.loads((tmp_path / "diagnosis.json").read_text())
    assert found["classes"] == ["cats", "dogs"]
    assert found["after"]["samples"] == [3, 3]
    assert found["settings"]["map_size"] == [14, 18]
    assert found["settings"]["prototypes"] == f"mean images of {files / 'train'}"


def test_bad_input_gives_one_clear_line_and_leaves_nothing(files, tmp_path, capsys):
    model = f"{files / 'model.py'}:make"
    demo = ["demo", "--checkpoint", files / "after.pt"]
    (tmp_path / "damaged" / "a").mkdir(parents=True)
    (tmp_path / "damaged" / "a" / "0.png").write_bytes(b"no image")
    (tmp_path / "damaged" / "b").mkdir()
    (tmp_path / "plain.pt").write_bytes(b"nothing")
    torch.save({"model": {}}, tmp_path / "other.pt")
    cases = [
        ([*demo, "--data", "nowhere"], "--data: expected digits, mnist, fashion-mnist or a folder with a folder for each class"),
        ([*demo, "--data", files / "test" / "cats"], "--data: expected a folder with a folder of images for each class"),
        ([*demo, "--data", files / "test"], "one for each class of the data, got shape (2, 10)"),
        ([*demo, "--data", "mnist"], "got none; pass --data-root DIR, the one above MNIST\n"),
        ([*demo, "--data", "mnist", "--data-root", tmp_path / "gone"], "gone; check the path\n"),
        ([*demo, "--data", "mnist", "--data-root", tmp_path], "got less; pass --data-root DIR, the folder above MNIST\n"),
        ([*demo, "--data", "mnist", "--data-root", files], "model: expected demo to take images of shape (2, 1, 28, 28)"),
        ([*demo, "--data", "mnist", "--data-root", files], "that the checkpoint was trained on, or a checkpoint of mnist\n"),
        ([model, "--data", "digits"], "; the images of digits are grey and stay as they are: pass a model that"),
        ([model, "--data", files / "test", "--size", "1"], "; --size and --mean (one number a channel) change"),
        ([*demo, "--data", "digits", "--layer", "feature"], "feature"),
        ([*demo, "--data", "digits", "--before", files / "mnist.pt"], "does not fit SimpleCNN"),
        ([*demo, "--data", "digits", "--method", "cam"], "cam"),
        ([*demo, "--data", "digits", "--batch-size", 0], "--batch-size: expected at least 1, got 0"),
        ([*demo, "--data", "digits", "--train", files / "train"], "--train: expected it with a folder alone"),
        ([*demo, "--data", "digits", "--std", "0"], "--std: expected one number for grey images, above 0"),
        (["demo", "--data", "digits"], "model: expected --checkpoint FILE with demo"),
        (["demo", "--data", "digits", "--checkpoint", tmp_path / "plain.pt"], "which is damaged or something else"),
        (["demo", "--data", "digits", "--checkpoint", tmp_path / "other.pt"], "without image_size, mean, num_classes, std"),
        (["demo", "--data", "digits", "--checkpoint", tmp_path / "none.pt"], "expected a file that can be read"),
        ([model, "--data", files / "test", "--before", files / "after.pt"], "--before: expected --checkpoint FILE beside it"),
        ([model, "--data", files / "test", "--train", files], "--train: expected the classes of --data, 2, got 3"),
        ([model, "--data", tmp_path / "damaged"], "0.png"),
        ([f"{files / 'model.py'}:no_scores", "--data", files / "test"], "model: expected scores of shape (2, 2)"),
    ]  # fmt: skip
    for arguments, message in cases:
        output = tmp_path / "new" / "out"
        assert run(*arguments, "--output", output) == 1, arguments
        error = capsys.readouterr().err
        assert error.startswith("batchcam: "), error
        assert error.count("\n") == 1, error
        assert message in error, error
        assert "download" not in error, error  # the command has no such argument
        assert not output.parent.exists()
