"""``batchcam explain``, called as a user calls it."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from batchcam_captum import BatchGradCam
from batchcam_captum.cli import main
from batchcam_captum.cli.inputs import imagenet_classes
from batchcam_captum.demo.data import load_data
from batchcam_captum.demo.model import SimpleCNN
from batchcam_captum.explain import layout, open_store
from batchcam_captum.explain.sources import ImageFiles, list_folder
from batchcam_captum.loading import Preprocessing, load_model
from tests.cli.test_diagnose import save_demo
from tests.datasets.files import write_idx
from tests.explain.test_sources import save

MODEL_FILE = """
import torch
from torch import nn

class Small(nn.Sequential):
    def __init__(self, classes):
        torch.manual_seed(classes)
        parts = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64, classes)
        super().__init__(*parts)

def make():
    return Small(2)

def of_three():
    return Small(3)

def no_scores():
    return nn.Conv2d(3, 4, 3)
"""
NAMES = ("cats/0.png", "cats/it's <b>.png", "cats/ø.png", "dogs/0.png", "dogs/1.png")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("explain"))


def make_files(folder):
    """Models, and a folder of five images and a damaged one in two classes."""
    (folder / "model.py").write_text(MODEL_FILE)
    for seed, name in enumerate(NAMES):
        save(folder / "images" / name, size=(24, 20), seed=seed)
    (folder / "images" / "dogs" / "a b.png").write_bytes(b"no image")
    return folder


def run(*arguments):
    return main(["explain", *map(str, arguments)])


def of_folder(files, *more, model="make"):
    options = ["--layer", "1", "--size", "16", "--batch-size", 2, "--workers", 0, *more]
    return run(f"{files / 'model.py'}:{model}", "--data", files / "images", *options)


def bytes_of(store):
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(Path(store).rglob("*"))
        if path.is_file() and "lock" not in path.name
    }


def test_a_folder(files, tmp_path, capsys):
    output = tmp_path / "my maps.zarr"
    assert of_folder(files, "--output", output) == 0
    printed = capsys.readouterr()
    assert "Explained 5 of 6 images, " in printed.out
    assert "\nCould not be read: 1\n" in printed.out
    assert f"  {files}/images/dogs/a b.png: not an image" in printed.out
    assert printed.out.endswith(f"Written to {output}\nTo look at it: batchcam report '{output}'\n")
    assert printed.err == ""
    store = open_store(output)
    assert store.complete
    assert store.class_names == ("cats", "dogs")
    assert list(store.ids[:]) == [*NAMES, "dogs/a b.png"]
    assert list(store.paths[:]) == [str(files / "images" / name) for name in store.ids[:]]
    assert store.labels[:5].tolist() == [0, 0, 0, 1, 1]
    assert store.thumbnails.shape == (6, 16, 16, 3)
    read = ImageFiles(list_folder(files / "images"), Preprocessing((16, 16), crop=0.875))
    images = torch.stack([read[index][0] for index in range(5)])
    model = load_model(f"{files / 'model.py'}:make")
    cams = BatchGradCam(model, "1").attribute(images, target=model(images).argmax(1))
    np.testing.assert_allclose(store.maps[:5], cams.numpy(), rtol=1e-4, atol=1e-7)

    whole = bytes_of(output)
    assert of_folder(files, "--output", output, "--quiet") == 0
    assert "Explained 5 of 6 images, 6 of them earlier\n" in capsys.readouterr().out
    assert bytes_of(output) == whole
    assert of_folder(files, "--output", output, "--targets", "all") == 1
    assert "targets = 'predicted' there, 'all' here" in capsys.readouterr().err
    assert bytes_of(output) == whole
    assert of_folder(files, "--output", output, "--targets", "all", "--overwrite") == 0
    assert open_store(output).targets[:2].tolist() == [[0, 1], [0, 1]]


def test_a_checkpoint_of_the_demo_over_its_data(tmp_path):
    data = load_data("digits")
    save_demo(tmp_path / "demo.pt", 8, data)
    options = ["--layer", "features", "--targets", "2", "--batch-size", 256, "--thumbnails", 0]
    demo = ["demo", "--checkpoint", tmp_path / "demo.pt", "--data", "digits", "--output", tmp_path / "out"]
    assert run(*demo, *options, "--quiet") == 0
    store = open_store(tmp_path / "out")
    assert store.maps.shape == (450, 2, 8, 8)
    torch.manual_seed(0)
    with torch.no_grad():
        scores = SimpleCNN(10, 8)(data.test.images)
    np.testing.assert_allclose(store.scores[:], scores, rtol=1e-4, atol=1e-5)
    assert np.array_equal(store.targets[:], scores.topk(2).indices)
    assert np.array_equal(store.labels[:], data.test.labels)
    assert store.settings["about"]["data"] == "digits"
    assert store.thumbnails is None


def test_a_csv_whose_classes_the_model_has_and_more(files, tmp_path):
    rows = f"{files}/images/dogs/1.png,dogs,x\n{files}/images/cats/0.png,,y\n"
    (tmp_path / "list.csv").write_text(f"path,label,id\n{rows}")
    (tmp_path / "names.txt").write_text("cats\ncows\ndogs\n")
    options = ["--data", tmp_path / "list.csv", "--classes", tmp_path / "names.txt", "--layer", "1"]
    options += ["--dtype", "float16", "--map-size", "input", "--method", "hires_cam", "--targets", "0,2"]
    options += ["--size", 16, "--workers", 0, "--output", tmp_path / "out"]
    assert run(f"{files / 'model.py'}:of_three", *options) == 0
    store = open_store(tmp_path / "out")
    assert (store.maps.shape, store.maps.dtype) == ((2, 2, 16, 16), np.float16)
    assert store.labels[:].tolist() == [2, -1]
    assert store.ids[:].tolist() == ["x", "y"]
    assert store.class_names == ("cats", "cows", "dogs")


def test_labels_that_mean_something_else_are_left_out(files, tmp_path, capsys):
    assert of_folder(files, "--output", tmp_path / "out", model="of_three") == 0
    assert "--classes" in capsys.readouterr().err
    assert set(open_store(tmp_path / "out").labels[:].tolist()) == {-1}


@pytest.mark.filterwarnings("default::UserWarning")
def test_a_model_of_a_library_has_the_classes_of_its_weights(files, tmp_path, capsys):
    name = "torchvision/squeezenet1_1"
    weights = {f"module.{key}": value for key, value in load_model(name, num_classes=7).state_dict().items()}
    torch.save(weights, tmp_path / "seven.pt")
    options = ["--data", files / "images" / "cats", "--size", 32, "--workers", 0, "--layer", "features"]
    assert run(name, *options, "--checkpoint", tmp_path / "seven.pt", "--output", tmp_path / "out") == 0
    assert open_store(tmp_path / "out").scores.shape == (3, 7)
    assert "batchcam: checkpoint: took the prefix 'module.'" in capsys.readouterr().err


def test_a_run_continues_if_checkpoint_model_and_data_set_were_moved(files, tmp_path, capsys):
    def explained(folder, output):
        where = [
            "--checkpoint",
            folder / "weights.pt",
            "--data",
            "torchvision/FashionMNIST",
            "--data-root",
            folder,
        ]
        maps = ["--layer", "1", "--size", 16, "--workers", 0, "--quiet"]
        return run(f"{folder / 'model.py'}:make", *where, *maps, "--output", output)

    for name, model in (("one", "make"), ("two", "make"), ("three", "of_three")):
        write_idx(tmp_path / name / "FashionMNIST" / "raw")
        shutil.copy(files / "model.py", tmp_path / name)
        weights = load_model(f"{files / 'model.py'}:{model}").state_dict()
        weights = {key: value[:2] if key.startswith("4") else value for key, value in weights.items()}
        torch.save(weights, tmp_path / name / "weights.pt")
    assert explained(tmp_path / "one", tmp_path / "out") == 0
    whole = bytes_of(tmp_path / "out")
    capsys.readouterr()
    assert explained(tmp_path / "two", tmp_path / "out") == 0
    assert "20 of them earlier" in capsys.readouterr().out
    assert bytes_of(tmp_path / "out") == whole
    assert explained(tmp_path / "three", tmp_path / "out") == 1
    assert "model.sha256" in capsys.readouterr().err
    # A folder is not the same elsewhere, because its paths are in the store.
    shutil.copytree(files / "images", tmp_path / "images")
    assert of_folder(files, "--output", tmp_path / "folder") == 0
    assert of_folder(files, "--output", tmp_path / "folder", "--data", tmp_path / "images") == 1
    assert "about.data" in capsys.readouterr().err


def test_ranks_of_a_machine_share_its_processors(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16), raising=False)
    usual_workers = sys.modules["batchcam_captum.cli.explain"]._usual_workers
    for ranks, each in ((1, 4), (2, 4), (8, 2), (16, 1), (64, 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
        assert usual_workers() == each


def test_the_current_folder_as_output(files, tmp_path, capsys, monkeypatch):
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "new")
    assert of_folder(files, "--output", ".") == 0
    assert "To look at it: batchcam report .\n" in capsys.readouterr().out
    assert open_store(tmp_path / "new").complete
    assert main(["report", "."]) == 0
    assert (tmp_path / "new.html").exists()
    monkeypatch.chdir(files)
    assert of_folder(files, "--output", ".") == 1
    assert "expected a store" in capsys.readouterr().err


def test_each_rank_writes_its_part_and_the_first_one_prints(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(layout, "_CHUNK_SAMPLES", 2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, left in ((1, 4), (0, 0)):
        monkeypatch.setenv("RANK", str(rank))
        assert of_folder(files, "--output", tmp_path / "out") == 0
        assert (open_store(tmp_path / "out").status[:] == 0).sum() == left
        assert ("Explained 5 of 6 images, 2 of them earlier, " in capsys.readouterr().out) == (rank == 0)
    whole = bytes_of(tmp_path / "out")
    assert (
        of_folder(files, "--output", tmp_path / "out", "--overwrite") == 1
    )  # ranks that do not know each other
    assert "overwrite: " in capsys.readouterr().err
    assert bytes_of(tmp_path / "out") == whole


def test_names_of_imagenet():
    names, words = imagenet_classes()
    assert len(names) == len(words) == 1000
    assert (names[281], words["n02123045"]) == ("tabby", 281)


def test_bad_input_gives_one_clear_line_and_leaves_nothing(files, tmp_path, capsys):
    model, images = f"{files / 'model.py'}:make", ["--data", files / "images"]
    for name in ("empty", "full", "damaged"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "notes.txt").write_text("keep me")
    (tmp_path / "damaged" / "0.png").write_bytes(b"no image")
    (tmp_path / "three.txt").write_text("a\nb\nc\n")
    (tmp_path / "list.csv").write_text(f"path,label\n{files}/images/cats/0.png,7\n")
    write_idx(tmp_path / "FashionMNIST" / "raw")
    fashion = ["--data", "torchvision/FashionMNIST", "--data-root", tmp_path]
    three = f"{files / 'model.py'}:of_three"
    cases = [
        ([model, "--data", tmp_path / "gone"], "--data: "),
        ([model, "--data", files / "model.py"], "--data: "),
        ([model, "--data", tmp_path / "empty"], "data: "),
        ([model, "--data", tmp_path / "damaged"], "sample 0: not an image"),
        ([model, "--data", tmp_path / "list.csv"], "--data: expected labels from 0 to 1"),
        ([model, *images, "--split", "train"], "--split: "),
        ([model, *images, "--classes", tmp_path / "three.txt"], "--classes: expected 2 names"),
        ([model, *images, "--classes", tmp_path / "gone.txt"], "--classes: "),
        ([three, *images, "--classes", tmp_path / "three.txt", "--targets", "true"], "--targets: "),
        ([model, *fashion, "--targets", "true"], "--targets: "),
        ([model, *images, "--targets", "7"], "targets: "),
        ([model, *images, "--targets", "0"], "targets: "),
        ([model, *images, "--mean", "0.5", "--std", "0.5"], "model: expected"),
        ([model, "--data", "digits"], "grayscale"),
        ([model, "--data", "digits", "--split", "val"], "--split: "),
        ([model, "--data", "torchvision/CIFAR10"], "--data-root"),
        ([f"{files / 'model.py'}:no_scores", *images], "model: expected scores"),
        ([model, *images, "--layer", "conv"], "layer"),
        (["demo", *images], "--checkpoint"),
    ]  # fmt: skip
    for arguments, named in cases:
        assert run(*arguments, "--output", tmp_path / "new" / "out", "--quiet") == 1, arguments
        error = capsys.readouterr().err
        assert error.startswith("batchcam: "), error
        assert error.count("\n") == 1, error
        assert named in error, error
        assert not (tmp_path / "new").exists()
    assert of_folder(files, "--output", tmp_path / "full", "--overwrite") == 1
    assert "expected a store" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["notes.txt"]
