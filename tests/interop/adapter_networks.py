"""What the tests of the adapter have in common: small networks, and the same call of both libraries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytorch_grad_cam
import timm
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from batchcam_captum import interop
from tests.models import SmallCnn, strong_heads

NAMES = [
    "GradCAM",
    "GradCAMPlusPlus",
    "XGradCAM",
    "HiResCAM",
    "LayerCAM",
    "GradCAMElementWise",
    "EigenCAM",
    "EigenGradCAM",
]


class Network(NamedTuple):
    model: nn.Module
    layers: list[str]
    images: Tensor
    reshape: Callable[[Tensor], Tensor] | None

    @property
    def modules(self) -> list[nn.Module]:
        return [self.model.get_submodule(name) for name in self.layers]

    def to(self, dtype: torch.dtype) -> Network:
        return self._replace(model=self.model.to(dtype), images=self.images.to(dtype))


def vgg() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.ReLU(),
            nn.Conv2d(8, 30, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(30, 16, 3),
        ),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
        nn.Linear(16 * 9, 5),
    )


class DeadChannels(nn.Module):
    """A third of the layer's channels is zero everywhere, and its gradient is not the same at every place."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU())
        with torch.no_grad():
            self.layer[0].bias[::3] = -9
        self.mix = nn.Conv2d(12, 12, 3, padding=1)
        self.head = nn.Linear(12 * 144, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        return self.head((x + self.mix(x).tanh() * x.sigmoid()).flatten(1))


def residual() -> nn.Module:
    return timm.create_model("resnet18", channels=(8, 16, 24, 150), num_classes=5)


def vit() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=(64, 96), depth=2, embed_dim=24, num_heads=2, num_classes=5
    )


def swin() -> nn.Module:
    stages = {"depths": (2, 2), "num_heads": (2, 2), "embed_dim": 12, "window_size": 4}
    return timm.create_model("swin_tiny_patch4_window7_224", img_size=(64, 96), num_classes=5, **stages)


def of_vit(tokens: Tensor, height: int = 4, width: int = 6) -> Tensor:
    """A reshape_transform as pytorch-grad-cam's users write it."""
    maps = tokens[:, 1:, :].reshape(tokens.size(0), height, width, tokens.size(2))
    return maps.transpose(2, 3).transpose(1, 2)


def of_swin(maps: Tensor) -> Tensor:
    return maps.permute(0, 3, 1, 2)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], list[str], tuple[int, ...], Any]] = {
    "plain": (lambda: SmallCnn(norm=True), ["layer"], (16, 14), None),
    "vgg": (vgg, ["0.4"], (26, 26), None),
    "dead_channels": (DeadChannels, ["layer"], (14, 14), None),
    "residual": (residual, ["layer3", "layer4"], (64, 96), None),
    "vit": (vit, ["blocks.0.norm1", "blocks.1.norm1"], (64, 96), of_vit),
    "swin": (swin, ["layers.1.blocks.0"], (64, 96), of_swin),
    "volumes": (lambda: SmallCnn(dims=3), ["layer"], (11, 9, 10), None),
}


def network(name: str, samples: int = 3) -> Network:
    make, layers, size, reshape = NETWORKS[name]
    torch.manual_seed(4)
    return Network(strong_heads(make()).eval(), layers, torch.randn(samples, 3, *size), reshape)


def classes(*categories: int) -> list[ClassifierOutputTarget]:
    return [ClassifierOutputTarget(category) for category in categories]


def both(
    name: str, given: Network, targets: Any, tta_transforms: Any = None, **smooth: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Ours and pytorch-grad-cam's maps."""
    model, _, images, reshape = given
    with getattr(pytorch_grad_cam, name)(model, given.modules, reshape_transform=reshape) as cam:
        if tta_transforms is not None:
            cam.tta_transforms = tta_transforms
        expected = cam(input_tensor=images, targets=targets, **smooth)
    model.zero_grad()
    with getattr(interop, name)(
        model=model, target_layers=given.modules, reshape_transform=reshape, tta_transforms=tta_transforms
    ) as cam:
        maps = cam(input_tensor=images, targets=targets, **smooth)
    return maps, expected


def assert_same_maps(maps: np.ndarray, expected: np.ndarray, dtype: torch.dtype = torch.float64) -> None:
    """Equal to the tolerance of the type, and not because there is nothing on them."""
    assert maps.shape == expected.shape
    assert maps.dtype == expected.dtype == np.float32
    flat = expected.reshape(len(expected), -1)
    assert np.ptp(flat, axis=1).min() > 0.3, "a map without contrast shows nothing"
    assert maps.min() >= 0
    assert maps.max() <= 1
    error = np.abs(maps - expected).max()
    assert error <= {torch.float64: 5e-7, torch.float32: 1e-4}[dtype], error
