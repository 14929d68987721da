"""Second derivatives after the layer: operators that have none, and attention that is not fused from the layer on."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from batchcam_captum import BatchGradCam, CamRegularizer, PrototypeLoss
from batchcam_captum.attribution.second_order import second_order_problem
from batchcam_captum.losses import LossOutput
from tests.models import strong_heads


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


class Twice(torch.autograd.Function):
    """Its backward is made of operators that have a derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


def attention(x: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)[:, None].contiguous()
    return F.scaled_dot_product_attention(tokens, tokens, tokens)


BOXES = [torch.tensor([[0.0, 0.0, 5.0, 5.0]])] * 2
KERNEL = nn.Conv2d(3, 3, 3)
#: An operator -> whether it has a second derivative; None where that depends on torch's version.
OPERATORS = {
    "hardswish": (F.hardswish, True),
    "gelu": (F.gelu, True),
    "convolution": (KERNEL, True),
    "batch norm": (nn.BatchNorm2d(3), True),
    "layer norm": (nn.LayerNorm(8), True),
    "max pool": (nn.MaxPool2d(2), True),
    "lstm": (lambda x: nn.LSTM(8, 3)(x.flatten(1, 2))[0], True),
    "bicubic": (lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), True),
    "function": (Twice.apply, True),
    "checkpoint": (lambda x: checkpoint(KERNEL, x, use_reentrant=False), True),
    "hardsigmoid": (F.hardsigmoid, False),
    "deform_conv2d": (
        lambda x: torchvision.ops.deform_conv2d(x, torch.zeros(2, 18, 6, 6), KERNEL.weight), False,
    ),
    "roi_align": (lambda x: torchvision.ops.roi_align(x, BOXES, 3), False),
    "once_differentiable": (Once.apply, False),
    "attention": (attention, False),
    "multi_margin": (
        lambda x: F.multi_margin_loss(x.flatten(1), torch.tensor([0, 1]), reduction="none"), False,
    ),
    "grid_sample": (lambda x: F.grid_sample(x, torch.rand(2, 4, 4, 2), align_corners=False), None),
    "cdist": (lambda x: torch.cdist(x.flatten(2), x.flatten(2) + 1), None),
}  # fmt: skip


@pytest.mark.parametrize("curved", [True, False])
@pytest.mark.parametrize("name", OPERATORS)
def test_a_problem_is_found_exactly_where_a_backward_through_the_gradients_raises(
    name: str, curved: bool
) -> None:
    """Also if the rest of the head is linear, so that only the head's weights need the second derivative."""
    operator, works = OPERATORS[name]
    activations = nn.Conv2d(3, 3, 1)(torch.randn(2, 3, 8, 8))
    rows = (
        operator(activations.clone()).flatten(1)
        if name != "multi_margin"
        else operator(activations.clone())[:, None]
    )
    scores = nn.Linear(rows.shape[1], 3)(rows.tanh() if curved else rows)[:, 1].sum()
    (gradient,) = torch.autograd.grad(scores, activations, create_graph=True)
    problem = second_order_problem([gradient], [activations])
    error = None
    try:
        gradient.square().sum().backward()
    except RuntimeError as raised:
        error = str(raised)
    assert (problem is None) == (error is None)
    assert works is None or (problem is None) == works
    assert problem is None or error.startswith(problem)


@pytest.mark.filterwarnings("ignore")
def test_compiled_code_after_the_layer() -> None:
    torch._dynamo.reset()
    activations = torch.randn(2, 3, requires_grad=True)
    scores = torch.compile(lambda x: x.tanh() * x, backend="aot_eager")(activations).sum()
    (gradient,) = torch.autograd.grad(scores, activations, create_graph=True)
    assert "torch.compile" in str(second_order_problem([gradient], [activations]))


def test_what_comes_before_the_layer_does_no_harm() -> None:
    trunk, head = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Hardsigmoid()), nn.Conv2d(4, 4, 3)
    activations = trunk(torch.randn(2, 3, 16, 16))
    (gradient,) = torch.autograd.grad(head(activations).tanh().sum(), activations, create_graph=True)
    assert second_order_problem([gradient], [activations]) is None


# In use.

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
