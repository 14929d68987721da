"""Second derivatives through what follows the layer: attention, and operators that have none."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from batchcam_captum.attribution.second_order import (
    second_order_error,
    training_error,
    unsupported_operator,
)
from batchcam_captum.functional import math_attention
from batchcam_captum.functional.math_attention import MathAttention
from tests.models import SmallCnn, strong_heads

ALL_ON = [True] * 5
MATH_ONLY = [True, False, False, False, False]
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def flags_stay() -> Iterator[None]:
    assert math_attention._flags() == ALL_ON
    yield
    assert math_attention._flags() == ALL_ON
    assert math_attention._users == 0


# The switch.


def test_the_switch_is_idempotent_and_nests() -> None:
    first, second = MathAttention(), MathAttention()
    first.stop()
    first.start()
    first.start()
    assert math_attention._flags() == MATH_ONLY
    with second:
        second.start()
        first.stop()
        first.stop()
        assert math_attention._flags() == MATH_ONLY
    assert math_attention._flags() == ALL_ON


def test_flags_of_the_callers_come_back() -> None:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        before = math_attention._flags()
        with MathAttention() as math:
            math.start()
            assert math_attention._flags() == MATH_ONLY
        assert math_attention._flags() == before != MATH_ONLY


def test_a_layer_inside_the_models_own_choice_of_backend() -> None:
    math = MathAttention()
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        math.start()
    assert math_attention._flags() == ALL_ON
    math.stop()  # must not bring back what held inside the block


def test_the_switch_stops_when_the_forward_raises() -> None:
    def forward() -> None:
        with MathAttention() as math:
            math.start()
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        forward()


def test_a_copy_has_not_started() -> None:
    with MathAttention() as math:
        math.start()
        copy.deepcopy(math).stop()
        assert math_attention._flags() == MATH_ONLY


def test_overlapping_threads_end_where_they_began() -> None:
    inside, errors = threading.Barrier(4), []

    def use(rounds: int) -> None:
        inside.wait()
        for _ in range(rounds):
            with MathAttention() as math:
                math.start()
                if math_attention._flags() != MATH_ONLY:
                    errors.append(math_attention._flags())

    threads = [threading.Thread(target=use, args=(200,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v


def second_order(model: nn.Module, tokens: Tensor, weights: list[Tensor]) -> list[Tensor]:
    """Of the squared gradient at the tokens, with respect to the weights."""
    scores = model(tokens).tanh().sum()
    (gradient,) = torch.autograd.grad(scores, tokens, create_graph=True)
    assert unsupported_operator([gradient], scores, [tokens]) is None
    return list(torch.autograd.grad(gradient.square().sum(), weights))


def test_vit_blocks_equal_a_softmax_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    block = timm.models.vision_transformer.Block(16, num_heads=4, qkv_bias=True).double().eval()
    tokens = torch.randn(2, 9, 16, dtype=torch.double, requires_grad=True)
    weights = list(block.attn.parameters())
    with MathAttention() as math:
        math.start()
        got = second_order(block, tokens, weights)
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, **_: by_hand(q, k, v))
    expected = second_order(block, tokens, weights)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10 * theirs.abs().max().item())


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("need_weights", [True, False])
def test_multihead_attention_equals_finite_differences(mode: bool, need_weights: bool) -> None:
    attention = nn.MultiheadAttention(4, 2, batch_first=True).double().train(mode)
    tokens = torch.randn(1, 3, 4, dtype=torch.double, requires_grad=True)
    with MathAttention() as math:
        math.start()
        assert torch.autograd.gradgradcheck(
            lambda x: attention(x, x, x, need_weights=need_weights)[0].tanh(), [tokens]
        )


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_the_fast_path_of_a_transformer_layer_is_not_taken(mode: bool) -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True).double().train(mode)
    tokens = torch.randn(1, 3, 4, dtype=torch.double, requires_grad=True)
    with MathAttention() as math:
        math.start()
        assert torch.autograd.gradgradcheck(lambda x: layer(x).tanh(), [tokens])


# The operators.


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
WORKS = {
    "hardswish": F.hardswish,
    "gelu": F.gelu,
    "convolution": KERNEL,
    "batch norm": nn.BatchNorm2d(3),
    "layer norm": nn.LayerNorm(8),
    "max pool": nn.MaxPool2d(2),
    "lstm": lambda x: nn.LSTM(8, 3)(x.flatten(1, 2))[0],
    "resize": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
    "own function": Twice.apply,
    "checkpoint": lambda x: checkpoint(KERNEL, x, use_reentrant=False),
}
FAILS = {
    "hardsigmoid": (F.hardsigmoid, "hardsigmoid"),
    "deform_conv2d": (
        lambda x: torchvision.ops.deform_conv2d(x, torch.zeros(2, 18, 6, 6), KERNEL.weight),
        "deform_conv2d",
    ),
    "roi_align": (lambda x: torchvision.ops.roi_align(x, BOXES, 3), "roi_align"),
    "roi_pool": (lambda x: torchvision.ops.roi_pool(x, BOXES, 3), "roi_pool"),
    "once_differentiable": (Once.apply, "Once"),
    "attention": (attention, "scaled_dot_product_attention (flash for cpu backend)"),
    "margin": (
        lambda x: F.multi_margin_loss(x.flatten(1), torch.tensor([0, 1]), reduction="none"),
        "multi_margin_loss",
    ),
}
# In torch 2.11 these have none, later they have.
DEPENDS = {
    "grid_sample": lambda x: F.grid_sample(x, torch.rand(2, 4, 4, 2), align_corners=False),
    "cdist": lambda x: torch.cdist(x.flatten(2), x.flatten(2) + 1),
}


def looked_for(operator, width: int = 8) -> tuple[str | None, str | None]:
    """What is found, and what a backward through the gradients really says."""
    activations = nn.Conv2d(3, 3, 1)(torch.randn(2, 3, width, width))
    scores = operator(activations.clone()).tanh().square().sum()
    (gradient,) = torch.autograd.grad(scores, activations, create_graph=True)
    found = unsupported_operator([gradient], scores, [activations])
    try:
        gradient.square().sum().backward()
    except RuntimeError as error:
        return found, str(error)
    return found, None


@pytest.mark.parametrize("name", WORKS)
def test_nothing_is_wrong_where_the_backward_works(name: str) -> None:
    assert looked_for(WORKS[name]) == (None, None)


@pytest.mark.parametrize("name", FAILS)
def test_the_operator_is_named_where_the_backward_raises(name: str) -> None:
    operator, expected = FAILS[name]
    found, error = looked_for(operator)
    assert found == expected
    assert error is not None


@pytest.mark.parametrize("name", DEPENDS)
def test_what_is_found_is_what_happens(name: str) -> None:
    found, error = looked_for(DEPENDS[name])
    assert (found is None) == (error is None)


@pytest.mark.filterwarnings("ignore")
def test_compiled_code_after_the_layer_is_named() -> None:
    torch._dynamo.reset()
    found, error = looked_for(torch.compile(lambda x: x.tanh() * x, backend="aot_eager"))
    assert found == "code of torch.compile"
    assert "double backward" in str(error)


def test_looking_changes_nothing() -> None:
    weight = nn.Parameter(torch.randn(3, 3, 3, 3))
    activations = torch.randn(2, 3, 8, 8, requires_grad=True)
    scores = torchvision.ops.deform_conv2d(activations, torch.zeros(2, 18, 6, 6), weight).square().sum()
    (gradient,) = torch.autograd.grad(scores, activations, create_graph=True)
    assert unsupported_operator([gradient], scores, [activations]) == "deform_conv2d"
    assert weight.grad is None
    assert activations.grad is None


def test_an_operator_before_the_layer_does_no_harm() -> None:
    trunk, head = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Hardsigmoid()), nn.Conv2d(4, 4, 3)
    activations = trunk(IMAGES)
    scores = head(activations).tanh().sum()
    (gradient,) = torch.autograd.grad(scores, activations, create_graph=True)
    assert unsupported_operator([gradient], scores, [activations]) is None


# The nearest later layer that works.


def first_that_works(model: nn.Module, names: list[str], images: Tensor = IMAGES) -> str | None:
    """The slow twin: each layer's own second-order gradient, in the order in which they run."""
    for name in names:
        saved: list[Tensor] = []
        handle = model.get_submodule(name).register_forward_hook(lambda *args, to=saved: to.append(args[2]))
        scores = model(images)[:, 1].sum()
        handle.remove()
        (gradient,) = torch.autograd.grad(scores, saved[0], create_graph=True)
        try:
            torch.autograd.grad(gradient.square().sum(), list(model.parameters()), allow_unused=True)
        except RuntimeError:
            continue
        return name
    return None


def complaint(model: nn.Module, layer: str, operator: str = "one", images: Tensor = IMAGES) -> str:
    module = model.get_submodule(layer)
    return str(second_order_error(operator, model, module, [images], [], lambda output: output[:, 1]))


def sequence(*modules: nn.Module) -> nn.Sequential:
    return strong_heads(nn.Sequential(*modules, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)))


def test_the_nearest_later_layer_of_a_plain_network() -> None:
    model = sequence(
        nn.Conv2d(3, 4, 3),
        nn.Hardsigmoid(),
        nn.Conv2d(4, 4, 3),
        nn.Hardsigmoid(),
        nn.Tanh(),
        nn.Conv2d(4, 4, 3),
    )
    text = complaint(model, "0", "hardsigmoid")
    assert text.startswith("0: expected operators with a second derivative")
    assert "got hardsigmoid" in text
    assert "choose '3', the nearest later layer that works" in text
    assert first_that_works(model, ["0", "1", "2", "3", "4", "5"]) == "3"


def test_the_nearest_later_layer_of_mobilenet() -> None:
    model = torchvision.models.mobilenet_v3_small(num_classes=3).eval()
    stages = [f"features.{position}" for position in range(4, 13)]
    images = torch.randn(2, 3, 64, 64)
    expected = first_that_works(model, stages, images)
    assert expected == "features.11"  # the last block with a squeeze-and-excitation
    assert f"choose '{expected}'" in complaint(model, "features.4", images=images)


def test_the_inside_of_a_residual_block_is_no_choice() -> None:
    """What follows the block works from its inside, too, but its maps would miss the path around it."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.second(self.first(F.hardsigmoid(x)).tanh())

    model = sequence(nn.Conv2d(3, 4, 3), Block())
    assert "choose '1'" in complaint(model, "0")


def test_where_no_later_layer_works() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 196, 3), nn.Hardsigmoid()
    )
    assert "no later layer with places works" in complaint(model, "0")


def test_attention_is_not_what_is_wrong() -> None:
    """It is switched to the math backend, so every block after the first is a choice."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, num_classes=3).eval()
    images = torch.randn(2, 3, 64, 64)
    text = str(second_order_error("one", model, model.blocks[0], [images], [], lambda output: output[:, 1]))
    assert "choose 'blocks.1'" in text


def test_the_error_leaves_everything_as_it_was() -> None:
    model = SmallCnn(norm=True, dropout=0.5).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    second_order_error("one", model, model.layer, [IMAGES], [], lambda output: output[:, 1])
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_training_step_is_told_whom_to_ask() -> None:
    assert "got hardsigmoid, which has none; batchcam_captum.check(model, layer, images)" in str(
        training_error("hardsigmoid", "layer3")
    )
