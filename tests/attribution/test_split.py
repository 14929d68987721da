"""Trunk and head of a model: the same scores and maps, the model's own layers, its own mode."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections import OrderedDict
from functools import partial

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.testing import assert_close

from batchcam_captum import BatchGradCam
from batchcam_captum.attribution.split import split_model
from batchcam_captum.functional import head_cams, tokens_to_grid
from tests.models import strong_heads

LABELS = torch.tensor([2, 0])
#: timm model, with its pooling where that is not the usual -> the last layer of the trunk.
TIMM = {
    "resnet10t": "layer4",
    "convnextv2_atto": "norm_pre",
    "vit_tiny_patch16_224": "blocks.10",
    "vit_tiny_patch16_224:avg": "norm",
    "deit_tiny_distilled_patch16_224": "blocks.10",
    "fastvit_t8": "final_conv",
    "mobilenetv3_small_050": "blocks",
    "efficientnet_b0": "bn2",
    "regnetx_002": "final_conv",
    "densenet121": "features",
    "repvit_m0_9": "stages",
}


def timm_model(name):
    torch.manual_seed(0)
    name, _, pooling = name.partition(":")
    options = {"img_size": 64} if name.startswith(("vit", "deit")) else {}
    if pooling:
        options["global_pool"] = pooling
    model = timm.create_model(name, num_classes=5, **options)
    return strong_heads(model) if name != "repvit_m0_9" else model


def images(dtype=torch.float32, size=64):
    torch.manual_seed(1)
    return torch.randn(2, 3, size, size, dtype=dtype)


@pytest.mark.parametrize("name", TIMM)
def test_timm_model(name):
    model = timm_model(name).double().eval()
    x = images(torch.float64)
    trunk, head = split_model(model)
    activations = trunk(x)
    assert torch.equal(head(activations), model(x))
    tokens = {3: partial(tokens_to_grid, grid=(4, 4), prefix=getattr(model, "num_prefix_tokens", 0))}
    reshape = tokens.get(activations.dim())
    cams, scores = head_cams(head, activations, LABELS, reshape=reshape)
    expected = BatchGradCam(model, TIMM[name], reshape=reshape).attribute(x, target=LABELS)
    assert_close(scores, model(x), rtol=0, atol=1e-12)
    assert float(cams.detach().abs().flatten(1).amax(1).min()) > 0
    assert_close(cams.detach(), expected, rtol=0, atol=1e-10 * float(expected.abs().max()))


@pytest.mark.parametrize("name", TIMM)
def test_each_parameter_and_buffer_is_in_one_part(name):
    model = timm_model(name)
    trunk, head = split_model(model)
    for kind in ("parameters", "buffers"):
        own = [id(tensor) for part in (trunk, head) for tensor in getattr(part, kind)()]
        assert sorted(own) == sorted(id(tensor) for tensor in getattr(model, kind)())
    classifiers = model.get_classifier()  # DeiT has two
    classifiers = nn.ModuleList(classifiers if isinstance(classifiers, tuple) else [classifiers])
    assert {id(p) for p in classifiers.parameters()} <= {id(p) for p in head.parameters()}


def test_batch_norm_in_the_head_of_a_timm_model_trains():
    model, twin = timm_model("repvit_m0_9"), timm_model("repvit_m0_9")
    trunk, head = split_model(model)
    assert any(isinstance(module, nn.BatchNorm1d) for module in head.modules())
    head_cams(head, trunk(images()), LABELS)
    twin(images())
    for (name, own), expected in zip(model.named_buffers(), twin.buffers(), strict=True):
        assert_close(own, expected, msg=name)
    assert {int(own) for name, own in model.named_buffers() if name.endswith("tracked")} == {1}


def sequential():
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 6, 3))
    return nn.Sequential(
        OrderedDict(
            body=nn.Sequential(OrderedDict(features=features, act=nn.Softplus())),
            pool=nn.AdaptiveAvgPool2d(2),
            flat=nn.Flatten(),
            fc=nn.Linear(24, 5),
        )
    ).double()


LAYERS = [
    "body",
    "pool",
    "body.features",
    "body.features.0",
    "body.features.1",
    "body.features.3",
    "body.act",
]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("mode", [True, False])
def test_sequential_at_a_named_child(layer, mode):
    model, twin = sequential().train(mode), sequential().train(mode)
    trunk, head = split_model(model, layer)
    x = images(torch.float64, 12)
    cams, scores = head_cams(head, trunk(x), LABELS)
    assert torch.equal(scores, twin(x))
    for own, expected in zip(model.buffers(), twin.buffers(), strict=True):
        assert_close(own, expected)
    if not mode:
        attribution = BatchGradCam(twin, twin.get_submodule(layer)).attribute(x, target=LABELS)
        assert float(attribution.abs().flatten(1).amax(1).min()) > 0
        assert_close(cams.detach(), attribution)
    own = [id(parameter) for part in (trunk, head) for parameter in part.parameters()]
    assert own == [id(parameter) for parameter in model.parameters()]


@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (lambda: timm_model("repvit_m0_9"), None),
        (lambda: timm_model("vit_tiny_patch16_224"), None),
        (sequential, "body.features.0"),
    ],
)
def test_parts_follow_the_model(make, layer):
    model = make()
    keys = list(model.state_dict())
    modules = list(model.modules())
    parts = split_model(model, layer)
    assert list(model.state_dict()) == keys
    assert list(model.modules()) == modules
    for mode in (False, True):
        model.train(mode)
        assert all(
            module.training is mode for part in parts for module in part.modules() if module in modules
        )
    parts.head.eval()
    assert model.training
    own = set(parts.head.modules()) & set(modules)
    assert own
    assert not any(module.training for module in own)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda parts: pickle.loads(pickle.dumps(parts))])
def test_copied_parts_stay_together(copied):
    model = sequential()
    trunk, head = copied(split_model(model, "body.features.0"))
    x = images(torch.float64, 12)
    assert torch.equal(head.eval()(trunk(x)), model.eval()(x))
    assert not {id(p) for part in (trunk, head) for p in part.parameters()} & {
        id(p) for p in model.parameters()
    }


def test_a_head_with_attention_pooling_reads_all_places():
    with torch.device("meta"):  # no weights: a large model
        model = timm.create_model("resnet50_clip", num_classes=5)
    trunk, head = split_model(model)
    assert "stages" in dict(trunk.named_children())
    assert dict(head.named_children())["head"] is model.head


def hooked_blocks():
    model = timm_model("vit_tiny_patch16_224")
    model.blocks.register_forward_hook(lambda *_: None)
    return model


class Unlike(nn.Module):
    """Has timm's two methods, and does more than call them."""

    def forward_features(self, x):
        return x

    def forward_head(self, x):
        return x.mean((2, 3))

    def forward(self, x):
        return self.forward_head(self.forward_features(x)).softmax(1)


class Backwards(nn.Sequential):
    """Is an ``nn.Sequential`` that does not run its children in turn."""

    def forward(self, x):
        for module in reversed(self):
            x = module(x)
        return x


def hooked():
    model = sequential()
    model.body.register_forward_hook(lambda *_: None)
    return model


def compiled():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch's own, when the compiler is loaded
        return torch.compile(sequential())


@pytest.mark.parametrize(
    ("make", "layer", "kind", "text"),
    [
        (torchvision.models.resnet18, None, TypeError, r"^model: .* got ResNet .*nn.Sequential\("),
        (Unlike, None, TypeError, "^model: .* got Unlike"),
        (lambda: Backwards(nn.Flatten(), nn.ReLU()), "0", TypeError, "^model: .* got Backwards"),
        (lambda: lambda x: x, None, TypeError, "^model: .* got function"),
        (compiled, "pool", TypeError, "^model: .* compiled model pass the original"),
        (lambda: timm_model("resnet10t"), "layer3", ValueError, "^layer: .* got 'layer3'"),
        (sequential, None, ValueError, "^layer: .* 'body', 'pool', 'flat', 'fc', got None"),
        (sequential, "layer4", ValueError, "^layer: .* 'body', 'pool', 'flat', 'fc', got 'layer4'"),
        (sequential, "body.features.9", ValueError, "^layer: .* 'body.features.0', .* got 'body.features.9'"),
        (sequential, "body.features.0.weight", TypeError, "^layer: .* 'body.features.0' is a Conv2d"),
        (sequential, "fc", ValueError, "^layer: .* got the last one, 'fc'"),
        (hooked, "body.act", TypeError, "^layer: .* hooks at 'body'"),
        (hooked_blocks, None, TypeError, "^layer: .* hooks at 'blocks'"),
        (lambda: timm.create_model("xcit_nano_12_p8_224"), None, TypeError, "^model: .* class token only"),
        (
            lambda: timm.create_model("vit_tiny_patch16_224", depth=1),
            None,
            TypeError,
            "^model: .* class token only",
        ),
    ],
)
def test_models_and_layers_that_cannot_be_split(make, layer, kind, text):
    with pytest.raises(kind, match=text):
        split_model(make(), layer)


def test_the_example_in_the_message_works():
    model = torchvision.models.resnet18(num_classes=5).eval()
    with pytest.raises(TypeError) as caught:
        split_model(model)
    scope = {"nn": nn, "model": model}
    exec(str(caught.value).rpartition(": ")[2], scope)
    assert torch.equal(scope["head"](scope["trunk"](images())), model(images()))
