"""Activation checkpointing: the same gradients and statistics, and blocks that run again do as they did in the forward."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.backends.cuda import flash_sdp_enabled
from torch.nn.modules.module import _global_forward_pre_hooks
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from batchcam_captum import BatchCamLoss, BatchGradCam, CamRegularizer, PrototypeLoss
from tests.models import strong_heads
from tests.training.models import K, captured, hooks_of, objective, prototypes, regularizer_of

WHERE = ["before", "after", "around", "before and around", "around and after", "all"]
pytestmark = pytest.mark.filterwarnings("ignore:.*mixes the samples", "ignore:.*all maps are dead")


class Checkpointed(nn.Module):
    """BatchNorm and dropout on both sides of the layer; parts of it are checkpointed."""

    def __init__(self, where, *, reentrant=False):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.layer = nn.Tanh()
        self.mix = nn.Sequential(nn.Dropout(0.3), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Sequential(nn.Softplus(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, K))
        self.where, self.reentrant = where, reentrant
        self.double()

    def forward(self, x):
        parts = {
            None: [[self.stem], [self.norm], [self.layer], [self.mix], [self.head]],
            "before": [[self.stem, self.norm], None, [self.layer], [self.mix], [self.head]],
            "after": [[self.stem], [self.norm], [self.layer], [self.mix, self.head], None],
            "around": [[self.stem], [self.norm], [self.layer], None, [self.mix], [self.head]],
            "before and around": [[self.stem], [self.norm, self.layer], None, [self.mix], [self.head]],
            "around and after": [[self.stem], [self.norm], [self.layer, self.mix], None, [self.head]],
            "all": [[self.stem, self.norm, self.layer, self.mix, self.head], None],
        }[self.where]  # None: what stands before it is checkpointed
        for part, following in zip(parts, [*parts[1:], []], strict=True):
            if part is None:
                continue
            block = nn.Sequential(*part)
            x = checkpoint(block, x, use_reentrant=self.reentrant) if following is None else block(x)
        return x


def batch():
    return torch.rand(6, 1, 8, 8, dtype=torch.double), torch.arange(6) % K


def without(model):
    """Copy the model, without checkpointing."""
    twin = copy.deepcopy(model)
    twin.where = None
    return twin


def stepped(model, maps, images, labels, *, weight=1.0, inside=False):
    """Return the gradients of one step; ``inside``: backward() included, it is inside of the block."""
    regularizer = regularizer_of(model, BatchCamLoss(maps, distance="l2"), weight=weight)
    torch.manual_seed(4)
    with regularizer:
        scores = model(images)
        task = F.cross_entropy(scores, labels)
        if inside:
            (task + regularizer(scores, labels, task_loss=task)).backward()
    if not inside:
        (task + regularizer(scores, labels, task_loss=task)).backward()
    assert hooks_of(model) == 0
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return gradients | regularizer.read_weights()


@pytest.mark.parametrize("weight", [1.0, "auto"])
@pytest.mark.parametrize("where", WHERE)
def test_gradients_and_statistics_equal_those_without_checkpointing(where, weight):
    model, maps = Checkpointed(where), prototypes()
    twin, plain = without(model), copy.deepcopy(model)
    images, labels = batch()
    expected = stepped(twin, maps, images, labels, weight=weight)
    assert expected["head.3.weight"].abs().max() > 0
    for inside in (False, True):
        found = stepped(model, maps, images, labels, weight=weight, inside=inside)
        assert_close(found, expected, rtol=1e-12, atol=1e-14)
        # The statistics move as often as with checkpointing alone.
        torch.manual_seed(4)
        F.cross_entropy(plain(images), labels).backward()
    assert_close(dict(model.named_buffers()), dict(plain.named_buffers()), rtol=1e-12, atol=0)


@pytest.mark.parametrize("where", WHERE)
def test_reentrant_checkpointing_works_before_the_layer_only(where):
    model, maps, (images, labels) = Checkpointed(where, reentrant=True), prototypes(), batch()
    images.requires_grad_()  # reentrant checkpointing asks for it
    twin = without(model)
    if where != "before":
        with pytest.raises(RuntimeError, match="use_reentrant"):
            stepped(model, maps, images, labels)
        model.reentrant = False  # the next step works
        assert stepped(model, maps, images, labels)["stem.weight"].isfinite().all()
        return
    expected = stepped(twin, maps, images, labels)
    assert_close(stepped(model, maps, images, labels), expected, rtol=1e-12, atol=1e-14)
    # Other mistakes are not blamed on it.
    regularizer = regularizer_of(model)
    captured(regularizer, images)
    with pytest.raises(RuntimeError, match="another forward"):
        regularizer(model(images), labels)
    scores = captured(regularizer, images)
    F.cross_entropy(scores, labels).backward()
    with pytest.raises(RuntimeError, match=r"backward\(\)"):
        regularizer(scores, labels)


@pytest.mark.parametrize("where", WHERE)
def test_a_frozen_trunk_is_not_checkpointed_together_with_what_follows(where):
    model, maps, (images, labels) = Checkpointed(where), prototypes(), batch()
    for part in (model.stem, model.norm):
        part.requires_grad_(False)
    expected = stepped(without(model), maps, images, labels)
    if where in ("around and after", "all"):
        with pytest.raises(RuntimeError, match=r"^scores: .*frozen"):
            stepped(model, maps, images, labels)
        model.where = "after"
        model.norm.reset_running_stats()
    assert_close(stepped(model, maps, images, labels), expected, rtol=1e-12, atol=1e-14)


VIT = {"img_size": 64, "embed_dim": 12, "depth": 3, "num_heads": 2}


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", "layer3.1"),
        ("resnet18", "layer2.1.conv2"),
        ("vit_tiny_patch16_224", "blocks.1"),
        ("vit_tiny_patch16_224", "blocks.2.norm1"),
    ],
)
def test_timm_models_with_checkpointing(name, layer):
    vit = name.startswith("vit")
    model = timm.create_model(name, num_classes=K, **(VIT if vit else {}))
    model = strong_heads(model).double().train()
    twin = copy.deepcopy(model)
    model.set_grad_checkpointing()
    images, labels, maps = torch.randn(3, 3, 64, 64).double(), torch.tensor([0, 2, 1]), prototypes()
    gradients = []
    for each in (model, twin):
        grad_cam = BatchGradCam(each, layer, reshape="auto" if vit else None)
        torch.manual_seed(1)
        objective(CamRegularizer(grad_cam, PrototypeLoss(maps)), each, images, labels).backward()
        gradients.append([p.grad for p in each.parameters()])
    largest = max(float(gradient.abs().max()) for gradient in gradients[1] if gradient is not None)
    assert_close(*gradients, rtol=0, atol=1e-11 * largest)


def test_a_stage_whose_blocks_run_one_by_one_is_named():
    model = timm.create_model("resnet18", num_classes=K).train()
    model.set_grad_checkpointing()
    regularizer = CamRegularizer(BatchGradCam(model, "layer4"), PrototypeLoss(prototypes()))
    scores = captured(regularizer, torch.randn(2, 3, 128, 128))
    with pytest.raises(RuntimeError, match=r"^Sequential: .*last block"):
        regularizer(scores, torch.tensor([0, 1]))


# ---- attention in checkpointed blocks ----


class Attention(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, 3 * width)
        self.backends = []

    def forward(self, x):
        self.backends.append(flash_sdp_enabled())
        q, k, v = self.project(self.norm(x)).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        return x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Tokens(nn.Module):
    """Attention before the layer, in the block of the layer before and after it, and behind it; blocks may be skipped."""

    def __init__(self, *, checkpointing=True):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3)
        self.first = Attention()
        self.block = nn.Sequential(Attention(), nn.Tanh(), Attention())
        self.last = Attention()
        self.head = strong_heads(nn.Linear(8, K))
        self.checkpointing, self.skipped = checkpointing, ()
        self.double()

    @property
    def layer(self):
        return self.block[1]

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        block = self.block[1:] if "first of the block" in self.skipped else self.block
        for name, part in (("first", self.first), ("block", block), ("last", self.last)):
            if name not in self.skipped:
                x = checkpoint(part, x, use_reentrant=False) if self.checkpointing else part(x)
        return self.head(x.mean(1))


def tokens_regularizer(model, maps):
    grad_cam = BatchGradCam(model, model.layer, reshape=lambda t: t.transpose(1, 2).unflatten(2, (6, 6)))
    return CamRegularizer(grad_cam, PrototypeLoss(maps))


def assert_nothing_is_left():
    assert flash_sdp_enabled()
    assert not _global_forward_pre_hooks


def repeated(regularizer, model, images, labels):
    """Take two steps: what was learned of the first forward serves the second."""
    for _ in range(2):
        model.zero_grad()
        objective(regularizer, model, images, labels).backward()
        assert_nothing_is_left()


def two_forwards(regularizer, model, images, labels):
    total = objective(regularizer, model, images, labels)
    (total + objective(regularizer, model, images.flip(0), labels)).backward()


def an_evaluation_between(regularizer, model, images, labels):
    total = objective(regularizer, model, images, labels)
    regularizer.evaluate(images, labels)
    total.backward()


def skipping(*names):
    def steps(regularizer, model, images, labels):
        for skipped in (names, (), names):
            model.skipped = skipped
            objective(regularizer, model, images, labels).backward()
            assert_nothing_is_left()

    return steps


@pytest.mark.parametrize(
    "steps",
    [
        repeated,
        two_forwards,
        an_evaluation_between,
        skipping("first", "last"),
        skipping("first of the block"),
    ],
)
def test_attention_runs_again_on_the_backend_of_the_forward(steps):
    model = Tokens()
    twin = copy.deepcopy(model)
    twin.checkpointing = False
    images, labels = batch()
    maps, gradients = prototypes(), []
    for each in (model, twin):
        steps(tokens_regularizer(each, maps), each, images, labels)
        assert_nothing_is_left()
        gradients.append([parameter.grad for parameter in each.parameters()])
    assert_close(*gradients, rtol=1e-12, atol=1e-14)
    if steps is repeated:
        assert set(model.first.backends) == set(model.block[0].backends) == {True}
        assert set(model.block[2].backends) == set(model.last.backends) == {False}
        assert len(model.last.backends) > len(twin.last.backends) == 2


@pytest.mark.parametrize("where", ["first.project", "block.0.project", "last.project"])
def test_a_backward_that_raises_leaves_nothing_behind(where):
    def fail(*_):
        raise ValueError("out of memory")

    model, (images, labels) = Tokens(), batch()
    regularizer = tokens_regularizer(model, prototypes())
    for register in (
        "register_hook",
        "register_forward_pre_hook",
    ):  # in the gradient, or where the block runs again
        total = objective(regularizer, model, images, labels)
        module = model.get_submodule(where)
        handle = getattr(module.weight if register == "register_hook" else module, register)(fail)
        with pytest.raises(ValueError, match="out of memory"):
            total.backward()
        assert_nothing_is_left()
        handle.remove()
    objective(regularizer, model, images, labels).backward()
    assert_nothing_is_left()
