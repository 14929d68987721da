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

from batchcam_captum.attribution.second_order import second_order_problem
from batchcam_captum.functional import math_attention
from batchcam_captum.functional.math_attention import MathAttention

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
    assert second_order_problem([gradient], [tokens]) is None
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
    activations = trunk(IMAGES)
    (gradient,) = torch.autograd.grad(head(activations).tanh().sum(), activations, create_graph=True)
    assert second_order_problem([gradient], [activations]) is None
