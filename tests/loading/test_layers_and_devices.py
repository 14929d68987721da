"""The layer to explain, devices and dtypes by name."""

import pytest
import torch
from torch import nn

from batchcam_captum import suggest_layers
from batchcam_captum.loading import check_device, check_dtype, find_layer
from tests.models import SmallCnn


def test_layer_by_its_name():
    model = SmallCnn()
    assert find_layer(model, "stem.0") == ("stem.0", model.stem[0], None)


def test_layer_that_is_suggested():
    model, example = SmallCnn().eval(), torch.rand(2, 3, 24, 24)
    found = find_layer(model, example=example)
    assert found.name == suggest_layers(model, example).recommended.name
    assert found.module is model.get_submodule(found.name)


def test_tokens_are_reshaped():
    timm = pytest.importorskip("timm")
    model, example = timm.create_model("test_vit", num_classes=3).eval(), torch.rand(1, 3, 160, 160)
    assert find_layer(model, example=example).reshape == "auto"
    assert find_layer(model, "blocks.0", example).reshape == "auto"
    assert find_layer(model, "patch_embed.proj", example).reshape is None
    assert find_layer(model, "head", example).reshape is None


def test_layer_that_is_not_there():
    model = SmallCnn()
    with pytest.raises(ValueError, match=r"got 'layr'; it has .*layer"):
        find_layer(model, "layr")
    with pytest.raises(ValueError, match="layer: "):
        find_layer(model, "")
    with pytest.raises(ValueError, match="expected inputs to find a layer with"):
        find_layer(model)
    with pytest.raises(ValueError, match="no layer with places"):
        find_layer(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), example=torch.rand(1, 3, 2, 2))


def test_device():
    assert check_device("cpu") == torch.device("cpu")
    for name in ("cuda:99", "gpu", "meta", *([] if torch.cuda.is_available() else ["cuda"])):
        with pytest.raises(ValueError, match=f"^device: .*got '{name}' .*PyTorch .* sees .*; pass cpu"):
            check_device(name)


def test_dtype():
    for name in ("float64", "fp64", "double", "torch.float64", torch.float64):
        assert check_dtype(name) == torch.float64
    for name in ("int8", "f32", "", torch.int64):
        with pytest.raises(ValueError, match=r"^dtype: .*bfloat16"):
            check_dtype(name)
