"""CamRegularizer: the right value and gradient, from the training forward alone."""

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
    PrototypeContrastiveLoss,
    PrototypeLoss,
)
from batchcam_captum.functional import prototype_loss
from batchcam_captum.losses import CamLoss
from tests.training.models import (
    K,
    Net,
    batch,
    captured,
    hooks_of,
    objective,
    prototypes,
    regularizer_of,
)


@pytest.mark.parametrize("make", [BatchCamLoss, PrototypeLoss, PrototypeContrastiveLoss])
def test_value_and_every_gradient_equal_attribute_and_the_loss_by_hand(make):
    model, (images, labels) = Net().eval(), batch()
    loss = make(prototypes())
    regularizer = regularizer_of(model, loss, weight=0.7)
    actual = regularizer(captured(regularizer, images), labels)
    cams = BatchGradCam(model, model.layer).attribute(images, labels, differentiable=True)
    expected = 0.7 * loss(cams, labels)
    assert_close(actual, expected)
    parameters = list(model.parameters())
    ours, theirs = (torch.autograd.grad(value, parameters, allow_unused=True) for value in (actual, expected))
    for quick, slow in zip(ours, theirs, strict=True):
        assert (quick is None) == (slow is None)
        if quick is not None:
            assert_close(quick, slow)
    assert max(gradient.abs().max() for gradient in ours[-2:] if gradient is not None) > 1e-4  # the head's


def test_training_step_runs_one_forward_one_batch_norm_update_and_one_dropout_draw():
    model, (images, labels) = Net(), batch()
    plain = copy.deepcopy(model)
    regularizer = regularizer_of(model)
    torch.manual_seed(1)
    F.cross_entropy(plain(images), labels).backward()
    state = torch.get_rng_state()
    torch.manual_seed(1)
    objective(regularizer, model, images, labels).backward()
    assert torch.equal(torch.get_rng_state(), state)
    assert model.runs == 1
    assert model.trunk[1].num_batches_tracked == 1
    assert torch.equal(model.trunk[1].running_mean, plain.trunk[1].running_mean)
    assert not torch.equal(model.head[4].weight.grad, plain.head[4].weight.grad)


def test_hooks_are_gone_after_the_block_and_after_an_exception():
    model, (images, _) = Net(), batch()
    regularizer = regularizer_of(model)
    with regularizer:
        model(images)
        assert hooks_of(model) > 0
    assert hooks_of(model) == 0

    def interrupted():
        with regularizer:
            model(images)
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert hooks_of(model) == 0
    with pytest.raises(RuntimeError, match="expected a captured forward, got none"):
        regularizer(torch.rand(8, K), torch.zeros(8, dtype=torch.long))


def counted_gradients(monkeypatch):
    calls = []
    original = torch.autograd.grad

    def counting(*args, **kwargs):
        if "create_graph" in kwargs:  # not the first step's try of a second derivative
            calls.append(kwargs)
        return original(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", counting)
    return calls


class LogProbLoss(PrototypeLoss):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.score = "log_prob_sum"


@pytest.mark.filterwarnings("ignore:.*all maps are dead")  # Σ log p falls with every class
def test_terms_of_one_map_and_score_share_one_gradient(monkeypatch):
    model, (images, labels) = Net().eval(), batch()
    maps = prototypes()
    terms = {
        "a": (PrototypeLoss(maps), 0.5),
        "b": (BatchCamLoss(maps, distance="ssim"), 2.0),
        "c": ImageLoss(),
        "off": (LogProbLoss(maps), 0.0),
    }
    regularizer = regularizer_of(model, terms, weight=0.1)
    scores = captured(regularizer, images)
    calls = counted_gradients(monkeypatch)
    total = regularizer(scores, labels, images=images)
    assert len(calls) == 1
    values = regularizer.values
    assert set(values) == {"a", "b", "c", "dead_fraction"}
    assert_close(total.detach(), 0.5 * values["a"] + 2.0 * values["b"] + 0.1 * values["c"])
    regularizer.weights["off"] = 1.0
    regularizer(captured(regularizer, images), labels, images=images)
    assert len(calls) == 3


def test_values_are_detached_and_report_dead_cams():
    model, (images, labels) = Net().eval(), batch()
    regularizer = regularizer_of(model)
    assert regularizer.values == {}
    total = regularizer(captured(regularizer, images), labels)
    assert total.requires_grad
    assert all(value.grad_fn is None and not value.requires_grad for value in regularizer.values.values())
    cams = BatchGradCam(model, model.layer).attribute(images, labels)
    dead = (cams.amax((1, 2, 3)) <= 1e-3 * cams.abs().amax((1, 2, 3))).float().mean()
    assert regularizer.values["dead_fraction"] == dead


def test_weight_may_be_a_function_of_the_steps():
    model, (images, labels) = Net().eval(), batch()
    regularizer = regularizer_of(model, weight=lambda steps: max(0, steps - 1) / 10)
    totals = []
    for _ in range(4):
        totals.append(regularizer(captured(regularizer, images), labels).detach())
        regularizer.step()
    assert regularizer.steps == 4
    assert totals[0] == totals[1] == 0
    assert_close(totals[3], 2 * totals[2])
    assert_close(totals[3], 0.2 * regularizer.values["batch_cam"])


def test_evaluate_and_attribute_inside_a_block_are_not_captured():
    model, (images, labels) = Net().eval(), batch()
    regularizer = regularizer_of(model)
    expected = regularizer(captured(regularizer, images), labels)
    with regularizer:
        regularizer.grad_cam.attribute(torch.rand(2, 1, 8, 8), 0)
        regularizer.evaluate(torch.rand(2, 1, 8, 8), labels[:2])
        scores = model(images)
        regularizer.grad_cam.attribute(torch.rand(2, 1, 8, 8), 0)
    assert_close(regularizer(scores, labels), expected)


def test_two_regularizers_may_nest():
    model, (images, labels) = Net().eval(), batch()
    first, second = regularizer_of(model), regularizer_of(model, PrototypeLoss(prototypes()))
    alone = [regularizer(captured(regularizer, images), labels) for regularizer in (first, second)]
    with first, second:
        scores = model(images)
    nested = [first(scores, labels), second(scores, labels)]
    assert_close(nested, alone)
    gradients = [torch.autograd.grad(sum(values), model.head[4].weight)[0] for values in (nested, alone)]
    assert_close(*gradients)


@pytest.mark.parametrize("frozen", ["trunk", "all but the last layer"])
def test_frozen_trunk_trains_the_head_and_keeps_no_marks(frozen):
    model, (images, labels) = Net(dropout=0.0).eval(), batch()
    whole = copy.deepcopy(model)
    modules = [model.trunk] if frozen == "trunk" else [model.trunk, model.head[1]]
    for module in modules:
        module.requires_grad_(False)
    seen = []
    model.layer.register_forward_hook(lambda *values: seen.append(values[2]))
    for network in (model, whole):
        torch.manual_seed(5)
        regularizer = regularizer_of(network)
        with regularizer:
            scores = network(images)
        regularizer(scores, labels).backward()
    assert not seen[0].requires_grad
    assert seen[0].grad is None
    assert all(parameter.grad is None for parameter in model.trunk.parameters())
    assert model.head[4].weight.grad.abs().max() > 0
    assert_close(model.head[4].weight.grad, whole.head[4].weight.grad)


@pytest.mark.filterwarnings("ignore:.*all maps are dead")  # Σ log p falls with every class
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
    maps = prototypes()
    loss = PrototypeLoss(maps)
    loss.score = score
    regularizer = regularizer_of(model, loss)
    actual = regularizer(captured(regularizer, images), labels)
    grad_cam = BatchGradCam(lambda x: select(model(x), labels), model.layer)
    assert_close(actual, prototype_loss(grad_cam.attribute(images), labels, loss.prototypes.maps((6, 6))))


def test_own_loss_gets_images_and_masks_and_soft_labels_pass():
    class Outside(CamLoss):
        def per_sample(self, samples):
            assert samples.images.shape == (8, 1, 8, 8)
            return (samples.cams * (1 - samples.masks)).square().flatten(1).mean(1)

    model, (images, labels) = Net().eval(), batch()
    regularizer = regularizer_of(
        model, {"outside": (Outside(), 0.5), "prototype": PrototypeLoss(prototypes())}
    )
    soft = F.one_hot(labels, K).float()
    masks = torch.zeros(8, 1, 6, 6)
    hard_total = regularizer(captured(regularizer, images), labels, images=images, masks=masks)
    soft_total = regularizer(captured(regularizer, images), soft, images=images, masks=masks)
    assert_close(soft_total, hard_total)
    assert regularizer.values["outside"] > 0


def test_a_single_loss_goes_by_its_class_where_it_is_not_registered():
    assert list(regularizer_of(Net(), LogProbLoss(prototypes())).terms) == ["LogProbLoss"]
    assert list(regularizer_of(Net()).terms) == ["batch_cam"]


def test_a_list_of_pairs_goes_by_the_registered_names():
    model, (images, labels) = Net(dropout=0), batch()
    maps = prototypes()
    regularizer = regularizer_of(model, [(BatchCamLoss(maps), 2.0), PrototypeLoss(maps)])
    total = regularizer(captured(regularizer, images), labels)
    values = regularizer.read_values()
    assert set(values) == {"batch_cam", "prototype", "dead_fraction"}
    assert_close(total.item(), 2 * values["batch_cam"] + values["prototype"])


def test_weight_zero_asks_for_nothing():
    regularizer = regularizer_of(Net(), {"a": (BatchCamLoss(prototypes()), 0.0)})
    scores = torch.full((4, K), float("nan"))
    assert regularizer(scores, torch.zeros(4, dtype=torch.long)).item() == 0
    assert regularizer.values == {}


def test_a_score_need_not_be_hashable():
    class Weighted:
        __hash__ = None

        def __call__(self, scores, labels):
            return scores.sum(1)

    model, (images, labels) = Net(), batch()
    loss = BatchCamLoss(prototypes())
    loss.score = Weighted()
    regularizer = regularizer_of(model, loss)
    assert regularizer(captured(regularizer, images), labels).isfinite()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_of_any_integer_type_select_the_same_class_among_300(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 300))
    images, labels = torch.rand(6, 1, 8, 8), torch.tensor([0, 44, 156, 200, 255, 200])
    maps = torch.rand(300, 1, 6, 6)
    losses = {"batch_cam": BatchCamLoss(maps), "prototype": PrototypeLoss(maps), "image": ImageLoss()}
    regularizer = CamRegularizer(BatchGradCam(model, model[1]), losses)
    totals = []
    for kind in (torch.int64, dtype):
        with regularizer:
            scores = model(images)
        totals.append(regularizer(scores, labels.to(kind), images=images))
    assert torch.equal(*totals)
