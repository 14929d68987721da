"""Every weighting, with its epsilon, has pytorch-grad-cam's values: raw, and after its own way of making a picture of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import pytorch_grad_cam
import timm
import torch
import torchvision
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from batchcam_captum import BatchGradCam
from batchcam_captum.functional import (
    grad_cam,
    grad_cam_plus_plus,
    hires_cam,
    layer_cam,
    rectify,
    xgrad_cam,
)
from tests.models import SmallCnn, strong_heads

METHODS: dict[str, tuple[Any, Callable[..., Tensor]]] = {
    "grad_cam": (pytorch_grad_cam.GradCAM, grad_cam),
    "grad_cam_plus_plus": (pytorch_grad_cam.GradCAMPlusPlus, partial(grad_cam_plus_plus, eps=1e-6)),
    "xgrad_cam": (pytorch_grad_cam.XGradCAM, partial(xgrad_cam, eps=1e-7)),
    "hires_cam": (pytorch_grad_cam.HiResCAM, hires_cam),
    "layer_cam": (pytorch_grad_cam.LayerCAM, layer_cam),
}


def vgg11() -> nn.Module:
    """Its features, without the 120 million weights after them."""
    return nn.Sequential(
        make_layers(cfgs["A"], batch_norm=False),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
        nn.Linear(512 * 9, 16),
        nn.ReLU(),
        nn.Linear(16, 5),
    )


def vit() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=(64, 96), depth=2, embed_dim=24, num_heads=2, num_classes=5
    )


def swin() -> nn.Module:
    stages = {"depths": (2, 2), "num_heads": (2, 2), "embed_dim": 12, "window_size": 4}
    return timm.create_model("swin_tiny_patch4_window7_224", img_size=(64, 96), num_classes=5, **stages)


def of_swin(maps: Tensor) -> Tensor:
    return maps.permute(0, 3, 1, 2)


def of_vit(tokens: Tensor) -> Tensor:
    """A reshape_transform as pytorch-grad-cam's users write it."""
    return tokens[:, 1:].reshape(len(tokens), 4, 6, -1).permute(0, 3, 1, 2)


NETWORKS: dict[
    str, tuple[Callable[[], nn.Module], str, tuple[int, int], Callable[[Tensor], Tensor] | None]
] = {
    "plain": (SmallCnn, "layer", (16, 14), None),
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=5), "layer3", (64, 64), None),
    "convnextv2_atto": (
        lambda: timm.create_model("convnextv2_atto", num_classes=5),
        "stages.3",
        (96, 128),
        None,
    ),
    "vgg11": (vgg11, "0", (64, 64), None),
    "vit": (vit, "blocks.0.norm1", (64, 96), of_vit),
    "swin": (swin, "layers.1.blocks.0", (64, 96), of_swin),
}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> Any:
    """Model, layer, images, reshape; one instance for all weightings."""
    make, layer, size, reshape = NETWORKS[request.param]
    torch.manual_seed(4)
    model = strong_heads(make()).eval()
    return model, layer, torch.rand(2, 3, *size), reshape


def min_max(maps: Tensor) -> Tensor:
    """Its scaling of one map after the other, with its epsilon."""
    maps = maps - maps.amin((2, 3), keepdim=True)
    return maps / (1e-7 + maps.amax((2, 3), keepdim=True))


def pictures(cams: Tensor, size: tuple[int, int]) -> Tensor:
    scaled = min_max(rectify(cams)).float()
    larger = nn.functional.interpolate(scaled, size=size, mode="bilinear", align_corners=False)
    return min_max(larger)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_values(network: Any, name: str, dtype: torch.dtype) -> None:
    model, layer, images, reshape = network
    model, images = model.to(dtype), images.to(dtype)
    peer_class, method = METHODS[name]
    classes = [4, 1]

    module = model.get_submodule(layer)
    with peer_class(model, [module], reshape_transform=reshape) as peer:
        targets = [ClassifierOutputTarget(c) for c in classes]
        expected_pictures = torch.from_numpy(peer(images, targets))[:, None]
        activations = peer.activations_and_grads.activations[0].numpy()
        gradients = peer.activations_and_grads.gradients[0].numpy()
        expected = torch.from_numpy(
            np.asarray(peer.get_cam_image(images, module, targets, activations, gradients, False))
        )[:, None]
    model.zero_grad()

    cams = BatchGradCam(model, layer, method=method, reshape=reshape and "auto").attribute(
        images, target=classes
    )

    assert cams.shape == expected.shape
    assert cams.dtype == dtype
    peaks = expected.abs().amax((2, 3), keepdim=True)
    assert peaks.min() > 1e-5, "a vanishing map shows nothing"
    # Raw: in float64 only the order of the sums differs, in float32 near-zero denominators enlarge that.
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4}[dtype]
    error = ((cams - expected).abs() / peaks).max()
    assert error <= tolerance, f"raw maps: {error} of the maximum"

    assert expected_pictures.amax() > 0.9, "a vanishing picture shows nothing"
    tolerance = {torch.float64: 5e-7, torch.float32: 1e-4}[dtype]
    error = (pictures(cams, images.shape[2:]) - expected_pictures).abs().max()
    assert error <= tolerance, f"pictures: {error}"
