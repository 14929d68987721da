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
from tests.training.models import K, Net, captured, hooks_of, regularizer_of

IMAGES, LABELS = torch.rand(8, 1, 8, 8), torch.arange(8) % K
MAPS = torch.rand(K, 1, 8, 8)


class Loop:
    """A training loop over hooks, or over trunk and head."""

    def __init__(self, kind, losses=None, **options) -> None:
        torch.manual_seed(0)
        self.model = model = Net(dropout=0.0).eval()
        losses = PrototypeLoss(MAPS) if losses is None else losses
        source = BatchGradCam(model, "layer")
        if kind == "split":
            source = Split(nn.Sequential(model.trunk, model.layer), model.head)
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


#: Batches that do not fit: what differs from a good one, the kind of error, and what it names.
BATCHES = {
    "one-hot": ({"labels": F.one_hot(LABELS, K)}, ValueError, "labels: .*one-hot"),
    "short": ({"labels": LABELS[:5]}, ValueError, r"labels: .*\(8,\), got \(5,\)"),
    "long": ({"labels": LABELS.repeat(2)}, ValueError, r"labels: .*\(8,\), got \(16,\)"),
    "scalar": ({"labels": LABELS[0]}, ValueError, "labels: "),
    "range": ({"labels": LABELS + 1}, ValueError, r"labels: .*\[3\]"),
    "negative": ({"labels": LABELS - 1}, ValueError, r"labels: .*\[-1\]"),
    "soft K": ({"labels": torch.rand(8, K + 1)}, ValueError, r"labels: .*\(8, 3\)"),
    "soft negative": ({"labels": -torch.rand(8, K)}, ValueError, "labels: "),
    "soft nan": ({"labels": torch.full((8, K), torch.nan)}, ValueError, "labels: "),
    "bool": ({"labels": LABELS > 0}, TypeError, "labels: .*torch.bool"),
    "list": ({"labels": LABELS.tolist()}, TypeError, "labels: .*list"),
    "device": ({"labels": LABELS.to("meta")}, ValueError, "labels: .*cpu"),
    "weights short": ({"sample_weights": torch.ones(7)}, ValueError, "sample_weights"),
    "weights negative": ({"sample_weights": -torch.ones(8)}, ValueError, "sample_weights"),
    "weights device": ({"sample_weights": torch.ones(8, device="meta")}, ValueError, "sample_weights"),
    "weights list": ({"sample_weights": [1.0] * 8}, TypeError, "sample_weights"),
    "nan": ({"images": IMAGES * torch.nan}, ValueError, "scores: "),
    "inf": ({"images": IMAGES + torch.inf}, ValueError, "scores: "),
}


@BOTH
@pytest.mark.parametrize(("batch", "error", "text"), BATCHES.values(), ids=BATCHES)
def test_batches_that_do_not_fit(kind, batch, error, text):
    loop = Loop(kind)
    before = loop.step()
    loop.refuses(error, text, **batch)
    assert_close(loop.step(), before)


def unseen():
    prototypes = ClassPrototypes(K)
    prototypes.update(MAPS[:2], torch.arange(2))
    return BatchCamLoss(prototypes)


LOSSES = {
    "class without a prototype": (unseen, ValueError, r"\[2\]"),
    "no prototypes": (lambda: PrototypeLoss(ClassPrototypes(K)), RuntimeError, "prototypes"),
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
        (forgotten_with, RuntimeError, "got none"),
        (consumed, RuntimeError, "got none"),
        (not_reached, RuntimeError, "Tanh: .*got none"),
        (nested, RuntimeError, "nested"),
        (second_forward, RuntimeError, "second"),
        (block_raises, RuntimeError, "in the block"),
        (other_forward, RuntimeError, "scores: .*another forward"),
        (freed, RuntimeError, r"backward\(\)"),
        (detached, RuntimeError, "scores: .*graph"),
        (fewer_scores, ValueError, r"scores: .*8 .*\(4, 3\)"),
        (no_tensor, TypeError, "scores: .*list"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_misuse_of_the_block_names_the_remedy_and_lets_go_of_the_capture(call, kind, text):
    model = Net()
    regularizer = regularizer_of(model)
    with pytest.raises(kind, match=text):
        call(regularizer, model)
    assert hooks_of(model) == 0
    with pytest.raises(RuntimeError, match="got none"):
        regularizer(torch.rand(8, K), LABELS)
    assert regularizer(captured(regularizer, IMAGES), LABELS).isfinite()


def test_the_layer_of_a_copy_is_no_layer_of_the_model():
    model = Net()
    regularizer = CamRegularizer(BatchGradCam(model, copy.deepcopy(model).layer), PrototypeLoss(MAPS))
    with pytest.raises(RuntimeError, match=r"Tanh: .*Net"):
        regularizer(captured(regularizer, IMAGES), LABELS)


@pytest.mark.parametrize("layer", [2, 3], ids=["1x1", "vector"])
def test_layers_without_a_map(layer):
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, K)
    )
    regularizer = CamRegularizer(BatchGradCam(model, model[layer]), BatchCamLoss(MAPS))
    with pytest.raises(ValueError, match=r"at least 4 pixels|no map"):
        regularizer(captured(regularizer, IMAGES), LABELS)


class Twice(nn.Module):
    def forward(self, activations):
        return activations, activations * 2


class Sum(nn.Module):
    def forward(self, pair):
        return pair[0] + pair[1]


def test_evaluate_says_what_is_wrong_and_leaves_no_trace():
    model = Net()
    regularizer = regularizer_of(model)
    before = copy.deepcopy(model.state_dict())
    for labels in (F.one_hot(LABELS, K), LABELS.to("meta")):
        with pytest.raises(ValueError, match="labels"):
            regularizer.evaluate(IMAGES, labels)
    assert hooks_of(model) == 0
    assert_close(model.state_dict(), before, rtol=0, atol=0)
    elsewhere = CamRegularizer(BatchGradCam(model, nn.Conv2d(1, 1, 1)), PrototypeLoss(MAPS))
    with pytest.raises(RuntimeError, match="Conv2d"):
        elsewhere.evaluate(IMAGES, LABELS)
    several = nn.Sequential(nn.Conv2d(1, 2, 3), Twice(), Sum(), nn.Flatten(), nn.Linear(72, K))
    regularizer = CamRegularizer(BatchGradCam(several, "1"), PrototypeLoss(MAPS))
    with pytest.raises(ValueError, match=r"^Twice: "):
        regularizer.evaluate(IMAGES, LABELS)


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
