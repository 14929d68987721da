"""Attention in checkpointed blocks runs again on the backend of the forward; afterwards the process has its own back."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.backends.cuda import flash_sdp_enabled
from torch.nn.modules.module import _global_forward_pre_hooks
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from batchcam_captum import BatchGradCam, CamRegularizer, PrototypeLoss
from tests.models import strong_heads
from tests.training.models import K, objective, prototypes


def batch():
    return torch.rand(6, 1, 8, 8, dtype=torch.double), torch.arange(6) % K


class Attention(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, 3 * width)
        self.backends: list[bool] = []

    def forward(self, x):
        self.backends.append(flash_sdp_enabled())
        q, k, v = self.project(self.norm(x)).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        return x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Tokens(nn.Module):
    """Attention before the layer, in the block of the layer before and after it, and behind it."""

    def __init__(self, *, checkpointing: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3)
        self.first = Attention()
        self.block = nn.Sequential(Attention(), nn.Tanh(), Attention())
        self.last = Attention()
        self.head = strong_heads(nn.Linear(8, K))
        self.checkpointing = checkpointing

    @property
    def layer(self):
        return self.block[1]

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        for part in (self.first, self.block, self.last):
            x = checkpoint(part, x, use_reentrant=False) if self.checkpointing else part(x)
        return self.head(x.mean(1))


def test_attention_runs_again_on_the_backend_of_the_forward():
    model = Tokens(checkpointing=True).double()
    twin = copy.deepcopy(model)
    twin.checkpointing = False
    images, labels = batch()
    maps = prototypes()
    gradients = []
    for each in (model, twin):
        grad_cam = BatchGradCam(each, each.layer, reshape=lambda t: t.transpose(1, 2).unflatten(2, (6, 6)))
        regularizer = CamRegularizer(grad_cam, PrototypeLoss(maps))
        for _ in range(2):  # what was learnt of the first forward serves the second
            each.zero_grad()
            objective(regularizer, each, images, labels).backward()
            assert flash_sdp_enabled()
        gradients.append([parameter.grad for parameter in each.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    # Twice the forward, the cam's gradient if the block is needed for it, backward(); once the try of a second derivative.
    assert model.first.backends == [True, True] * 2
    assert model.block[0].backends == [True] * 7
    assert model.block[2].backends == [False] * 7
    assert model.last.backends == [False] * 7
    assert twin.block[2].backends == [False] * 2


class Skips(Tokens):
    """Blocks in :attr:`skipped` do not run in this forward, as with stochastic depth."""

    def __init__(self, *, checkpointing: bool) -> None:
        super().__init__(checkpointing=checkpointing)
        self.skipped: set[str] = set()

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        block = self.block[1:] if "first of the block" in self.skipped else self.block
        for name, part in (("first", self.first), ("block", block), ("last", self.last)):
            if name not in self.skipped:
                x = checkpoint(part, x, use_reentrant=False) if self.checkpointing else part(x)
        return self.head(x.mean(1))


def tokens_regularizer(model):
    grad_cam = BatchGradCam(model, model.layer, reshape=lambda t: t.transpose(1, 2).unflatten(2, (6, 6)))
    return CamRegularizer(grad_cam, PrototypeLoss(prototypes()))


def nothing_is_left():
    return flash_sdp_enabled() and not _global_forward_pre_hooks


def fail(_):
    raise ValueError("out of memory")


@pytest.mark.parametrize("where", ["first.project", "block.0.project", "last.project"])
def test_a_backward_that_raises_leaves_nothing_behind(where):
    model = Tokens(checkpointing=True).double()
    images, labels = batch()
    regularizer = tokens_regularizer(model)
    total = objective(regularizer, model, images, labels)
    handle = model.get_submodule(where).weight.register_hook(fail)
    with pytest.raises(ValueError, match="out of memory"):
        total.backward()
    assert nothing_is_left()
    handle.remove()
    objective(regularizer, model, images, labels).backward()
    assert nothing_is_left()


def test_a_recomputation_that_raises_leaves_nothing_behind():
    model = Tokens(checkpointing=True).double()
    images, labels = batch()
    total = objective(tokens_regularizer(model), model, images, labels)
    left = []

    def fail_again(*_):
        left.append(flash_sdp_enabled())
        raise ValueError("out of memory")

    model.last.project.register_forward_pre_hook(fail_again)
    with pytest.raises(ValueError, match="out of memory"):
        total.backward()
    assert left == [False]  # it was in the middle of something
    assert nothing_is_left()


@pytest.mark.parametrize(
    "first",
    [["first", "last"], ["first of the block"]],
    ids=" and ".join,
)
def test_blocks_may_be_skipped(first):
    model = Skips(checkpointing=True).double()
    twin = copy.deepcopy(model)
    twin.checkpointing = False
    images, labels = batch()
    maps = prototypes()
    gradients = []
    for each in (model, twin):
        grad_cam = BatchGradCam(each, each.layer, reshape=lambda t: t.transpose(1, 2).unflatten(2, (6, 6)))
        regularizer = CamRegularizer(grad_cam, PrototypeLoss(maps))
        for skipped in (first, [], first):
            each.skipped = set(skipped)
            objective(regularizer, each, images, labels).backward()
            assert nothing_is_left()
        gradients.append([parameter.grad for parameter in each.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", ["two forwards", "an evaluation between"])
def test_another_forward_before_the_backward(kind):
    model = Tokens(checkpointing=True).double()
    twin = copy.deepcopy(model)
    twin.checkpointing = False
    images, labels = batch()
    maps = prototypes()
    gradients = []
    for each in (model, twin):
        grad_cam = BatchGradCam(each, each.layer, reshape=lambda t: t.transpose(1, 2).unflatten(2, (6, 6)))
        regularizer = CamRegularizer(grad_cam, PrototypeLoss(maps))
        total = objective(regularizer, each, images, labels)
        if kind == "two forwards":
            total = total + objective(regularizer, each, images.flip(0), labels)
        else:
            regularizer.evaluate(images, labels)
        total.backward()
        assert nothing_is_left()
        gradients.append([parameter.grad for parameter in each.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
