"""The cams of a regularizer's terms: their scores, weightings and layers, from as few gradients as possible."""

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
    ImageLoss,
    PrototypeLoss,
    split_model,
)
from batchcam_captum.functional import hires_cam, prototype_loss
from batchcam_captum.losses import CamLoss
from batchcam_captum.prototypes import RunningPrototypes
from tests.reference_training import K, Parts, exact_maps, gradients, objective, sample_cams, terms
from tests.training.models import Net, batch, captured, hooks_of, prototypes, regularizer_of

LAYERS = ["layer", "middle"]
MAPS = exact_maps()
pytestmark = pytest.mark.filterwarnings("ignore:.*all maps are dead")  # Σ log p falls with every class


def double_batch():
    images, labels = batch(6)
    return images.double(), labels


@pytest.fixture
def taken(monkeypatch):
    """Note each gradient that a cam is made of."""
    calls = []
    original = torch.autograd.grad

    def counting(*args, **kwargs):
        if "create_graph" in kwargs:  # not the first step's try of a second derivative
            calls.append(kwargs)
        return original(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", counting)
    return calls


def prototype(score="label", method=None):
    loss = PrototypeLoss(MAPS)
    loss.score, loss.method = score, method
    return loss


# ---- scores and weightings ----


@pytest.mark.parametrize(
    ("score", "select"),
    [
        ("label", lambda s, y: s.gather(1, y[:, None])[:, 0]),
        ("predicted", lambda s, y: s.amax(1)),
        ("log_prob_sum", lambda s, y: s.log_softmax(1).sum(1)),
        (lambda s, y: s[:, 0] - s[:, 1], lambda s, y: s[:, 0] - s[:, 1]),
    ],
    ids=["label", "predicted", "log_prob_sum", "callable"],
)
def test_a_loss_chooses_the_score_that_its_cam_explains(score, select):
    model, (images, labels) = Net().eval(), batch()
    loss = prototype(score)
    regularizer = regularizer_of(model, loss)
    actual = regularizer(captured(regularizer, images), labels)
    cams = BatchGradCam(lambda x: select(model(x), labels), model.layer).attribute(images)
    assert_close(actual, prototype_loss(cams, labels, loss.prototypes.maps((6, 6))))


@pytest.mark.parametrize(
    ("of_grad_cam", "of_loss", "used"),
    [
        ("hires_cam", None, "hires_cam"),
        ("hires_cam", "layer_cam", "layer_cam"),
        ("grad_cam", hires_cam, "hires_cam"),
    ],
)
def test_a_loss_chooses_the_weighting_before_the_grad_cam_does(of_grad_cam, of_loss, used):
    model, (images, labels) = Net().eval(), batch()
    loss = prototype(method=of_loss)
    regularizer = CamRegularizer(BatchGradCam(model, "layer", method=of_grad_cam), loss)
    actual = regularizer(captured(regularizer, images), labels)
    cams = BatchGradCam(model, "layer", method=used).attribute(images, labels, differentiable=True)
    expected = loss(cams, labels)
    assert_close(actual, expected)
    ours, theirs = (torch.autograd.grad(value, model.head[4].weight)[0] for value in (actual, expected))
    assert theirs.abs().max() > 0
    assert_close(ours, theirs)


def test_terms_of_one_score_share_one_gradient(taken):
    model, (images, labels) = Net().eval(), batch()
    losses = {
        "a": (prototype(), 0.5),
        "b": (BatchCamLoss(prototypes(), distance="ssim"), 2.0),
        "hires": prototype(method="hires_cam"),
        "c": ImageLoss(),
        "off": (prototype("log_prob_sum"), 0.0),
    }
    regularizer = regularizer_of(model, losses, weight=0.1)
    scores = captured(regularizer, images)
    total = regularizer(scores, labels, images=images)
    assert len(taken) == 1
    values = regularizer.values
    assert set(values) == {"a", "b", "hires", "c", "dead_fraction"}
    assert values["a"] != values["hires"]
    weighted = 0.5 * values["a"] + 2.0 * values["b"] + 0.1 * (values["hires"] + values["c"])
    assert_close(total.detach(), weighted)
    regularizer.weights["off"] = 1.0
    regularizer(captured(regularizer, images), labels, images=images)
    assert len(taken) == 3


class Unhashable:
    __hash__ = None

    def __call__(self, scores, labels):
        return scores.gather(1, labels[:, None])[:, 0]


UNHASHABLE = Unhashable()


class Bound(CamLoss):
    """Two scores, methods of the loss itself."""

    reduction: str = "sum"

    @property
    def scores(self):
        return (self.first, self.second)

    def first(self, scores, labels):
        return scores.gather(1, labels.unsqueeze(1)).squeeze(1)

    def second(self, scores, labels):
        return scores.amin(1)

    def per_sample(self, samples):
        return (samples.cams[:, 0] - 2 * samples.cams[:, 1]).square().flatten(1).sum(1)


class Fresh(Bound):
    """Scores made anew whenever they are asked for."""

    @property
    def scores(self):
        return (lambda s, y: self.first(s, y), lambda s, y: self.second(s, y))


class NotHashable(Bound):
    @property
    def scores(self):
        return (UNHASHABLE, self.second)


def test_scores_that_are_made_anew_or_cannot_be_hashed():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, K)).double()
    images, labels = double_batch()
    grad_cam = BatchGradCam(model, "1")
    pair = [grad_cam.attribute(images, target=target) for target in (labels, model(images).argmin(1))]
    expected = (pair[0] - 2 * pair[1]).square().sum()
    losses = {"bound": Bound(), "fresh": Fresh(), "again": Fresh(), "not hashable": NotHashable()}
    regularizer, split = CamRegularizer(grad_cam, losses), CamRegularizer(split_model(model, "1"), losses)
    regularizer(captured(regularizer, images), labels)
    split.run(images, labels)
    for values in (regularizer.values, split.values, regularizer.evaluate(images, labels)):
        for name in losses:
            assert_close(values[name], expected)


# ---- several layers ----


@pytest.mark.parametrize("layers", [LAYERS, LAYERS[::-1]], ids=["in order", "reversed"])
def test_each_term_is_the_mean_over_the_layers(layers, taken):
    model, (images, labels) = Parts().double(), double_batch()
    twin = copy.deepcopy(model)
    losses = [BatchCamLoss(MAPS), PrototypeLoss(MAPS)]
    regularizer = CamRegularizer(BatchGradCam(model, layers), losses, 0.5)
    scores = captured(regularizer, images)
    total = regularizer(scores, labels)
    assert len(taken) == 1
    (F.cross_entropy(scores, labels) + total).backward()
    options = {"kinds": ["batch_cam", "prototype"], "layers": LAYERS}
    expected = gradients(objective(twin, images, labels, MAPS.double(), 0.5, **options), twin)
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-12, msg=name)
    _, found = terms(twin, images, labels, MAPS.double(), **options)
    for name, value in found.items():
        assert_close(regularizer.values[name], value.detach(), rtol=1e-9, atol=0)
        of_layers = [regularizer.values[f"{name}/{layer}"] for layer in LAYERS]
        assert of_layers[0] != of_layers[1]
        assert_close(sum(of_layers) / 2, value.detach(), rtol=1e-9, atol=0)
    assert hooks_of(model) == 0


def test_dead_fraction_is_that_of_the_layer_with_the_most_and_evaluate_gives_each():
    model, (images, labels) = Parts().double().eval(), double_batch()
    with torch.no_grad():
        # Nothing at the middle layer, which is positive, speaks for class 0.
        model.head[1].weight[0].abs_().neg_()
    regularizer = CamRegularizer(BatchGradCam(model, LAYERS), BatchCamLoss(MAPS))
    assert regularizer.values == {}
    regularizer(captured(regularizer, images), labels)
    _, cams = sample_cams(model, images, labels, LAYERS)
    dead = [
        float((c.amax((1, 2, 3)) <= 1e-3 * c.abs().amax((1, 2, 3))).double().mean()) for c in cams.values()
    ]
    assert dead[0] != dead[1]
    assert_close(regularizer.values["dead_fraction"].item(), max(dead))
    values = regularizer.evaluate(images, labels)
    assert set(values) == {"batch_cam", "batch_cam/layer", "batch_cam/middle", "dead_fraction"}
    assert_close(values, regularizer.values)


def test_a_layer_that_does_not_run_is_named_and_the_next_step_works():
    model, (images, labels) = Parts().double(), double_batch()
    model.add_module("unused", nn.Softplus())
    regularizer = CamRegularizer(BatchGradCam(model, ["layer", "unused"]), BatchCamLoss(MAPS))
    scores = captured(regularizer, images)
    with pytest.raises(RuntimeError, match=r"^Softplus: .*got none"):
        regularizer(scores, labels)
    assert hooks_of(model) == 0


def test_a_loss_with_a_memory_serves_one_layer():
    with pytest.raises(ValueError, match="losses"):
        CamRegularizer(BatchGradCam(Parts(), LAYERS), PrototypeLoss(RunningPrototypes(K)))


# ---- labels, images and masks ----


def test_own_losses_get_images_and_masks_and_soft_labels_pass():
    class Outside(CamLoss):
        def per_sample(self, samples):
            assert samples.images.shape == (8, 1, 8, 8)
            return (samples.cams * (1 - samples.masks)).square().flatten(1).mean(1)

    model, (images, labels) = Net().eval(), batch()
    regularizer = regularizer_of(model, {"outside": (Outside(), 0.5), "prototype": prototype()})
    given = {"images": images, "masks": torch.zeros(8, 1, 6, 6)}
    hard, soft = (
        regularizer(captured(regularizer, images), each, **given)
        for each in (labels, F.one_hot(labels, K).float())
    )
    assert_close(soft, hard)
    assert regularizer.values["outside"] > 0
    assert list(regularizer_of(model, Outside()).terms) == ["Outside"]
    assert list(regularizer_of(model, [(BatchCamLoss(MAPS), 2.0), prototype()]).terms) == [
        "batch_cam",
        "prototype",
    ]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_of_any_integer_type_select_the_same_class_among_300(dtype):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 300))
    images, labels = torch.rand(6, 1, 8, 8), torch.tensor([0, 44, 156, 200, 255, 200])
    maps = torch.rand(300, 1, 6, 6)
    losses = {"batch_cam": BatchCamLoss(maps), "prototype": PrototypeLoss(maps), "image": ImageLoss()}
    regularizer = CamRegularizer(BatchGradCam(model, model[1]), losses)
    totals = [
        regularizer(captured(regularizer, images), labels.to(kind), images=images)
        for kind in (torch.int64, dtype)
    ]
    assert torch.equal(*totals)
