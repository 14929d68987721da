"""``batchcam compare``, called as a user calls it."""

import json
from contextlib import suppress

import pytest
import torch
from torch import nn

from batchcam_captum.cli import main

np = pytest.importorskip("numpy")
Image = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")

FACTORY = """
from torch import nn

def make():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4),
    )

def no_scores():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Identity())
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a factory and three images."""
    (tmp_path / "net.py").write_text(FACTORY)
    (tmp_path / "images").mkdir()
    generator = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        pixels = generator.integers(0, 256, (24, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def compare(*arguments: str) -> int:
    return main(["compare", "net.py:make", "--size", "24", "--quiet", *arguments])


def made() -> nn.Module:
    namespace: dict = {}
    exec(FACTORY, namespace)
    return namespace["make"]()


def results(folder):
    return json.loads((folder / "compare-output" / "comparison.json").read_text())


def test_the_table_is_printed_and_files_are_written(folder, capsys):
    pytest.importorskip("pytorch_grad_cam")
    (folder / "compare-output").mkdir()
    (folder / "compare-output" / "comparison-2.png").write_bytes(b"the user's")
    assert compare("images", "--method", "grad_cam,layer_cam", "--libraries", "captum,pytorch_grad_cam") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "| grad_cam | pytorch-grad-cam | unit |" in printed.out
    assert "\\" not in printed.out
    written = {path.name for path in (folder / "compare-output").iterdir()}
    assert written == {"comparison.json", "comparison.md", "comparison.png", "comparison-2.png"}
    found = results(folder)
    assert found["settings"]["layer"] == "3"  # the suggested one
    assert [image["path"] for image in found["images"]] == [f"images/{name}.png" for name in "abc"]
    pairs = {(entry["method"], entry["library"]) for entry in found["agreement"]}
    assert pairs == {
        ("grad_cam", "Captum"),
        ("grad_cam", "pytorch-grad-cam"),
        ("layer_cam", "pytorch-grad-cam"),
    }


def test_options_reach_the_comparison(folder):
    torch.save(made().state_dict(), "weights.pt")
    options = ["--layer", "0", "--target=1,3", "--dtype", "float64", "--channels-last"]
    options += ["--checkpoint", "weights.pt", "--libraries", "Captum", "--output", "there/deep"]
    options += ["--batch-sizes", "1,2", "--repeats", "2"]
    assert compare("images/b.png", *options, "images/a.png") == 0
    found = json.loads((folder / "there" / "deep" / "comparison.json").read_text())
    assert [tuple(entry.values()) for entry in found["images"]] == [("images/b.png", 1), ("images/a.png", 3)]
    expected = {
        "layer": "0",
        "dtype": "float64",
        "image_shape": [3, 24, 24],
        "checkpoint": "weights.pt",
        "channels_last": True,
        "batch_sizes": [1, 2],
        "source": "factory",
    }
    assert expected.items() <= found["settings"].items()
    assert found["settings"]["preprocessing"]["size"] == [24, 24]
    assert {(cost["library"], cost["batch_size"]) for cost in found["costs"]} == {
        (library, size) for library in ("Captum", "batchcam_captum") for size in (1, 2)
    }


def test_the_seed_decides_about_random_weights(folder, monkeypatch):
    weights = []

    def compared(model, *_, **options):
        weights.append(model[0].weight)
        raise KeyboardInterrupt

    monkeypatch.setattr("batchcam_captum.interop.compare.compare", compared)
    state = torch.get_rng_state()
    for seed in ("3", "3", "4"):
        with suppress(KeyboardInterrupt):
            compare("images/a.png", "--seed", seed)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not (folder / "compare-output").exists()


def test_a_model_of_a_library_and_packaged_pictures(folder, capsys):
    timm = pytest.importorskip("timm")
    pytest.importorskip("skimage")
    options = ["--num-classes", "3", "--libraries", "captum", "--layer", "blocks.0"]
    assert main(["compare", "test_vit", *options]) == 0
    assert "test_vit has random weights" in capsys.readouterr().err
    found = results(folder)
    assert found["settings"]["reshape"] == "auto"
    assert found["settings"]["source_version"] == timm.__version__
    assert found["images"][0]["path"] == "scikit-image: chelsea"


def test_images_that_cannot_be_read_are_listed(folder, capsys):
    (folder / "images" / "broken.jpg").write_bytes(b"no image")
    assert compare("images", "missing.png", "--libraries", "captum", "--target", "0,1,2,3,3") == 0
    assert "- images/broken.jpg could not be read" in capsys.readouterr().out
    found = results(folder)
    assert [(entry["path"][7], entry["target"]) for entry in found["images"]] == [
        ("a", 0),
        ("b", 1),
        ("c", 3),
    ]
    assert [entry["path"] for entry in found["images_not_read"]] == ["images/broken.jpg", "missing.png"]


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        (["--method", "best_cam"], "--method"),
        (["--libraries", "zennit"], "--libraries"),
        (["--device", "gpu"], "device"),
        (["--dtype", "int8"], "dtype"),
    ],
)
def test_fast_checks_come_before_loading(folder, capsys, monkeypatch, arguments, argument):
    monkeypatch.setattr("batchcam_captum.loading.load_model", lambda *_, **__: pytest.fail("loaded"))
    assert compare("images/a.png", *arguments) == 1
    assert argument in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        (["net.py:no_scores", "images", "--layer", "0"], "model"),
        (["net.py:make", "images", "--layer", "2.conv"], "layer"),
        (["net.py:make", "images", "--layer", "6", "--libraries", "captum"], "layer"),
        (["net.py:make", "images", "--layer", "3", "--size", "2"], "--size"),
        (["net.py:make", "missing.png"], "images"),
        (["net.py:make", "images", "--target", "4"], "targets"),
        (["net.py:make", "images", "--target", "1,2"], "--target"),
        (["net.py:make", "images", "--batch-sizes", "0"], "batch_sizes"),
        (["net.py:make", "images", "--output", "net.py/below"], "--output"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(folder, capsys, arguments, argument):
    arguments = arguments if "--size" in arguments else [*arguments, "--size", "24"]
    before = sorted(folder.rglob("*"))
    assert main(["compare", *arguments, "--quiet"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("batchcam: ")
    assert error.count("\n") == 1
    assert argument in error
    after = [path for path in sorted(folder.rglob("*")) if "__pycache__" not in path.parts]
    assert after == before


def test_help_names_the_methods(capsys):
    from batchcam_captum.cli.compare import METHODS
    from batchcam_captum.interop.peers import OURS

    assert sorted(METHODS) == sorted(OURS.classes)
    assert main(["compare", "--help"]) == 0
    assert all(name in capsys.readouterr().out for name in ("grad_cam_elementwise",))
