"""Small networks of the families that the peers are compared on, and the same call of both libraries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from batchcam_captum import interop
from tests.models import SmallCnn, strong_heads

pytorch_grad_cam = pytest.importorskip("pytorch_grad_cam")
timm = pytest.importorskip("timm")

from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget  # noqa: E402

#: Class of both libraries -> method.
METHODS = {
    "GradCAM": "grad_cam",
    "GradCAMPlusPlus": "grad_cam_plus_plus",
    "XGradCAM": "xgrad_cam",
    "HiResCAM": "hires_cam",
    "LayerCAM": "layer_cam",
    "GradCAMElementWise": "grad_cam_elementwise",
}
#: Largest difference on maps in [0, 1].
TOLERANCE = {torch.float64: 5e-7, torch.float32: 1e-5}


class Network(NamedTuple):
    """A model in eval mode, the layers to explain, images for it, and its reshape."""

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
    convolutions = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 30, 3), nn.ReLU(), nn.MaxPool2d(2)]
    features = nn.Sequential(*convolutions, nn.Conv2d(30, 16, 3))
    return nn.Sequential(features, nn.Tanh(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(16 * 9, 5))


def resnet() -> nn.Module:
    return timm.create_model("resnet18", channels=(8, 16, 24, 150), num_classes=5)


def convnext() -> nn.Module:
    return timm.create_model("convnextv2_atto", num_classes=5, depths=(1, 1, 2, 1), dims=(8, 16, 32, 64))


def vit() -> nn.Module:
    shape = {"img_size": (64, 96), "depth": 2, "embed_dim": 24, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", num_classes=5, **shape)


def swin() -> nn.Module:
    stages = {"depths": (2, 2), "num_heads": (2, 2), "embed_dim": 12, "window_size": 4}
    return timm.create_model("swin_tiny_patch4_window7_224", img_size=(64, 96), num_classes=5, **stages)


def of_vit(tokens: Tensor) -> Tensor:
    """A reshape_transform as pytorch-grad-cam's users write it."""
    return tokens[:, 1:].reshape(len(tokens), 4, 6, -1).permute(0, 3, 1, 2)


def of_swin(maps: Tensor) -> Tensor:
    return maps.permute(0, 3, 1, 2)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], list[str], tuple[int, ...], Any]] = {
    "plain": (lambda: SmallCnn(norm=True), ["layer"], (16, 14), None),
    "vgg": (vgg, ["0.4"], (26, 26), None),
    "resnet": (resnet, ["layer3", "layer4"], (64, 96), None),
    "convnext": (convnext, ["stages.3"], (100, 132), None),
    "vit": (vit, ["blocks.0.norm1", "blocks.1.norm1"], (64, 96), of_vit),
    "swin": (swin, ["layers.1.blocks.0"], (64, 96), of_swin),
    "volumes": (lambda: SmallCnn(dims=3), ["layer"], (11, 9, 10), None),
}


def network(name: str, samples: int = 3) -> Network:
    make, layers, size, reshape = NETWORKS[name]
    torch.manual_seed(4)
    return Network(strong_heads(make()).eval(), layers, torch.randn(samples, 3, *size), reshape)


def classes(*indices: int) -> list[Any]:
    return [ClassifierOutputTarget(index) for index in indices]


def both(name: str, given: Network, targets: Any, **options: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the maps of this package and of pytorch-grad-cam."""
    with getattr(pytorch_grad_cam, name)(given.model, given.modules, reshape_transform=given.reshape) as cam:
        expected = cam(input_tensor=given.images, targets=targets, **options)
    given.model.zero_grad()
    with getattr(interop, name)(
        model=given.model, target_layers=given.modules, reshape_transform=given.reshape
    ) as cam:
        maps = cam(input_tensor=given.images, targets=targets, **options)
    return maps, expected


def assert_same_maps(maps: np.ndarray, expected: np.ndarray, dtype: torch.dtype = torch.float64) -> None:
    """Equal to the tolerance of the type, and not because the maps are blank."""
    assert maps.shape == expected.shape
    assert maps.dtype == expected.dtype == np.float32
    flat = expected.reshape(len(expected), -1)
    assert np.ptp(flat, axis=1).min() > 0.3, "a map without contrast shows nothing"
    assert maps.min() >= 0
    assert maps.max() <= 1
    assert np.abs(maps - expected).max() <= TOLERANCE[dtype]
