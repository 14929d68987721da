"""``batchcam compare``, called as a user calls it."""

import json
import re
from importlib.metadata import PackageNotFoundError

import pytest
import torch
from torch import nn

from batchcam_captum.cli import main

np = pytest.importorskip("numpy")
Image = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")

FACTORY = """
import torch
from torch import nn

def make():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4),
    )

class Maps(nn.Module):
    def forward(self, x):
        return x

def no_scores():
    return nn.Sequential(nn.Conv2d(3, 4, 3), Maps())

def fails():
    raise RuntimeError("the weights\\nare missing")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """With a factory and three images; the current folder."""
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


def results(folder):
    return json.loads((folder / "compare-output" / "comparison.json").read_text())


def captum_alone(found):
    return {entry["library"] for entry in found["agreement"]} == {"Captum"}


def test_table_is_printed_and_files_are_written(folder, capsys):
    pytest.importorskip("pytorch_grad_cam")
    assert compare("images", "--method", "grad_cam,layer_cam", "--libraries", "captum,pytorch_grad_cam") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "| pytorch-grad-cam |" in printed.out
    written = (folder / "compare-output" / "comparison.md").read_text().splitlines()
    rows = [line.replace("\\_", "_") for line in written if line.startswith("|")]
    assert any("| layer_cam |" in row for row in rows)
    assert all(row in printed.out.splitlines() for row in rows)
    assert "\\" not in printed.out
    files = {"comparison.json", "comparison.md", "comparison.png", "comparison-2.png"}
    assert {path.name for path in (folder / "compare-output").iterdir()} == files
    assert all(name in printed.out for name in files)
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
    torch.manual_seed(5)
    weights = {"state_dict": {f"module.{name}": value for name, value in made().state_dict().items()}}
    torch.save(weights, "weights.pt")
    assert (
        compare(
            "--layer",
            "0",
            "images/b.png",
            *("--images", "images/a.png"),
            "--target=1,-1",
            *("--dtype", "float64", "--channels-last", "--checkpoint", "weights.pt"),
            *("--libraries", "Captum", "--output", "there/deep"),
        )
        == 0
    )
    found = json.loads((folder / "there" / "deep" / "comparison.json").read_text())
    assert [(entry["path"], entry["target"]) for entry in found["images"]] == [
        ("images/b.png", 1),
        ("images/a.png", 3),
    ]
    settings = found["settings"]
    assert (settings["layer"], settings["dtype"], settings["image_shape"]) == ("0", "float64", [3, 24, 24])
    assert (settings["weights"], settings["channels_last"]) == ("weights.pt", True)
    assert (settings["source"], settings["source_version"]) == ("factory", None)
    assert settings["preprocessing"] == {
        "size": [24, 24],
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bilinear",
        "crop": 0.875,
    }
    assert captum_alone(found)


def made() -> nn.Module:
    namespace: dict = {}
    exec(FACTORY, namespace)
    return namespace["make"]()


@pytest.fixture
def asked(monkeypatch):
    """What the comparison itself is called with; it does not take place."""
    calls = []

    def compared(model, *_, **options):
        calls.append({"model": model, **options})
        raise KeyboardInterrupt

    monkeypatch.setattr("batchcam_captum.interop.comparison.compare", compared)
    return calls


def test_batch_sizes_are_measured(folder, asked):
    assert (
        compare(
            "images",
            "--batch-sizes",
            "1,2",
            "--batch-sizes",
            "4",
            "--repeats",
            "3",
            "--reshape",
            "channels_last",
        )
        == 130
    )
    assert (asked[0]["batch_sizes"], asked[0]["repeats"]) == ([1, 2, 4], 3)
    assert asked[0]["reshape"] == "channels_last"
    assert asked[0]["progress"] is False
    assert not (folder / "compare-output").exists()


def test_images_may_stand_after_two_hyphens(folder, asked):
    assert compare("--target", "1", "--", "images/b.png", "images/a.png") == 130
    assert asked[0]["paths"] == ("images/b.png", "images/a.png")
    assert asked[0]["targets"] == [1, 1]


def test_seed_decides_about_random_weights_and_the_process_keeps_its_own(folder, asked):
    state = torch.get_rng_state()
    for seed in ("3", "3", "4"):
        assert compare("images/a.png", "--seed", seed) == 130
    assert torch.equal(torch.get_rng_state(), state)
    first, second, third = (call["model"][0].weight for call in asked)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_model_of_a_library_with_random_weights_says_so(folder, capsys):
    pytest.importorskip("timm")
    arguments = ["compare", "test_vit", "images/a.png", "--num-classes", "3", "--size", "160"]
    assert main([*arguments, "--libraries", "captum", "--layer", "blocks.0"]) == 0
    assert "test_vit has random weights; for maps that mean something" in capsys.readouterr().err
    found = results(folder)
    assert found["settings"]["reshape"] == "auto"
    import timm

    assert (found["settings"]["source"], found["settings"]["source_version"]) == ("timm", timm.__version__)
    assert captum_alone(found)


def test_packaged_pictures_are_taken_where_no_image_is_given(folder):
    pytest.importorskip("skimage")
    assert compare("--libraries", "captum") == 0
    assert results(folder)["images"][0]["path"] == "scikit-image: chelsea"


def test_images_that_cannot_be_read_are_listed_and_the_others_go_on(folder, capsys):
    (folder / "images" / "broken.jpg").write_bytes(b"no image")
    assert compare("images", "missing.png", "--libraries", "captum", "--target", "0,1,2,3,3") == 0
    error = capsys.readouterr().err
    assert "images that could not be read:" in error
    assert "  images/broken.jpg: not an image" in error
    assert "  missing.png: No such file or directory" in error
    found = results(folder)
    assert [(entry["path"][7], entry["target"]) for entry in found["images"]] == [
        ("a", 0),
        ("b", 1),
        ("c", 3),
    ]
    assert [entry["path"] for entry in found["images_not_read"]] == ["images/broken.jpg", "missing.png"]


def test_library_that_is_asked_for_but_not_installed_is_named_before_anything_is_loaded(
    folder, capsys, monkeypatch
):
    from batchcam_captum import environment

    def version(name, original=environment.version):
        if name == "torchcam":
            raise PackageNotFoundError(name)
        return original(name)

    monkeypatch.setattr(environment, "version", version)
    monkeypatch.setattr("batchcam_captum.loading.load_model", lambda *_, **__: pytest.fail("loaded"))
    assert compare("images/a.png", "--libraries", "torchcam,captum") == 1
    assert re.search(r"--libraries: .* got TorchCAM; pip install torchcam", capsys.readouterr().err)
    assert not (folder / "compare-output").exists()
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(environment, "version", version)
    assert compare("images/a.png", "--method", "grad_cam") == 0  # all that are installed
    found = results(folder)
    assert "TorchCAM" in found["not_installed"]
    assert "Captum" in {entry["library"] for entry in found["agreement"]}


@pytest.mark.parametrize(
    "arguments",
    [["--method", "best_cam"], ["--batch-sizes", "0"], ["--repeats", "0"], ["--libraries", "zennit"], ["7"]],
)
def test_what_takes_no_time_is_checked_before_the_model_is_loaded(folder, monkeypatch, arguments):
    monkeypatch.setattr("batchcam_captum.loading.load_model", lambda *_, **__: pytest.fail("loaded"))
    assert compare("images/a.png", *arguments) == 1


@pytest.mark.parametrize(
    "arguments", [["--size", "24"], ["--target", "1"], ["--method", "hires_cam"], ["--batch-sizes", "1,2"]]
)
def test_images_may_stand_after_any_option(folder, asked, arguments):
    (folder / "images" / "a.png").rename(folder / "a b.png")
    assert compare(*arguments, "a b.png", "images/b.png") == 130
    assert asked[0]["paths"] == ("a b.png", "images/b.png")


def test_help_names_the_methods(capsys):
    from batchcam_captum.cli.compare_checks import METHODS
    from batchcam_captum.interop import OURS

    assert sorted(METHODS) == sorted(OURS.methods)
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    told = capsys.readouterr().out
    assert all(name in told for name in (*METHODS, "mps"))


def test_scores_that_are_not_finite_are_remarked_on(folder, capsys):
    torch.save({name: value * float("nan") for name, value in made().state_dict().items()}, "nan.pt")
    arguments = ["compare", "net.py:make", "--size", "24", "images/a.png", "--libraries", "captum"]
    assert main([*arguments, "--checkpoint", "nan.pt"]) == 0
    printed = capsys.readouterr()
    assert "batchcam: the scores of 1 of 1 images hold NaN or infinity" in printed.err
    assert "Remark: the scores of 1 of 1 images hold NaN" in printed.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such_net:make"], "model: expected to import no_such_net for the function 'no_such_net:make'"),
        (
            ["net.py:fails"],
            "'net.py:fails', called without arguments; it raised RuntimeError: the weights are missing$",
        ),
        (
            ["net.py:no_scores", "images"],
            r"model: expected scores of shape \(2, K\) from net.py:no_scores, got shape \(2, 4",
        ),
        (
            ["net.py:make", "images", "--layer", "2.conv"],
            r"layer: expected the name of a layer .* got '2\.conv'; it has",
        ),
        (
            ["net.py:make", "images", "--layer", "6", "--libraries", "captum"],
            "compare: no map of layer '6' could be compared: .*expected one with places",
        ),
        (
            ["net.py:make", "images", "--size", "2"],
            "model: expected net.py:make to take images .* RuntimeError: .*--size",
        ),
        (["net.py:make", "images", "--mean", "0.5", "--std", "0.5"], r"images of shape \(2, 1, 24, 24\)"),
        (["net.py:make", "images", "--size", "8,8,8"], "--size: expected one or two numbers, got"),
        (
            ["net.py:make", "missing.png"],
            r"images: expected at least one that can be read, got missing.png \(No such file",
        ),
        (["net.py:make", "net.py"], "images: expected at least one that can be read, got net.py"),
        (["net.py:make", "images", "--target", "4"], "--target: expected classes from 0 to 3, .* got 4"),
        (
            ["net.py:make", "images", "--target", "1,2"],
            "--target: expected one class, or one for each of 3 images, got 2",
        ),
        (
            ["net.py:make", "images", "--method", "best_cam"],
            "methods: expected some of 'grad_cam', .* got 'best_cam'",
        ),
        (
            ["net.py:make", "images", "--libraries", "captum", "--method", "layer_cam"],
            "compare: no map of layer '3' could be compared: Captum, layer_cam: Captum does not offer it",
        ),
        (
            ["net.py:make", "images", "--libraries", "zennit"],
            "--libraries: expected some of pytorch-grad-cam, .* got 'zennit'",
        ),
        (
            ["net.py:make", "images", "--target", "1", "2"],
            "IMAGE: expected files, .* got '2'; .* put a comma",
        ),
        (["net.py:make", "images", "--method", "grad_cam", "xgrad_cam"], "got 'xgrad_cam'; .* put a comma"),
        (["net.py:make", "images", "--batch-sizes", "0"], "batch_sizes: expected integers of at least 1"),
        (["net.py:make", "images", "--repeats", "0"], "repeats: expected at least 1, got 0"),
        (
            ["net.py:make", "images", "--dtype", "int8"],
            "dtype: expected one of float32, float64, .* got 'int8'",
        ),
        (["net.py:make", "images", "--device", "gpu"], "device: expected cpu, cuda, .* got 'gpu'"),
        (["net.py:make", "images", "--seed", str(2**70)], "--seed: expected an integer of 64 bits"),
        (
            ["net.py:make", "images", "--pretrained"],
            "pretrained: expected a model of timm or torchvision, got the function",
        ),
        (
            ["net.py:make", "images", "--checkpoint", "none.pt"],
            "checkpoint: expected a file that can be read, got none.pt",
        ),
        (
            ["net.py:make", "images", "--checkpoint", "net.py"],
            "checkpoint: expected a file that torch.save wrote, got net.py",
        ),
        (
            ["net.py:make", "images", "--checkpoint", "other.pt"],
            r"missing 1 of 6 keys: 6.weight; unexpected keys, 1: 7.weight; other shapes, 1: 0.bias expected \(6,\), got \(9,\)",
        ),
    ],
)
def test_bad_input_is_explained_in_one_line_and_leaves_nothing(folder, capsys, arguments, message):
    if "other.pt" in arguments:
        state = made().state_dict()
        state["7.weight"], state["0.bias"] = state.pop("6.weight"), torch.zeros(9)
        torch.save(state, "other.pt")
    if "--size" not in arguments:
        arguments = [*arguments, "--size", "24"]
    before = sorted(folder.rglob("*"))
    assert main(["compare", *arguments, "--quiet"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("batchcam: ")
    assert error.count("\n") == 1
    assert re.search(message, error.strip())
    after = [path for path in sorted(folder.rglob("*")) if "__pycache__" not in path.parts]
    assert after == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_that_is_not_there(folder, capsys):
    assert compare("images", "--device", "cuda") == 1
    assert re.search(r"device: expected .* got 'cuda' .*sees no GPU", capsys.readouterr().err)


def test_unknown_model_is_answered_with_the_nearest_names(folder, capsys):
    pytest.importorskip("timm")
    assert main(["compare", "resnet81", "images"]) == 1
    assert re.search("got 'resnet81'; timm has .*resnet18", capsys.readouterr().err)


def test_output_that_cannot_be_written_to_is_found_first(folder, capsys):
    (folder / "file").write_text("kept")
    assert compare("images", "--output", "file/below") == 1
    assert "--output: expected a folder that can be written to, got file/below" in capsys.readouterr().err
    (folder / "there" / "comparison.md").mkdir(parents=True)
    assert compare("images", "--output", "there") == 1
    assert "there/comparison.md: expected a file to replace" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["net.py:make", "--reshape", "grid"],
        ["net.py:make", "--target", "cat"],
        ["net.py:make", "--no-such"],
    ],
)
def test_arguments_that_are_not_understood(folder, capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        main(["compare", *arguments])
    assert ended.value.code == 2
    assert "usage: batchcam" in capsys.readouterr().err


def test_missing_package_is_named_with_what_installs_it(folder, capsys, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert compare("images") == 1
    assert "batchcam-captum[compare]" in capsys.readouterr().err
