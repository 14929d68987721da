"""Differentiable maps and training through operators that have no second derivative, or only without fusing."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from batchcam_captum import BatchGradCam, CamRegularizer, PrototypeLoss
from batchcam_captum.losses import LossOutput
from tests.models import strong_heads

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([1, 3])


@pytest.fixture(scope="module")
def mobilenet() -> nn.Module:
    return torchvision.models.mobilenet_v3_small(num_classes=5).eval()


def test_first_order_maps_are_not_affected(mobilenet: nn.Module) -> None:
    cams = BatchGradCam(mobilenet, "features.8").attribute(IMAGES, LABELS)
    assert cams.shape == (2, 1, 4, 4)
    assert cams.abs().max() > 0


@pytest.mark.parametrize(
    "layers", ["features.8", ["features.8", "features.12"], ["features.12", "features.8"]], ids=str
)
def test_the_operator_and_the_layer_to_choose_are_named(mobilenet: nn.Module, layers: object) -> None:
    grad_cam = BatchGradCam(mobilenet, layers)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=r"^layer: .*hardsigmoid.*check"):
        grad_cam.attribute(IMAGES, LABELS, differentiable=True)
    assert not any(module._forward_hooks for module in mobilenet.modules())
    assert BatchGradCam(mobilenet, "features.11").attribute(IMAGES, LABELS, differentiable=True).requires_grad


def test_training_is_told_at_once(mobilenet: nn.Module) -> None:
    regularizer = CamRegularizer(BatchGradCam(mobilenet, "features.8"), PrototypeLoss(torch.rand(5, 1, 4, 4)))
    with regularizer:
        scores = mobilenet(IMAGES)
    with pytest.raises(RuntimeError, match=r"^layer: .*hardsigmoid.*check"):
        regularizer(scores, LABELS)


class Watch(nn.Module):
    """Notes which backends attention may take when it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.fused: list[bool] = []

    def forward(self, tokens: Tensor) -> Tensor:
        self.fused.append(torch.backends.cuda.flash_sdp_enabled())
        return tokens


@pytest.fixture
def vit() -> nn.Module:
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=4, num_classes=5).eval()
    for block in model.blocks:
        block.ls1 = Watch()
    return strong_heads(model)


def fused(model: nn.Module) -> list[bool]:
    return [block.ls1.fused[-1] for block in model.blocks]


def weights_gradient(cams: Tensor, model: nn.Module) -> Tensor:
    return torch.autograd.grad(cams.square().sum(), model.blocks[3].attn.qkv.weight)[0]


def test_attention_is_not_fused_from_the_layer_on_only(vit: nn.Module) -> None:
    grad_cam = BatchGradCam(vit, "blocks.2.norm1", reshape="auto")
    grad_cam.attribute(IMAGES, LABELS)
    assert fused(vit) == [True, True, True, True]
    cams = grad_cam.attribute(IMAGES, LABELS, differentiable=True)
    assert fused(vit) == [True, True, False, False]
    assert torch.backends.cuda.flash_sdp_enabled()
    got = weights_gradient(cams, vit)
    with sdpa_kernel(SDPBackend.MATH):
        expected = weights_gradient(
            BatchGradCam(vit, "blocks.2.norm1", reshape="auto").attribute(
                IMAGES, LABELS, differentiable=True
            ),
            vit,
        )
    assert expected.abs().max() > 0
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


def test_training_a_transformer(vit: nn.Module) -> None:
    prototypes = torch.rand(5, 1, 64, 64)
    grad_cam = BatchGradCam(vit, "blocks.2.norm1", reshape="auto")
    regularizer = CamRegularizer(grad_cam, PrototypeLoss(prototypes))
    with regularizer:
        scores = vit(IMAGES)
    assert fused(vit) == [True, True, False, False]
    assert torch.backends.cuda.flash_sdp_enabled()
    loss = regularizer(scores, LABELS)
    (got,) = torch.autograd.grad(loss, vit.blocks[3].attn.qkv.weight)
    cams = grad_cam.attribute(IMAGES, LABELS, differentiable=True)
    expected_loss = PrototypeLoss(prototypes)(cams, LABELS)
    torch.testing.assert_close(loss, expected_loss)
    (expected,) = torch.autograd.grad(expected_loss, vit.blocks[3].attn.qkv.weight)
    assert expected.abs().max() > 0
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("size", [(64, 64), (64, 96)], ids=["square", "not square"])
def test_the_grid_is_found_in_training_too(size: tuple[int, int]) -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=size, depth=2, num_classes=5, global_pool="avg", class_token=False
    )
    seen: list[tuple[int, ...]] = []

    class Sees(PrototypeLoss):
        def evaluate(self, cams: Tensor, labels: Tensor, **named: Tensor | None) -> LossOutput:
            seen.append(tuple(cams.shape))
            return super().evaluate(cams, labels, **named)

    regularizer = CamRegularizer(
        BatchGradCam(model, "blocks.1.norm1", reshape="auto"), Sees(torch.rand(5, 1, *size))
    )
    images = torch.randn(2, 3, *size)
    with regularizer:
        scores = model(images)
    regularizer(scores, LABELS)
    regularizer.evaluate(images, LABELS)
    assert seen == [(2, 1, size[0] // 16, size[1] // 16)] * 2


def test_attention_is_fused_again_after_an_error(vit: nn.Module) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("stop here")

    handle = vit.blocks[3].register_forward_pre_hook(fails)
    regularizer = CamRegularizer(
        BatchGradCam(vit, "blocks.2.norm1", reshape="auto"), PrototypeLoss(torch.rand(5, 1, 64, 64))
    )
    with pytest.raises(RuntimeError, match="stop here"), regularizer:
        vit(IMAGES)
    assert torch.backends.cuda.flash_sdp_enabled()
    with pytest.raises(RuntimeError, match="stop here"):
        regularizer.grad_cam.attribute(IMAGES, LABELS, differentiable=True)
    assert torch.backends.cuda.flash_sdp_enabled()
    handle.remove()


def test_the_grid_follows_the_input_that_has_places() -> None:
    class WithAge(nn.Module):
        """A number a sample comes before the image; nothing in the model says how its patches lie."""

        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 8, 8, stride=8)
            self.layer = nn.Linear(8, 8)
            self.head = nn.Linear(9, 5)

        def forward(self, age: Tensor, images: Tensor) -> Tensor:
            tokens = self.layer(self.patches(images).flatten(2).mT).tanh()
            return self.head(torch.cat([tokens.square().mean(1), age], 1))

    model = WithAge()
    cams = BatchGradCam(model, "layer", reshape="auto").attribute(
        (torch.rand(2, 1), torch.randn(2, 3, 32, 64)), 1
    )
    assert cams.shape == (2, 1, 4, 8)
