"""Activation checkpointing: the same gradients, the same statistics, and blocks that run again do as they did in the forward."""

from __future__ import annotations

import copy
import warnings

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from batchcam_captum import BatchCamLoss, BatchGradCam, CamRegularizer, PrototypeLoss
from batchcam_captum.training import AutoWeight
from tests.models import strong_heads
from tests.training.models import K, hooks_of, objective, prototypes, regularizer_of

WHERE = ["before", "after", "around", "before and around", "around and after", "all"]


class Checkpointed(nn.Module):
    """BatchNorm and dropout on both sides of the layer; parts of it are checkpointed."""

    def __init__(self, where: str | None, *, reentrant: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.layer = nn.Tanh()
        self.mix = nn.Sequential(nn.Dropout(0.3), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Sequential(nn.Softplus(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, K))
        self.where, self.reentrant = where, reentrant

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


@pytest.fixture(autouse=True)
def mixing_is_known():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*mixes the samples")
        yield


def stepped(model, maps, images, labels, *, weight=1.0, inside=False, distance="l2"):
    """The gradients of one step. ``inside``: the whole step, backward() included, is inside of the block."""
    regularizer = regularizer_of(model, BatchCamLoss(maps, distance=distance), weight=weight)
    torch.manual_seed(4)
    with regularizer:
        scores = model(images)
        task = F.cross_entropy(scores, labels)
        if inside:
            (task + regularizer(scores, labels, task_loss=task)).backward()
    if not inside:
        (task + regularizer(scores, labels, task_loss=task)).backward()
    assert hooks_of(model) == 0
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("inside", [False, True], ids=["after the block", "inside it"])
@pytest.mark.parametrize("weight", [1.0, "auto"])
@pytest.mark.parametrize("where", WHERE)
def test_gradients_equal_those_without_checkpointing(where, weight, inside):
    model, maps = Checkpointed(where).double(), prototypes()
    twin = copy.deepcopy(model)
    twin.where = None
    images, labels = batch()
    ours = stepped(model, maps, images, labels, weight=weight, inside=inside)
    theirs = stepped(twin, maps, images, labels, weight=weight)
    for name, gradient in theirs.items():
        assert_close(ours[name], gradient, rtol=1e-12, atol=1e-14, msg=name)
    assert theirs["head.3.weight"].abs().max() > 0


@pytest.mark.parametrize("where", WHERE)
def test_statistics_move_as_often_as_with_checkpointing_alone(where):
    model, maps = Checkpointed(where).double(), prototypes()
    plain = copy.deepcopy(model)
    images, labels = batch()
    for _ in range(2):
        stepped(model, maps, images, labels)
        torch.manual_seed(4)
        F.cross_entropy(plain(images), labels).backward()
    for (name, buffer), other in zip(model.named_buffers(), plain.buffers(), strict=True):
        assert_close(buffer, other, rtol=1e-12, atol=0, msg=name)


def test_recomputation_is_not_captured_as_another_run_of_the_layer():
    model = Checkpointed("all").double()
    images, labels = batch()
    regularizer = regularizer_of(model)
    runs = []
    model.layer.register_forward_hook(lambda *_: runs.append(1))
    objective(regularizer, model, images, labels).backward()
    # The forward, the gradient at the layer, the first step's try of a second derivative, and the backward.
    assert len(runs) == 4


@pytest.mark.parametrize("where", WHERE)
def test_reentrant_checkpointing_works_before_the_layer_only(where):
    model = Checkpointed(where, reentrant=True).double()
    images, labels = batch()
    images.requires_grad_()  # reentrant checkpointing asks for it
    twin = copy.deepcopy(model)
    twin.where = None
    maps = prototypes()
    if where == "before":
        ours, theirs = (stepped(each, maps, images, labels) for each in (model, twin))
        for name, gradient in theirs.items():
            assert_close(ours[name], gradient, rtol=1e-12, atol=1e-14, msg=name)
        return
    with pytest.raises(
        RuntimeError, match=r"got reentrant checkpointing after or around the layer; pass use_reentrant=F"
    ):
        stepped(model, maps, images, labels)
    model.reentrant = False  # the next step works
    assert stepped(model, maps, images, labels)["stem.weight"].isfinite().all()


def test_other_mistakes_are_not_blamed_on_reentrant_checkpointing_before_the_layer():
    model = Checkpointed("before", reentrant=True).double()
    images, labels = batch()
    images.requires_grad_()
    regularizer = regularizer_of(model)
    with regularizer:
        model(images)
    with pytest.raises(RuntimeError, match="got scores of another forward"):
        regularizer(model(images), labels)
    with regularizer:
        scores = model(images)
    F.cross_entropy(scores, labels).backward()
    with pytest.raises(RuntimeError, match=r"earlier backward\(\) has freed"):
        regularizer(scores, labels)


@pytest.mark.parametrize("where", WHERE)
def test_a_frozen_trunk_is_not_checkpointed_together_with_what_follows(where):
    model, maps = Checkpointed(where).double(), prototypes()
    for part in (model.stem, model.norm):
        part.requires_grad_(False)
    twin = copy.deepcopy(model)
    twin.where = None
    images, labels = batch()
    if where in ("around and after", "all"):
        with pytest.raises(
            RuntimeError, match="a frozen layer outside of checkpointed blocks, or at the end of one"
        ):
            stepped(model, maps, images, labels)
        model.where = "after"
    ours, theirs = (stepped(each, maps, images, labels) for each in (model, twin))
    for name, gradient in theirs.items():
        if gradient is not None:
            assert_close(ours[name], gradient, rtol=1e-12, atol=1e-14, msg=name)


@pytest.mark.filterwarnings("ignore:.*all maps are dead")  # as those of three samples may well be
@pytest.mark.parametrize(
    ("name", "options", "layer"),
    [
        ("resnet18", {}, "layer3.1"),
        ("resnet18", {}, "layer2.1.conv2"),
        ("vit_tiny_patch16_224", {"img_size": 64, "embed_dim": 12, "depth": 3, "num_heads": 2}, "blocks.1"),
        ("vit_tiny_patch16_224", {"img_size": 64, "embed_dim": 12, "depth": 3, "num_heads": 2}, "blocks.2.norm1"),
    ],
)  # fmt: skip
def test_timm_models_with_checkpointing(name, options, layer):
    model = strong_heads(timm.create_model(name, num_classes=K, **options)).double().train()
    twin = copy.deepcopy(model)
    model.set_grad_checkpointing()
    images, labels = torch.randn(3, 3, 64, 64, dtype=torch.double), torch.tensor([0, 2, 1])
    maps = prototypes()
    gradients = []
    for each in (model, twin):
        reshape = "auto" if name.startswith("vit") else None
        regularizer = CamRegularizer(BatchGradCam(each, layer, reshape=reshape), PrototypeLoss(maps))
        torch.manual_seed(1)
        objective(regularizer, each, images, labels).backward()
        gradients.append([parameter.grad for parameter in each.parameters()])
    largest = max(float(gradient.abs().max()) for gradient in gradients[1] if gradient is not None)
    for ours, theirs in zip(*gradients, strict=True):
        assert_close(ours, theirs, rtol=0, atol=1e-11 * largest)


def test_a_stage_whose_blocks_run_one_by_one_is_named():
    model = timm.create_model("resnet18", num_classes=K).train()
    model.set_grad_checkpointing()
    regularizer = CamRegularizer(BatchGradCam(model, "layer4"), PrototypeLoss(prototypes()))
    with regularizer:
        scores = model(torch.randn(2, 3, 128, 128))
    with pytest.raises(RuntimeError, match="may run the blocks of a Sequential one by one: choose its last"):
        regularizer(scores, torch.tensor([0, 1]))


def test_the_auto_weight_takes_no_note_of_checkpointing():
    images, labels = batch()
    weights = []
    maps = prototypes()
    model = Checkpointed("around and after").double()
    for where in ("around and after", None):
        each = copy.deepcopy(model)
        each.where = where
        regularizer = regularizer_of(each, BatchCamLoss(maps), weight=AutoWeight(every=1))
        torch.manual_seed(4)
        with regularizer:
            scores = each(images)
        task = F.cross_entropy(scores, labels)
        regularizer(scores, labels, task_loss=task)
        weights.append(regularizer.read_weights()["batch_cam"])
    assert weights[0] == weights[1] > 0
