"""Small networks of the families that the peers are compared on."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import timm
import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.models.vgg import make_layers

from tests.models import SmallCnn, strong_heads


class Case(NamedTuple):
    make: Callable[[], nn.Module]
    layer: str
    size: tuple[int, ...]
    reshape: Callable[[Tensor], Tensor] | None = None


class Network(NamedTuple):
    """In eval mode and float32; the images belong to it."""

    model: nn.Module
    layer: str
    images: Tensor
    reshape: Callable[[Tensor], Tensor] | None


def vgg() -> nn.Module:
    """VGG-11 with a quarter of the channels."""
    features = make_layers([16, "M", 32, "M", 64, 64, "M", 128, 128, "M", 128, 128, "M"])
    return nn.Sequential(
        features, nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(128 * 9, 16), nn.ReLU(), nn.Linear(16, 5)
    )


def convnext() -> nn.Module:
    return timm.create_model("convnextv2_atto", num_classes=5, depths=(1, 1, 2, 1), dims=(8, 16, 32, 64))


def vit() -> nn.Module:
    shape = {"img_size": (64, 96), "depth": 2, "embed_dim": 24, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", num_classes=5, **shape)


def swin() -> nn.Module:
    stages = {"depths": (2, 2), "num_heads": (2, 2), "embed_dim": 12, "window_size": 4}
    return timm.create_model("swin_tiny_patch4_window7_224", img_size=(64, 96), num_classes=5, **stages)


def of_swin(maps: Tensor) -> Tensor:
    return maps.permute(0, 3, 1, 2)


def of_vit(tokens: Tensor) -> Tensor:
    """A reshape_transform as pytorch-grad-cam's users write it."""
    return tokens[:, 1:].reshape(len(tokens), 4, 6, -1).permute(0, 3, 1, 2)


CASES = {
    "plain": Case(SmallCnn, "layer", (16, 14)),
    "resnet": Case(lambda: ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5), "layer3", (70, 64)),
    "convnextv2": Case(convnext, "stages.3", (100, 132)),
    "vgg": Case(vgg, "0", (64, 96)),
    "vit": Case(vit, "blocks.0.norm1", (64, 96), of_vit),
    "swin": Case(swin, "layers.1.blocks.0", (64, 96), of_swin),
}


def network(name: str) -> Network:
    case = CASES[name]
    torch.manual_seed(4)
    model = strong_heads(case.make()).eval()
    return Network(model, case.layer, torch.rand(2, 3, *case.size), case.reshape)
