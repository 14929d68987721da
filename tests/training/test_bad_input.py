"""What goes wrong in a training loop is named, with the remedy; nothing is skipped silently, and the next step works."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from batchcam_captum import (
    BatchCamLoss,
    BatchGradCam,
    CamRegularizer,
    ClassPrototypes,
    ImageLoss,
    PrototypeLoss,
)
from batchcam_captum.attribution import Split
from batchcam_captum.training import AutoWeight, LinearWarmup
from batchcam_captum.training import objective as objective_module
from tests.training.models import K, Net, hooks_of

IMAGES, LABELS = torch.rand(8, 1, 8, 8), torch.arange(8) % K
MAPS = torch.rand(K, 1, 8, 8)


def unseen():
    prototypes = ClassPrototypes(K)
    prototypes.update(MAPS[:2], torch.arange(2))
    return BatchCamLoss(prototypes)


class Broken(Net):
    """Puts something into one score while it is told to."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0)
        self.value = 0.0

    def forward(self, images):
        scores = super().forward(images)
        return scores + F.pad(torch.full((1, 1), self.value), (0, K - 1, 0, len(scores) - 1))


class Loop:
    """A training loop with either regularizer."""

    def __init__(self, kind, losses=None, **options) -> None:
        torch.manual_seed(0)
        self.model = Broken()
        losses = PrototypeLoss(MAPS) if losses is None else losses
        if kind == "split":

            def head(maps):
                scores = self.model.head(maps)
                return scores + F.pad(torch.full((1, 1), self.model.value), (0, K - 1, 0, len(maps) - 1))

            trunk = nn.Sequential(self.model.trunk, self.model.layer)
            self.regularizer = CamRegularizer(Split(trunk, head), losses, **options)
        else:
            self.regularizer = CamRegularizer(BatchGradCam(self.model, "layer"), losses, **options)

    def step(self, images=IMAGES, labels=LABELS, **options):
        if isinstance(self.regularizer.grad_cam, Split):
            scores, cam_loss = self.regularizer.run(images, labels, **options)
        else:
            with self.regularizer:
                scores = self.model(images)
            cam_loss = self.regularizer(scores, labels, images=images, **options)
        self.model.zero_grad()
        (scores.logsumexp(1).mean() + cam_loss).backward()
        return cam_loss.detach()

    def refuses(self, kind, text, *args, **options):
        with pytest.raises(kind, match=text):
            self.step(*args, **options)
        assert hooks_of(self.model) == 0


BOTH = pytest.mark.parametrize("kind", ["hooks", "split"])


@BOTH
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_score_that_is_not_finite(kind, value):
    loop = Loop(kind)
    before = loop.step()
    loop.model.value = value
    loop.refuses(ValueError, "scores: expected finite scores, got NaN or infinity; lower the learning rate")
    loop.model.value = 0.0
    assert_close(loop.step(), before)


@BOTH
def test_nan_images(kind):
    loop = Loop(kind)
    loop.refuses(ValueError, "expected finite scores", IMAGES * torch.nan)


BAD_LABELS = {
    "one-hot": (lambda: F.one_hot(LABELS, K), ValueError, r"labels: expected shape \(8,\), got \(8, 3\); pass class indices"),
    "short": (lambda: LABELS[:5], ValueError, r"labels: expected shape \(8,\), got \(5,\); pass one class index a sample"),
    "scalar": (lambda: LABELS[0], ValueError, r"labels: expected shape \(8,\), got \(\)"),
    "range": (lambda: LABELS + 1, ValueError, r"labels: expected class indices from 0 to 2, or -100 .*found \[3\]"),
    "negative": (lambda: LABELS - 1, ValueError, r"labels: expected class indices from 0 to 2, or -100 .*found \[-1\]"),
    "soft K": (lambda: torch.rand(8, K + 1), ValueError, r"soft labels \(8, 3\), got floating \(8, 4\)"),
    "soft negative": (lambda: -torch.rand(8, K), ValueError, "labels: expected soft labels of at least 0, got others"),
    "soft nan": (lambda: torch.full((8, K), torch.nan), ValueError, "labels: expected soft labels of at least 0"),
    "bool": (lambda: LABELS > 0, TypeError, "labels: expected integers or floating soft labels, got torch.bool"),
    "list": (lambda: LABELS.tolist(), TypeError, r"labels: expected a tensor, got list; pass torch.as_tensor\(labels\)"),
    "none": (lambda: None, TypeError, "labels: expected a tensor, got NoneType"),
    "device": (
        lambda: LABELS.to("meta"), ValueError,
        r"labels: expected a tensor on cpu, where the scores are, got one on meta; pass labels.to\(scores.device\)",
    ),
}  # fmt: skip


@BOTH
@pytest.mark.parametrize(("labels", "error", "text"), BAD_LABELS.values(), ids=BAD_LABELS)
def test_labels(kind, labels, error, text):
    loop = Loop(kind)
    before = loop.step()
    loop.refuses(error, text, IMAGES, labels())
    assert_close(loop.step(), before)


@BOTH
@pytest.mark.parametrize(
    ("weights", "error", "text"),
    [
        (torch.ones(7), ValueError, r"sample_weights: expected shape \(8,\), got \(7,\)"),
        (-torch.ones(8), ValueError, "sample_weights: expected finite numbers of at least 0, got others"),
        (
            torch.ones(8, device="meta"),
            ValueError,
            r"sample_weights: expected a tensor on cpu, .* got one on meta",
        ),
        ([1.0] * 8, TypeError, "sample_weights: expected a tensor, got list"),
    ],
)
def test_sample_weights(kind, weights, error, text):
    loop = Loop(kind)
    loop.refuses(error, text, sample_weights=weights)
    assert loop.step() > 0


LOSSES = {
    "class without a prototype": (unseen, ValueError, r"class that was never seen; .*classes without a prototype: \[2\]"),
    "no prototypes": (
        lambda: PrototypeLoss(ClassPrototypes(K)), RuntimeError, r"expected prototypes of some images, got none; call upd"
    ),
    "other classes": (
        lambda: PrototypeLoss(torch.rand(7, 1, 8, 8)), ValueError, "prototypes of 3 classes, .*got 7; make them with"
    ),
    "one dimension": (lambda: PrototypeLoss(torch.rand(K, 1, 8)), ValueError, r"\(6, 6\).*got|expected .*spatial"),
    "no reduction": (
        lambda: PrototypeLoss(MAPS, reduction="none"), ValueError, r"a scalar of 'prototype', got \(8,\); use reduction='mean'"
    ),
}  # fmt: skip


@BOTH
@pytest.mark.parametrize(("loss", "error", "text"), LOSSES.values(), ids=LOSSES)
def test_losses_that_do_not_fit(kind, loss, error, text):
    loop = Loop(kind, loss())
    loop.refuses(error, text)


@BOTH
def test_a_loss_that_raises_leaves_the_loop_working(kind):
    class Sometimes(PrototypeLoss):
        raises = False

        def compute(self, *args, **named):
            if self.raises:
                raise ArithmeticError("in the loss")
            return super().compute(*args, **named)

    loss = Sometimes(MAPS)
    loop = Loop(kind, [ImageLoss(), loss])
    before, statistics = loop.step(), copy.deepcopy(dict(loop.model.named_buffers()))
    loss.raises = True
    loop.refuses(ArithmeticError, "in the loss")
    loss.raises = False
    assert_close(loop.step(), before)
    assert statistics.keys() == dict(loop.model.named_buffers()).keys()


@BOTH
def test_all_maps_dead_warns_once(kind):
    loss = PrototypeLoss(MAPS)
    loss.score = lambda scores, labels: scores.sum(1) * 0
    loop = Loop(kind, loss)
    with pytest.warns(UserWarning, match=r"all maps are dead.*revive=True .*; otherwise lower the weight"):
        loop.step()
    loop.step()
    assert loop.regularizer.values["dead_fraction"] == 1


@BOTH
def test_a_forgotten_step_is_named_once(kind, monkeypatch):
    monkeypatch.setattr(objective_module, "_CALLS_WITHOUT_STEP", 3)
    loop = Loop(kind, weight=LinearWarmup(1.0, steps=10, start=0.5))
    for _ in range(3):
        loop.step()
    with pytest.warns(
        UserWarning,
        match=r"expected step\(\) after each step of the optimizer.*call regularizer.step\(\) besi",
    ):
        loop.step()
    loop.step()
    constant = Loop(kind, weight=1.0)
    for _ in range(5):
        constant.step()


@BOTH
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_step_without_a_graph(kind, context):
    loop = Loop(kind)
    with context():
        loop.refuses(RuntimeError, r"torch.no_grad\(\)|under torch.inference_mode\(\)")
    assert loop.step() > 0


def test_images_under_inference_mode():
    loop = Loop("hooks")
    with torch.inference_mode():
        images = IMAGES.clone()
    with pytest.raises(RuntimeError, match="Inference tensors"):  # the model's own convolution
        loop.step(images)
    assert loop.step() > 0


def test_the_layer_of_a_copy_is_no_layer_of_the_model():
    model = Net()
    regularizer = CamRegularizer(BatchGradCam(model, copy.deepcopy(model).layer), PrototypeLoss(MAPS))
    with regularizer:
        scores = model(IMAGES)
    with pytest.raises(RuntimeError, match="got none"):
        regularizer(scores, LABELS)


def test_auto_weights_say_what_they_need():
    loop = Loop("hooks", weight=AutoWeight())
    loop.refuses(
        ValueError,
        r"task_loss: expected the task's loss.*got none; call regularizer\(scores, labels, task_loss=",
    )
    loop.refuses(
        ValueError, r"task_loss: expected a scalar tensor with a graph, got \(8,\)", task_loss=torch.ones(8)
    )
    loop.refuses(
        ValueError,
        "task_loss: .* with a graph, got one without; pass the loss itself",
        task_loss=torch.tensor(1.0),
    )
    with loop.regularizer:
        scores = loop.model(IMAGES)
    other = F.cross_entropy(loop.model(IMAGES), LABELS)
    with pytest.raises(RuntimeError, match="of another forward"):
        loop.regularizer(scores, LABELS, task_loss=other)
    with loop.regularizer:
        scores = loop.model(IMAGES)
    assert loop.regularizer(scores, LABELS, task_loss=F.cross_entropy(scores, LABELS)) > 0


def test_a_block_that_raises_keeps_no_capture():
    loop = Loop("hooks")
    seen = []

    def block():
        with loop.regularizer:
            seen.append(loop.model(IMAGES))
            raise ArithmeticError("in the block")

    with pytest.raises(ArithmeticError):
        block()
    with pytest.raises(RuntimeError, match="expected a captured forward, got none"):
        loop.regularizer(seen[0], LABELS)
    assert hooks_of(loop.model) == 0
    assert loop.step() > 0


def test_two_forwards_the_second_without_the_layer_still_count_as_one():
    loop = Loop("hooks")
    with loop.regularizer:
        scores = loop.model(IMAGES)
        loop.model.head(torch.rand(2, 4, 6, 6))
    assert loop.regularizer(scores, LABELS) > 0
