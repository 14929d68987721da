"""Models by name."""

import sys

import pytest
import torch
from torch import nn

from batchcam_captum.loading import load_model, preprocessing, source_of
from tests.models import SmallCnn

FACTORY = """
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
        if any(part in name for part in ("of_a_test", "of_the_factory", "broken_factory")):
            del sys.modules[name]


def test_timm_is_asked_first_and_torchvision_by_prefix_or_where_it_alone_knows_the_name():
    timm, torchvision = pytest.importorskip("timm"), pytest.importorskip("torchvision")
    model = load_model("test_resnet", num_classes=3)
    assert not model.training
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    assert source_of("resnet18") == source_of("timm/resnet18") == ("timm", timm.__version__)
    for name in ("torchvision/squeezenet1_1", "squeezenet1_1"):
        assert type(load_model(name, num_classes=3)).__module__ == "torchvision.models.squeezenet"
        library, version = source_of(name)
        assert (library, version.split("+")[0]) == ("torchvision", torchvision.__version__.split("+")[0])
    assert source_of("net.py:make") == ("factory", None)


@pytest.mark.parametrize("name", ["factory_of_a_test:make", "{folder}/factory_of_a_test.py:make"])
def test_function_of_a_module_or_a_file(folder, name):
    model = load_model(name.format(folder=folder), dtype=torch.float64)
    assert type(model).__name__ == "Net"
    assert model[0].weight.dtype == torch.float64
    assert not model[1].training


def test_files_of_one_name_are_distinguished(tmp_path):
    for folder, width in (("a", 2), ("b", 5)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "nets.py").write_text(
            f"from torch import nn\ndef make():\n    return nn.Linear(1, {width})\n"
        )
    assert [load_model(f"{tmp_path}/{folder}/nets.py:make").out_features for folder in "ab"] == [2, 5]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("factory_of_a_test:fails", "RuntimeError: no such thing"),
        ("factory_of_a_test:gives_a_list", "got list"),
        ("factory_of_a_test:mke", "AttributeError: .*mke"),
        ("no_such_module_of_ours:make", "ModuleNotFoundError"),
        ("broken_factory:make", "no_such_package_anywhere"),
        ("missing.py:make", r"no file missing\.py"),
        ("missing:", "module:function"),
        (":make", "module:function"),
    ],
)
def test_function_that_gives_no_model_is_named(folder, name, message):
    with pytest.raises(ValueError, match=f"^model: .*{message}"):
        load_model(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet81", "timm has .*resnet18.*; torchvision has .*resnet18"),
        ("timm/resnet81", "timm has .*resnet18[^;]*$"),
        ("torchvision/convnext_tinny", "torchvision has convnext_tiny"),
        ("", "timm has none like it"),
    ],
)
def test_unknown_name_is_answered_with_the_closest(name, message):
    pytest.importorskip("timm")
    pytest.importorskip("torchvision")
    with pytest.raises(ValueError, match=f"^model: .*{message}"):
        load_model(name)


def test_missing_library_is_named(monkeypatch):
    pytest.importorskip("torchvision")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModuleNotFoundError, match="install timm"):
        load_model("timm/resnet18")
    assert load_model("squeezenet1_1", num_classes=2) is not None
    with pytest.raises(ValueError, match=r"timm is not installed; torchvision has"):
        load_model("resnet81")
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(ModuleNotFoundError, match="which is not installed"):
        load_model("resnet18")


def test_pretrained_asks_the_library_for_its_weights(monkeypatch):
    """Without a download: only what the library is asked for."""
    timm, models = pytest.importorskip("timm"), pytest.importorskip("torchvision.models")
    asked = []

    def make(name, **options):
        asked.append((name, options))
        return nn.Identity()

    monkeypatch.setattr(timm, "create_model", make)
    monkeypatch.setattr(models, "get_model", make)
    load_model("test_resnet.r160_in1k", pretrained=True)
    load_model("torchvision/resnet18", pretrained=True)
    load_model("torchvision/resnet18")
    assert asked == [
        ("test_resnet.r160_in1k", {"pretrained": True}),
        ("resnet18", {"weights": "DEFAULT"}),
        ("resnet18", {"weights": None}),
    ]

    def offline(*_, **__):
        raise ConnectionError("no way out")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ValueError, match=r"^model: .*timm.*test_resnet.*ConnectionError: no way out"):
        load_model("test_resnet", pretrained=True)


@pytest.mark.parametrize(
    ("name", "options", "argument"),
    [
        ("resnet18", {"pretrained": True, "checkpoint": "weights.pt"}, "pretrained"),
        ("a:b", {"num_classes": 3}, "num_classes"),
        ("a:b", {"pretrained": True}, "pretrained"),
        ("resnet18", {"num_classes": 0}, "num_classes"),
    ],
)
def test_arguments_that_contradict_each_other(name, options, argument):
    with pytest.raises(ValueError, match=f"^{argument}: "):
        load_model(name, **options)


def test_preprocessing_is_what_the_weights_were_trained_with():
    timm, models = pytest.importorskip("timm"), pytest.importorskip("torchvision.models")
    model = load_model("test_vit2")
    found, wanted = preprocessing(model), timm.data.resolve_model_data_config(model)
    assert (3, *found.size) == wanted["input_size"] == (3, 160, 160)
    assert (found.crop, found.interpolation) == (wanted["crop_pct"], wanted["interpolation"])
    assert (found.mean, found.std) == (wanted["mean"], wanted["std"])

    found = preprocessing(load_model("torchvision/squeezenet1_1"), "torchvision/squeezenet1_1")
    preset = models.get_model_weights("squeezenet1_1").DEFAULT.transforms()
    assert (found.size, found.crop, found.interpolation) == ((224, 224), 224 / 256, "bilinear")
    assert (list(found.mean), list(found.std)) == (preset.mean, preset.std)

    found = preprocessing(SmallCnn(), "module:function")
    assert (found.size, found.mean, found.crop) == ((224, 224), (0.485, 0.456, 0.406), 0.875)
