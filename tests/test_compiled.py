"""A whole training step in one graph: ``torch.compile(fullgraph=True)`` gives what the same step gives without it."""

from __future__ import annotations

import logging
import warnings

import pytest
import timm
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from batchcam_captum import ClassPrototypes, PrototypeLoss
from batchcam_captum.attribution.split import split_model
from batchcam_captum.functional import batch_cam_loss, head_cams, prototype_loss
from tests.functional.test_head import assert_same_step, attending, batch, parts, repeated
from tests.models import strong_heads

PROTOTYPES = torch.rand(5, 1, 12, 12, generator=torch.Generator().manual_seed(3))


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    # The compiler's own log of thousands of lines, which pytest would collect.
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)
    torch._dynamo.reset()
    with warnings.catch_warnings():
        # Of torch's own modules, which differ between versions and say nothing of the code here.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
        yield
    torch._dynamo.reset()


def objective(model, loss, **options):
    """(images, labels) -> the training objective, through trunk and head."""

    def step(images, labels):
        cams, scores = head_cams(model.head, model.trunk(images), labels, **options)
        return cross_entropy(scores, labels) + loss(cams, labels)

    return step


def train(step, batches):
    losses = []
    for images, labels in batches:
        torch.manual_seed(4)  # the dropout mask
        loss = step(images, labels)
        loss.backward()
        losses.append(loss.detach())
    return losses


def assert_equal_training(make, batches, *, backend="aot_eager", tolerance=1e-11, dynamic=None):
    """Train a model with its compiled step, and its twin without; return how often it was compiled."""
    (model, step), (twin, plain) = make(), make()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(step, fullgraph=True, backend=counter, dynamic=dynamic)
    losses, expected = train(compiled, batches), train(plain, batches)
    for own, other in zip(losses, expected, strict=True):
        assert_close(own, other, rtol=tolerance, atol=0)
    assert_same_step(model, twin, tolerance=tolerance)
    return counter.frame_count


def test_step_with_batch_norm_and_dropout():
    # BatchNorm in train mode in trunk and head, dropout in the head: the statistics move at each of three steps. The losses are
    # terms of one step, with weights of their own, so that none can stand for another.
    terms = [
        (batch_cam_loss, "l1"),
        (batch_cam_loss, "ssim"),
        (prototype_loss, "l2"),
        (prototype_loss, "cosine"),
    ]

    def losses(cams, labels):
        return sum(
            weight * loss(cams, labels, PROTOTYPES, distance=distance)
            for weight, (loss, distance) in enumerate(terms, start=1)
        )

    def make():
        model = parts()
        return model, objective(model, losses)

    assert assert_equal_training(make, [batch(), batch(), batch()]) == 1


def test_prototypes_that_are_updated_count_at_the_next_step():
    images, labels = batch()
    prototypes = ClassPrototypes(5)
    prototypes.update(PROTOTYPES, torch.arange(5))
    step = objective(parts(norm=False, dropout=0.0), PrototypeLoss(prototypes))
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    before = compiled(images, labels).detach()
    prototypes.update(1 - PROTOTYPES.flip(0), torch.zeros(5, dtype=torch.long))
    after = compiled(images, labels).detach()
    assert_close(after, step(images, labels).detach(), rtol=1e-11, atol=0)
    assert abs(float(after - before)) > 1e-3


def test_last_batch_may_be_short():
    def make():
        model = parts(dropout=0.0)
        return model, objective(model, lambda cams, labels: batch_cam_loss(cams, labels, PROTOTYPES))

    # A convolution after the layer needs sizes as numbers: one graph for each size of a batch.
    batches = [batch(), batch(), batch(n=4), batch(), batch(n=4)]
    assert assert_equal_training(make, batches, backend="eager", dynamic=False) == 2


def test_head_without_convolutions_takes_any_number_of_samples():
    def make():
        model = parts(dropout=0.0)
        model.head = nn.Sequential(
            nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5)
        ).double()
        torch.manual_seed(0)
        nn.init.normal_(model.head[-1].weight)
        return model, objective(model, lambda cams, labels: prototype_loss(cams, labels, PROTOTYPES))

    batches = [batch(n=n) for n in (6, 5, 4, 3, 6, 2)]
    assert assert_equal_training(make, batches, backend="eager") == 2


@pytest.mark.parametrize("make_model", [attending, repeated])
def test_attention_and_batch_norm_that_runs_twice(make_model):
    def make():
        model = make_model()
        return model, objective(model, lambda cams, labels: batch_cam_loss(cams, labels, PROTOTYPES))

    before = torch.backends.cuda.flash_sdp_enabled()
    assert assert_equal_training(make, [batch(), batch()]) == 1
    assert before
    assert torch.backends.cuda.flash_sdp_enabled()


def test_function_as_head():
    def make():
        model = parts(norm=False, dropout=0.0)

        def step(images, labels):
            cams, scores = head_cams(lambda maps: model.head(maps + 1) * 2, model.trunk(images), labels)
            return cross_entropy(scores, labels) + batch_cam_loss(cams, labels, PROTOTYPES)

        return model, step

    assert assert_equal_training(make, [batch()]) == 1


def test_autocast_and_frozen_trunk():
    def make():
        model = parts(torch.float32, dropout=0.0)
        model.trunk.requires_grad_(False)
        inner = objective(model, lambda cams, labels: batch_cam_loss(cams, labels, PROTOTYPES))

        def step(images, labels):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return inner(images, labels)

        return model, step

    # As close as two ways of rounding to bfloat16 are.
    assert assert_equal_training(make, [batch(torch.float32)], tolerance=1e-2) == 1


@pytest.mark.parametrize("pool", [None, "token", "avg"])
def test_split_timm_model(pool):
    # The first has a BatchNorm in its head. Of the others the tokens are brought to maps; the class token's head has attention.
    def make():
        torch.manual_seed(0)
        if pool:
            name = "vit_tiny_patch16_224"
            options = {"img_size": 64, "embed_dim": 12, "depth": 2, "num_heads": 2, "global_pool": pool}
            model = strong_heads(timm.create_model(name, num_classes=5, **options))
        else:
            name = "repvit_m0_9"
            model = timm.create_model(name, num_classes=5, embed_dim=(8,), depth=(1,))
        model = model.double().train()
        trunk, head = split_model(model)

        def reshape(tokens):
            return tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 4)) if tokens.dim() == 3 else tokens

        def step(images, labels):
            cams, scores = head_cams(head, trunk(images), labels, reshape=reshape)
            if not torch.compiler.is_compiling():
                largest.append(float(cams.detach().abs().max()))
            return cross_entropy(scores, labels) + batch_cam_loss(cams, labels, PROTOTYPES)

        return model, step

    largest: list[float] = []
    torch.manual_seed(1)
    step = torch.randn(4, 3, 64, 64, dtype=torch.float64), torch.tensor([0, 3, 3, 1])
    assert assert_equal_training(make, [step, step]) == 1
    assert min(largest) > 1e-6
