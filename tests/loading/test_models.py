"""Models by name."""

import importlib.util
import sys

import pytest
import torch
from torch import nn

from batchcam_captum.loading import load_model, preprocessing, source_of
from tests.models import SmallCnn

FACTORY = """
import torch
from torch import nn
from helper_of_the_factory import width

class Net(nn.Sequential):
    pass

def make():
    from helper_of_the_factory import width as again
    return Net(nn.Conv2d(3, again, 3), nn.Dropout())

def fails():
    raise RuntimeError("no such thing")

def gives_a_list():
    return [1]

number = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "factory_of_a_test.py").write_text(FACTORY)
    (tmp_path / "helper_of_the_factory.py").write_text("width = 4\n")
    (tmp_path / "broken_factory.py").write_text("import no_such_package_anywhere\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path), set(sys.modules)
    yield tmp_path
    assert sys.path == before[0]
    for name in set(sys.modules) - before[1]:
        if "of_a_test" in name or "of_the_factory" in name or "broken_factory" in name:
            del sys.modules[name]


def test_timm_is_asked_first():
    pytest.importorskip("timm")
    model = load_model("test_resnet", num_classes=3)
    assert type(model).__module__.startswith("timm.")
    assert not model.training
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    assert type(load_model("timm/test_resnet")) is type(model)


def test_torchvision_by_its_prefix_and_where_it_alone_knows_the_name():
    pytest.importorskip("torchvision")
    for name in ("torchvision/squeezenet1_1", "squeezenet1_1"):
        model = load_model(name, num_classes=3)
        assert type(model).__module__ == "torchvision.models.squeezenet"
        assert model.classifier[1].out_channels == 3


@pytest.mark.parametrize(
    "name", ["factory_of_a_test:make", "factory_of_a_test.py:make", "{folder}/factory_of_a_test.py:make"]
)
def test_function_of_a_module_or_a_file(folder, name):
    model = load_model(name.format(folder=folder), dtype=torch.float64)
    assert type(model).__name__ == "Net"
    assert model[0].weight.dtype == torch.float64
    assert not model[1].training


def test_files_of_one_name_are_told_apart(tmp_path):
    for folder, width in (("a", 2), ("b", 5)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "nets.py").write_text(
            f"from torch import nn\ndef make():\n    return nn.Linear(1, {width})\n"
        )
    widths = [load_model(f"{tmp_path / folder / 'nets.py'}:make").out_features for folder in "ab"]
    assert widths == [2, 5]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "factory_of_a_test:fails",
            "'factory_of_a_test:fails', called without arguments; it raised RuntimeError: no such thing",
        ),
        (
            "factory_of_a_test:gives_a_list",
            "torch.nn.Module from the function 'factory_of_a_test:gives_a_list', got list",
        ),
        ("factory_of_a_test:mke", "got nothing of this name; did you mean make"),
        ("factory_of_a_test:number", "a function number in factory_of_a_test .* got a int"),
        ("no_such_module_of_ours:make", "to import no_such_module_of_ours .* ModuleNotFoundError"),
        ("broken_factory:make", "to import broken_factory .* No module named 'no_such_package_anywhere'"),
        ("missing.py:make", "FileNotFoundError: no file missing.py"),
        ("missing:", "expected a function as module:function"),
        (":make", "expected a function as module:function"),
    ],
)
def test_function_that_gives_no_model_is_named(folder, name, message):
    with pytest.raises(ValueError, match=message):
        load_model(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet81", "got 'resnet81'; timm has .*resnet18.*; torchvision has .*resnet18"),
        ("ResNet_18", "timm has .*resnet18"),
        ("timm/resnet81", "got 'resnet81'; timm has .*resnet18[^;]*$"),
        ("torchvision/convnext_tinny", "torchvision has convnext_tiny"),
        ("zzzzzzzzzzzz", "timm has none like it; torchvision has none like it"),
        ("", "got ''; timm has none like it"),
    ],
)
def test_unknown_name_is_answered_with_the_nearest(name, message):
    pytest.importorskip("timm")
    pytest.importorskip("torchvision")
    with pytest.raises(ValueError, match=message):
        load_model(name)


def test_missing_library_is_named(monkeypatch):
    pytest.importorskip("torchvision")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        ModuleNotFoundError, match="one of timm needs timm, which is not installed; install timm"
    ):
        load_model("timm/resnet18")
    assert load_model("squeezenet1_1", num_classes=2) is not None
    with pytest.raises(ValueError, match=r"torchvision has .*resnet18.*; timm is not installed"):
        load_model("resnet81")
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(ModuleNotFoundError, match="neither timm nor torchvision is installed"):
        load_model("resnet18")


def test_pretrained_asks_the_library_for_its_weights(monkeypatch):
    """Without a download: what is handed to the library."""
    timm = pytest.importorskip("timm")
    models = pytest.importorskip("torchvision.models")
    asked = []
    monkeypatch.setattr(
        timm, "create_model", lambda name, **options: asked.append((name, options)) or nn.Identity()
    )
    monkeypatch.setattr(
        models, "get_model", lambda name, **options: asked.append((name, options)) or nn.Identity()
    )
    load_model("test_resnet.r160_in1k", pretrained=True)
    load_model("torchvision/resnet18", pretrained=True)
    load_model("torchvision/resnet18")
    assert asked == [
        ("test_resnet.r160_in1k", {"pretrained": True}),
        ("resnet18", {"weights": "DEFAULT"}),
        ("resnet18", {"weights": None}),
    ]


def test_download_that_fails_is_explained(monkeypatch):
    timm = pytest.importorskip("timm")

    def offline(*_, **__):
        raise ConnectionError("no way out")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        ValueError, match=r"timm to make test_resnet and its weights .* ConnectionError: no way out"
    ):
        load_model("test_resnet", pretrained=True)


def test_arguments_that_contradict_each_other(tmp_path):
    with pytest.raises(ValueError, match="pretrained: expected either"):
        load_model("resnet18", pretrained=True, checkpoint=tmp_path / "weights.pt")
    with pytest.raises(
        ValueError, match="num_classes: expected a model of timm or torchvision, got the function 'a:b'"
    ):
        load_model("a:b", num_classes=3)
    with pytest.raises(ValueError, match="pretrained: expected a model of timm or torchvision"):
        load_model("a:b", pretrained=True)
    with pytest.raises(ValueError, match="num_classes: expected at least 1, got 0"):
        load_model("resnet18", num_classes=0)


def test_preprocessing_is_what_the_weights_were_trained_with():
    timm = pytest.importorskip("timm")
    model = load_model("test_vit2")
    found, wanted = preprocessing(model), timm.data.resolve_model_data_config(model)
    assert (3, *found.size) == wanted["input_size"] == (3, 160, 160)
    assert found.crop == wanted["crop_pct"]
    assert found.interpolation == wanted["interpolation"]
    assert (found.mean, found.std) == (wanted["mean"], wanted["std"])


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed")
def test_preprocessing_of_torchvision():
    from torchvision import models

    model = load_model("torchvision/squeezenet1_1")
    found = preprocessing(model, "torchvision/squeezenet1_1")
    preset = models.get_model_weights("squeezenet1_1").DEFAULT.transforms()
    assert found.size == (224, 224)
    assert found.crop == pytest.approx(224 / 256)
    assert list(found.mean) == preset.mean
    assert list(found.std) == preset.std
    assert found.interpolation == "bilinear"


def test_preprocessing_of_an_unknown_model_is_that_of_imagenet():
    found = preprocessing(SmallCnn(), "module:function")
    assert found.size == (224, 224)
    assert found.mean == (0.485, 0.456, 0.406)


def test_who_makes_a_model_and_in_which_version():
    timm, torchvision = pytest.importorskip("timm"), pytest.importorskip("torchvision")
    assert source_of("resnet18") == source_of("timm/resnet18") == ("timm", timm.__version__)
    library, version = source_of("torchvision/resnet18")
    assert library == "torchvision"
    assert version.split("+")[0] == torchvision.__version__.split("+")[0]
    assert source_of("net.py:make") == ("factory", None)
    with pytest.raises(ValueError, match="got 'resnet81'"):
        source_of("resnet81")
