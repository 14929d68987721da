"""The values equal Captum's on the architectures that people use: model files of timm and torchvision.

One entry per architecture, those that run fastest of each layout: its smallest variant, a small input, random weights with a head
strong enough for maps that do not vanish. Nearly always the explained layer is the last but one stage, so that a stage or some
blocks of the architecture's own kind lie between the layer and the scores, and its map has more than four places.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tests.attribution.captum_parity import assert_like_captum


@dataclass(frozen=True)
class Architecture:
    layer: str
    size: tuple[int, ...] = (64, 64)
    kwargs: dict[str, Any] = field(default_factory=dict)
    target: list[Any] = field(default_factory=lambda: [1, 4])


def at(layer: str, size: int = 64, **kwargs: Any) -> Architecture:
    """Return an entry for timm, whose transformers take the size as an argument."""
    return Architecture(layer, (size, size), kwargs)


TIMM = {
    # convolutions
    "test_resnet": at("layer3"),
    "resnetv2_18": at("stages.2"),
    "resnest14d": at("layer3"),
    "skresnet18": at("layer3"),
    "densenet121": at("features.denseblock3"),
    "dla46x_c": at("level4"),
    "dpn48b": at("features.conv4_6"),
    "hrnet_w18_small": at("stage4"),
    "cs3darknet_focus_s": at("stages.2"),
    "ese_vovnet19b_slim_dw": at("stages.2"),
    "regnety_002": at("s3"),
    "hgnetv2_b0": at("stages.2"),
    "test_nfnet": at("stages.2"),
    "test_byobnet": at("stages.2"),
    # mobile convolutions
    "test_efficientnet": at("blocks.3"),
    "mobilenetv3_small_050": at("blocks.4"),
    "lcnet_035": at("blocks.4"),
    "mobilenetv4_conv_small_035": at("blocks.3"),
    "ghostnet_050": at("blocks.6"),
    "fasternet_t0": at("stages.2"),
    "starnet_s050": at("stages.2"),
    # convolutions after the transformers
    "test_convnext": at("stages.2"),
    "convnextv2_atto": at("stages.2"),
    "inception_next_atto": at("stages.2"),
    "mambaout_femto": at("stages.2"),
    # Transformers. Without a reshape their tokens are taken for channels, as in Captum. The layer is a LayerNorm within a
    # block: the gradient of the residual path has a mean of zero over the embedding, and so have the channel weights. Where
    # layer scales start near zero they are set to one.
    #
    # transformers of one resolution
    "test_vit": at("blocks.4.norm1", img_size=64),
    "test_vit_relpos": at("blocks.7.norm1", img_size=64, init_values=1.0),
    "deit_tiny_distilled_patch16_224": at("blocks.10.norm1", img_size=64),
    "eva02_tiny_patch14_224": at("blocks.10.norm1", 56, img_size=56),
    "vit_tiny_patch16_dinov3_qkvb": at("blocks.10.norm1", img_size=64, init_values=1.0),
    "beit_base_patch16_224": at("blocks.1.norm1", img_size=64, depth=3, embed_dim=192, num_heads=3),
    "cait_xxs24_224": at("blocks.22.norm1", img_size=64, init_values=1.0),
    "convit_tiny": at("blocks.10.norm1", img_size=64),
    "xcit_nano_12_p8_224": at("blocks.10.norm1", img_size=64),
    # transformers of several resolutions
    "swin_tiny_patch4_window7_224": at("layers.2", img_size=64),
    "swinv2_cr_tiny_224": at("stages.2", img_size=64),
    "pit_ti_224": at("transformers.1", img_size=64),
    "pvt_v2_b0": at("stages.2"),
    "gcvit_xxtiny": at("stages.2", img_size=64),
    "hiera_tiny_224": at("blocks.9.norm1", img_size=64),
    # hybrids of both
    "levit_128s": at("stages.1", img_size=64),
    "coat_lite_tiny": at("serial_blocks3.0.norm2", img_size=64),
    "edgenext_xx_small": at("stages.2"),
    "efficientvit_b0": at("stages.2"),
    "iformer_t": at("stages.2"),
    "test_coatnet": at("stages.2", img_size=64),
    "test_maxvit": at("stages.2", img_size=64),
    "mobilevit_xxs": at("stages.3"),
    "mobilevitv2_050": at("stages.3"),
    "shvit_s1": at("stages.1"),
    "swiftformer_xs": at("stages.2", img_size=64),
    # neither
    "gmlp_ti16_224": at("blocks.28.norm", img_size=64),
}
TORCHVISION = {
    "squeezenet1_1": at("features"),
    "shufflenet_v2_x0_5": at("stage3"),
    # scores for every place
    "lraspp_mobilenet_v3_large": Architecture("backbone.13", target=[(1, 20, 33), (4, 5, 6)]),
    # maps over space and time
    "mc3_18": Architecture("layer3", (8, 48, 48)),
    "swin3d_t": Architecture("features.4.4.norm1", (4, 64, 64)),
}


class Scores(nn.Module):
    """Take the scores out of a dictionary: Captum takes tensors only."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)["out"]


def made(name: str, source: str) -> nn.Module:
    """Make an untrained model in eval mode."""
    entry = ENTRIES[name, source]
    if source == "timm":
        return timm.create_model(name, num_classes=5, **entry.kwargs).eval()
    defaults = {"weights_backbone": None} if isinstance(entry.target[0], tuple) else {}
    return torchvision.models.get_model(name, num_classes=5, **defaults, **entry.kwargs).eval()


def heads(model: nn.Module) -> list[nn.Module]:
    """Return the classifiers that timm names, or else the last layer with weights."""
    if hasattr(model, "get_classifier"):
        classifier = model.get_classifier()
        parts = classifier if isinstance(classifier, tuple | list) else [classifier]
        return [m for part in parts for m in part.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    return [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1:]


@torch.no_grad()
def lively(model: nn.Module, images: Tensor) -> None:
    """Give a model strong heads, and its BatchNorms the statistics of some images.

    With the statistics that they start with, 0 and 1, the activations of deep networks vanish or explode.
    """
    for head in heads(model):
        nn.init.normal_(head.weight, std=1.0)
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    if norms:
        model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum


ENTRIES = {(name, "timm"): entry for name, entry in TIMM.items()}
ENTRIES |= {(name, "torchvision"): entry for name, entry in TORCHVISION.items()}


@pytest.mark.parametrize(("name", "source"), ENTRIES)
def test_equal_to_captums(name: str, source: str) -> None:
    entry = ENTRIES[name, source]
    model = made(name, source)
    lively(model, torch.randn(4, 3, *entry.size))
    whole = Scores(model) if isinstance(entry.target[0], tuple) else model
    images = torch.randn(2, 3, *entry.size)
    layer = model.get_submodule(entry.layer)
    assert_like_captum(whole, layer, images, torch.float32, target=entry.target)
