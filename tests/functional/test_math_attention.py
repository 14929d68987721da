"""Attention with a second derivative: the switch to the math backend, and derivatives against softmaxes written out."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from batchcam_captum.functional import math_attention
from batchcam_captum.functional.math_attention import MathAttention

ALL_ON = [True] * 5
MATH_ONLY = [True, False, False, False, False]


@pytest.fixture(autouse=True)
def flags_stay() -> Iterator[None]:
    assert math_attention._flags() == ALL_ON
    yield
    assert math_attention._flags() == ALL_ON
    assert math_attention._users == 0


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
