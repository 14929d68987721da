"""What goes wrong in a training loop is named, lets go of the capture, and leaves the next step working."""

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
from tests.training.models import K, Net, captured, hooks_of, regularizer_of

IMAGES, LABELS = torch.rand(8, 1, 8, 8), torch.arange(8) % K
MAPS = torch.rand(K, 1, 8, 8)


class Broken(Net):
    """Adds a value to one score while it is told to."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0)
        self.value = 0.0

    def broken(self, scores):
        return scores + F.pad(torch.full((1, 1), self.value), (0, K - 1, 0, len(scores) - 1))

    def forward(self, images):
        return self.broken(super().forward(images))


class Loop:
    """A training loop over hooks, or over trunk and head."""

    def __init__(self, kind, losses=None, **options) -> None:
        torch.manual_seed(0)
        self.model = model = Broken()
        losses = PrototypeLoss(MAPS) if losses is None else losses
        source = BatchGradCam(model, "layer")
        if kind == "split":
            trunk = nn.Sequential(model.trunk, model.layer)
            source = Split(trunk, lambda maps: model.broken(model.head(maps)))
        self.regularizer = CamRegularizer(source, losses, **options)

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
    loop.refuses(ValueError, "scores: expected finite")
    loop.model.value = 0.0
    assert_close(loop.step(), before)


BAD_LABELS = {
    "one-hot": (lambda: F.one_hot(LABELS, K), ValueError, "labels: .*one-hot"),
    "short": (lambda: LABELS[:5], ValueError, r"labels: expected shape \(8,\), got \(5,\)"),
    "long": (lambda: LABELS.repeat(2), ValueError, r"labels: expected shape \(8,\), got \(16,\)"),
    "scalar": (lambda: LABELS[0], ValueError, "labels: expected shape"),
    "range": (lambda: LABELS + 1, ValueError, r"labels: .*found \[3\]"),
    "negative": (lambda: LABELS - 1, ValueError, r"labels: .*found \[-1\]"),
    "soft K": (lambda: torch.rand(8, K + 1), ValueError, r"labels: .*\(8, 3\)"),
    "soft negative": (lambda: -torch.rand(8, K), ValueError, "labels: expected soft labels"),
    "soft nan": (lambda: torch.full((8, K), torch.nan), ValueError, "labels: expected soft labels"),
    "bool": (lambda: LABELS > 0, TypeError, "labels: .*torch.bool"),
    "list": (lambda: LABELS.tolist(), TypeError, "labels: expected a tensor, got list"),
    "device": (lambda: LABELS.to("meta"), ValueError, "labels: expected a tensor on cpu"),
}


@BOTH
@pytest.mark.parametrize(("labels", "error", "text"), BAD_LABELS.values(), ids=BAD_LABELS)
def test_labels(kind, labels, error, text):
    loop = Loop(kind)
    before = loop.step()
    loop.refuses(error, text, IMAGES, labels())
    assert_close(loop.step(), before)


@BOTH
@pytest.mark.parametrize(
    ("weights", "error"),
    [
        (torch.ones(7), ValueError),
        (-torch.ones(8), ValueError),
        (torch.ones(8, device="meta"), ValueError),
        ([1.0] * 8, TypeError),
    ],
)
def test_sample_weights(kind, weights, error):
    loop = Loop(kind)
    loop.refuses(error, "sample_weights", sample_weights=weights)
    assert loop.step() > 0


def unseen():
    prototypes = ClassPrototypes(K)
    prototypes.update(MAPS[:2], torch.arange(2))
    return BatchCamLoss(prototypes)


LOSSES = {
    "class without a prototype": (unseen, ValueError, r"never seen; .*\[2\]"),
    "no prototypes": (lambda: PrototypeLoss(ClassPrototypes(K)), RuntimeError, "prototypes of some images"),
    "other classes": (lambda: PrototypeLoss(torch.rand(7, 1, 8, 8)), ValueError, "3 classes, .*got 7"),
    "one dimension": (lambda: PrototypeLoss(torch.rand(K, 1, 8)), ValueError, "spatial|got"),
    "no reduction": (lambda: PrototypeLoss(MAPS, reduction="none"), ValueError, "losses: .*'prototype'"),
}


@BOTH
@pytest.mark.parametrize(("loss", "error", "text"), LOSSES.values(), ids=LOSSES)
def test_losses_that_do_not_fit(kind, loss, error, text):
    Loop(kind, loss()).refuses(error, text)


@BOTH
def test_a_loss_that_raises_leaves_the_loop_working(kind):
    class Sometimes(PrototypeLoss):
        raises = False

        def evaluate(self, *args, **named):
            if self.raises:
                raise ArithmeticError("in the loss")
            return super().evaluate(*args, **named)

    loss = Sometimes(MAPS)
    loop = Loop(kind, [ImageLoss(), loss])
    before = loop.step()
    loss.raises = True
    loop.refuses(ArithmeticError, "in the loss")
    loss.raises = False
    assert_close(loop.step(), before)


@BOTH
def test_all_maps_dead_warns_once(kind):
    loss = PrototypeLoss(MAPS)
    loss.score = lambda scores, labels: scores.sum(1) * 0
    loop = Loop(kind, loss)
    with pytest.warns(UserWarning, match="all maps are dead"):
        loop.step()
    loop.step()
    assert loop.regularizer.values["dead_fraction"] == 1


@BOTH
def test_a_forgotten_step_is_named_once(kind, monkeypatch):
    monkeypatch.setattr(objective_module, "_CALLS_WITHOUT_STEP", 3)
    loop = Loop(kind, weight=LinearWarmup(1.0, steps=10, start=0.5))
    for _ in range(3):
        loop.step()
    with pytest.warns(UserWarning, match=r"step\(\)"):
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
        loop.refuses(RuntimeError, "no_grad|inference_mode")
    assert loop.step() > 0


def forgotten_with(regularizer, model):
    regularizer(model(IMAGES), LABELS)


def consumed(regularizer, model):
    scores = captured(regularizer, IMAGES)
    regularizer(scores, LABELS)
    regularizer(scores, LABELS)


def not_reached(regularizer, model):
    with regularizer:
        scores = Net()(IMAGES)
    regularizer(scores, LABELS)


def nested(regularizer, model):
    with regularizer, regularizer:
        pass


def second_forward(regularizer, model):
    with regularizer:
        model(IMAGES)
        model(IMAGES)


def block_raises(regularizer, model):
    with regularizer:
        model(IMAGES)
        raise RuntimeError("in the block")


def other_forward(regularizer, model):
    captured(regularizer, IMAGES)
    regularizer(model(IMAGES), LABELS)


def freed(regularizer, model):
    scores = captured(regularizer, IMAGES)
    F.cross_entropy(scores, LABELS).backward()
    regularizer(scores, LABELS)


def detached(regularizer, model):
    regularizer(captured(regularizer, IMAGES).detach(), LABELS)


def fewer_scores(regularizer, model):
    regularizer(captured(regularizer, IMAGES)[:4], LABELS[:4])


def no_tensor(regularizer, model):
    regularizer([captured(regularizer, IMAGES)], LABELS)


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (forgotten_with, RuntimeError, "got none; run the model inside"),
        (consumed, RuntimeError, "call the regularizer once"),
        (not_reached, RuntimeError, "Tanh: .*got none"),
        (nested, RuntimeError, "nested"),
        (second_forward, RuntimeError, "got a second one"),
        (block_raises, RuntimeError, "in the block"),
        (other_forward, RuntimeError, "scores of another forward"),
        (freed, RuntimeError, r"call backward\(\) once"),
        (detached, RuntimeError, "scores: .*without one"),
        (fewer_scores, ValueError, r"scores of the 8 captured samples, got shape \(4, 3\)"),
        (no_tensor, TypeError, "scores: expected a tensor"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_misuse_of_the_block_names_the_remedy_and_lets_go_of_the_capture(call, kind, text):
    model = Net()
    regularizer = regularizer_of(model)
    with pytest.raises(kind, match=text):
        call(regularizer, model)
    assert hooks_of(model) == 0
    with pytest.raises(RuntimeError, match="expected a captured forward, got none"):
        regularizer(torch.rand(8, K), LABELS)
    assert regularizer(captured(regularizer, IMAGES), LABELS).isfinite()


def test_the_layer_of_a_copy_is_no_layer_of_the_model():
    model = Net()
    regularizer = CamRegularizer(BatchGradCam(model, copy.deepcopy(model).layer), PrototypeLoss(MAPS))
    with pytest.raises(RuntimeError, match="not part of Net"):
        regularizer(captured(regularizer, IMAGES), LABELS)


@pytest.mark.parametrize("layer", [2, 3], ids=["1x1", "vector"])
def test_layers_without_a_map(layer):
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, K)
    )
    regularizer = CamRegularizer(BatchGradCam(model, model[layer]), BatchCamLoss(MAPS))
    with pytest.raises(ValueError, match=r"at least 4 pixels|no map"):
        regularizer(captured(regularizer, IMAGES), LABELS)


def test_auto_weights_say_what_they_need():
    loop = Loop("hooks", weight=AutoWeight())
    for task_loss in (None, torch.ones(8), torch.tensor(1.0)):
        loop.refuses(ValueError, "task_loss", task_loss=task_loss)
    scores = captured(loop.regularizer, IMAGES)
    other = F.cross_entropy(loop.model(IMAGES), LABELS)
    with pytest.raises(RuntimeError, match="of another forward"):
        loop.regularizer(scores, LABELS, task_loss=other)
    scores = captured(loop.regularizer, IMAGES)
    assert loop.regularizer(scores, LABELS, task_loss=F.cross_entropy(scores, LABELS)) > 0


def test_evaluate_refuses_bad_labels_and_leaves_no_hook():
    model = Net()
    regularizer = regularizer_of(model)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with pytest.raises(ValueError, match="labels"):
        regularizer.evaluate(IMAGES, F.one_hot(LABELS, K))
    assert hooks_of(model) == 0
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())


@pytest.mark.parametrize(
    ("losses", "kind", "text"),
    [
        (lambda loss: "batch_cam", TypeError, "losses"),
        (lambda loss: {}, ValueError, "losses"),
        (lambda loss: {"a": (nn.MSELoss(), 1.0)}, TypeError, "losses: .*'a'"),
        (lambda loss: {"a": (loss,)}, TypeError, "losses"),
        (lambda loss: {"keys": loss}, ValueError, "'keys'"),
        (lambda loss: {"a.b": loss}, ValueError, "'a.b'"),
        (lambda loss: {"dead_fraction": loss}, ValueError, "'dead_fraction'"),
        (lambda loss: [loss, (loss, 1.0)], ValueError, "'batch_cam'"),
        (lambda loss: {"a": (loss, "big")}, ValueError, "weight: .*'a'"),
        (lambda loss: {"a": (loss, None)}, TypeError, "weight: .*'a'"),
        (lambda loss: {"a": (loss, float("nan"))}, ValueError, "weight: .*'a'"),
        (lambda loss: setattr(loss, "method", "guesswork") or loss, ValueError, "method"),
    ],
)
def test_terms_are_checked_before_the_first_step(losses, kind, text):
    model = Net()
    with pytest.raises(kind, match=text):
        CamRegularizer(BatchGradCam(model, model.layer), losses(BatchCamLoss(MAPS)))
    with pytest.raises(TypeError, match="grad_cam"):
        CamRegularizer(model, BatchCamLoss(MAPS))


def test_check_raises_for_every_loss_and_reading_the_values_checks():
    loss = BatchCamLoss(MAPS)
    regularizer = regularizer_of(Net(), loss)
    for check in (regularizer.check, regularizer.read_values):
        check()
        loss.checks._failed["labels: wrong"] = torch.tensor(True)  # as a GPU would have noted it
        with pytest.raises(ValueError, match="labels: wrong"):
            check()
        check()


def test_validate_raises_in_the_call_and_leaves_the_loss_as_it_was():
    loss = BatchCamLoss(MAPS)
    regularizer = regularizer_of(Net(), loss, validate=True)
    assert not loss.checks.synchronize
    scores = captured(regularizer, IMAGES)
    loss.checks._failed["labels: wrong"] = torch.tensor(True)
    with pytest.raises(ValueError, match="labels: wrong"):
        regularizer(scores, LABELS)
