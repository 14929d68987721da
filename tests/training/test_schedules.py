"""Schedules of λ, and λ set from gradients."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from batchcam_captum import (
    BatchCamLoss,
    BatchGradCam,
    CamRegularizer,
    PrototypeContrastiveLoss,
    PrototypeLoss,
)
from batchcam_captum.attribution import Split
from batchcam_captum.training import AutoWeight, Cosine, EveryKSteps, LinearWarmup
from tests.training.models import K, Net, batch, captured, prototypes, regularizer_of

# ---- functions of the steps ----


def test_linear_warmup_is_a_straight_line_and_then_constant():
    warmup = LinearWarmup(2.0, steps=5, start=0.5)
    assert [warmup(step) for step in (0, 1, 2, 3, 4, 5, 10**9)] == pytest.approx(
        [0.5, 0.8, 1.1, 1.4, 1.7, 2.0, 2.0]
    )
    assert LinearWarmup(2.0, steps=1)(0) == 0.0


def test_cosine_is_the_published_formula():
    # Loshchilov and Hutter 2017, eq. 5: eta_min + (eta_max - eta_min) (1 + cos(pi T_cur / T_i)) / 2
    cosine = Cosine(3.0, steps=7, final=0.5)
    for step in range(8):
        assert cosine(step) == pytest.approx(0.5 + 0.5 * 2.5 * (1 + math.cos(math.pi * step / 7)))
    assert cosine(8) == cosine(10**9) == pytest.approx(0.5)
    assert Cosine(0.0, steps=2, final=1.0)(1) == pytest.approx(0.5)  # it may rise


def test_every_k_steps_begins_at_the_first_and_weighs_the_same_when_rescaled():
    plain, rescaled = EveryKSteps(0.7, k=3), EveryKSteps(0.7, k=3, rescale=True)
    assert [step for step in range(9) if plain(step)] == [0, 3, 6]
    assert sum(rescaled(step) for step in range(9)) == pytest.approx(9 * 0.7)


def test_schedules_inside_schedules_multiply():
    cosine = Cosine(1.0, steps=20, final=0.1)
    inside, outside = EveryKSteps(LinearWarmup(cosine, 4), k=2), LinearWarmup(EveryKSteps(cosine, k=2), 4)
    for step in range(25):
        expected = 0.0 if step % 2 else min(step / 4, 1.0) * cosine(step)
        assert inside(step) == pytest.approx(expected)
        assert outside(step) == pytest.approx(expected)
    assert LinearWarmup(lambda step: float(step), 4)(8) == 8.0  # any function will do


@pytest.mark.parametrize(
    "schedule",
    [LinearWarmup(2.0, 3), Cosine(1.0, 4), EveryKSteps(LinearWarmup(Cosine(1.0, 9), 2), 3)],
    ids=repr,
)
def test_schedules_are_values(schedule):
    for other in (copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule)), eval(repr(schedule))):
        assert other == schedule
        assert hash(other) == hash(schedule)
        assert [other(step) for step in range(12)] == [schedule(step) for step in range(12)]


@pytest.mark.parametrize(
    ("make", "error", "name"),
    [
        (lambda: LinearWarmup(1.0, 0), ValueError, "steps"),
        (lambda: LinearWarmup(1.0, 2.5), ValueError, "steps"),
        (lambda: LinearWarmup(1.0, True), ValueError, "steps"),
        (lambda: LinearWarmup("1", 2), TypeError, "weight"),
        (lambda: LinearWarmup(math.nan, 2), ValueError, "weight"),
        (lambda: LinearWarmup(1.0, 2, start=math.inf), ValueError, "start"),
        (lambda: LinearWarmup(Cosine(1.0, 2), 2, start=0.5), ValueError, "start"),
        (lambda: LinearWarmup(AutoWeight(), 2), TypeError, "AutoWeight"),
        (lambda: EveryKSteps("auto", 2), TypeError, "weight"),
        (lambda: EveryKSteps(1.0, 0), ValueError, "k"),
        (lambda: Cosine(1.0, -1), ValueError, "steps"),
        (lambda: Cosine(LinearWarmup(1.0, 2), 4), TypeError, r"LinearWarmup\(Cosine"),
        (lambda: Cosine(1.0, 4, final=None), TypeError, "final"),
        (lambda: AutoWeight(0.0), ValueError, "ratio"),
        (lambda: AutoWeight("auto"), TypeError, "ratio"),
        (lambda: AutoWeight(momentum=1.0), ValueError, "momentum"),
        (lambda: AutoWeight(maximum=-1.0), ValueError, "maximum"),
        (lambda: AutoWeight(every=0), ValueError, "every"),
    ],
)
def test_bad_arguments(make, error, name):
    with pytest.raises(error, match=rf"^{name}:|{name}\W"):
        make()


# ---- set from gradients ----


class Deep(nn.Sequential):
    """Two layers, whose outputs are kept; in float64."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(64, K)
        )
        self.kept = {}
        for name in ("1", "3"):
            self.get_submodule(name).register_forward_hook(
                lambda _, __, output, name=name: self.kept.update({name: output})
            )
        self.double()

    def norm(self, loss, layers):
        """The slow twin: ‖∂loss/∂A‖ over the layers; at the first one with the path through the second."""
        activations = [self.kept[name] for name in layers]
        gradients = torch.autograd.grad(loss, activations, retain_graph=True)
        return torch.cat([gradient.flatten() for gradient in gradients]).norm()


def parts(regularizer, images, labels):
    """Return the task loss and the weighted cam terms."""
    scores = captured(regularizer, images)
    task = F.cross_entropy(scores, labels)
    return task, regularizer(scores, labels, task_loss=task)


@pytest.mark.parametrize("layers", [["1"], ["1", "3"]], ids=["one layer", "two"])
@pytest.mark.parametrize("ratio", [0.1, 2.5])
def test_the_gradients_at_the_layers_have_the_chosen_ratio(ratio, layers):
    model, (images, labels) = Deep(), batch()
    auto = AutoWeight(ratio, momentum=0.0, every=1)
    regularizer = CamRegularizer(BatchGradCam(model, layers), PrototypeLoss(prototypes()), auto)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    weights = set()
    for _ in range(3):
        task, term = parts(regularizer, images.double(), labels)
        assert_close((model.norm(term, layers) / model.norm(task, layers)).item(), ratio, rtol=1e-6, atol=0)
        weights.add(auto.weight.item())
        optimizer.zero_grad()
        (task + term).backward()
        optimizer.step()
    assert len(weights) == 3  # λ follows the gradients


def test_each_term_has_its_ratio_and_a_weight_of_its_own():
    model, (images, labels) = Deep(), batch()
    images, shared = images.double(), AutoWeight(0.2, momentum=0.0)
    losses = {
        "prototype": (PrototypeLoss(prototypes()), AutoWeight(0.3, momentum=0.0)),
        "contrastive": (PrototypeContrastiveLoss(prototypes()), shared),
        "batch_cam": (BatchCamLoss(prototypes()), shared),
    }
    regularizer = CamRegularizer(BatchGradCam(model, ["1"]), losses)
    task, total = parts(regularizer, images, labels)
    of_task, expected = model.norm(task, ["1"]), 0.0
    for name, (loss, auto) in losses.items():
        alone = CamRegularizer(BatchGradCam(model, ["1"]), loss)
        value = alone(captured(alone, images), labels)
        weight = auto.ratio * of_task / model.norm(value, ["1"])
        assert regularizer.read_weights()[name] == pytest.approx(weight.item(), rel=1e-6)
        expected += weight.item() * value.item()
    assert total.item() == pytest.approx(expected, rel=1e-6)


def test_the_gradient_of_the_task_is_taken_once_for_all_terms(monkeypatch):
    model, (images, labels) = Net(), batch()
    losses = {
        "a": (PrototypeLoss(prototypes()), "auto"),
        "b": (BatchCamLoss(prototypes()), "auto"),
        "c": PrototypeLoss(prototypes()),
    }
    regularizer, taken = regularizer_of(model, losses), []
    original = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: taken.append(1) or original(*a, **k))
    parts(regularizer, images, labels)
    # One each for the cam, the first step's try of a second derivative, the task, and the two terms with "auto".
    assert len(taken) == 1 + 1 + 1 + 2
    taken.clear()
    parts(regularizer, images, labels)
    assert len(taken) == 1  # no update is due


def test_updates_are_smoothed_and_stay_below_the_maximum():
    auto = AutoWeight(0.5, momentum=0.9, maximum=4.0)
    auto.update(torch.tensor(2.0), torch.tensor(1.0))
    assert auto.weight.item() == 1.0  # the first update is not smoothed
    auto.update(torch.tensor(6.0), torch.tensor(1.0))
    assert auto.weight.item() == pytest.approx(0.9 * 1.0 + 0.1 * 3.0)
    for _ in range(200):
        auto.update(torch.tensor(1.0), torch.tensor(1e-30))
    assert auto.weight.item() == pytest.approx(4.0)
    assert auto.weight <= 4.0


@pytest.mark.parametrize(
    ("task", "term"), [(1.0, 0.0), (0.0, 1.0), (math.nan, 1.0), (1.0, math.inf), (1.0, math.nan)]
)
def test_norms_of_0_and_nan_change_nothing(task, term):
    auto = AutoWeight(0.5)
    auto.update(torch.tensor(task), torch.tensor(term))
    assert auto.weight.item() == 0.0  # no gradient yet, no weight
    auto.update(torch.tensor(2.0), torch.tensor(1.0))
    auto.update(torch.tensor(task), torch.tensor(term))
    assert auto.weight.item() == 1.0


def test_every_is_the_number_of_calls_between_updates_and_evaluate_is_none():
    model, (images, labels) = Net(), batch()
    auto = AutoWeight(every=3)
    regularizer = regularizer_of(model, weight=auto)
    regularizer.evaluate(images, labels)
    assert auto.weight.item() == 0.0
    weights = []
    for calls in range(7):
        parts(regularizer, images + calls, labels)
        regularizer.evaluate(images, labels)
        weights.append(auto.weight.item())
    assert weights[0] == weights[1] == weights[2] != weights[3] == weights[5] != weights[6]


def test_what_auto_needs():
    model, (images, labels) = Net(), batch()
    regularizer = regularizer_of(model, weight="auto")
    for task_loss in (None, torch.ones(8), torch.tensor(1.0)):
        with pytest.raises(ValueError, match="task_loss"):
            regularizer(captured(regularizer, images), labels, task_loss=task_loss)
    scores = captured(regularizer, images)
    with pytest.raises(RuntimeError, match="another forward"):
        regularizer(scores, labels, task_loss=F.cross_entropy(model(images), labels))
    with pytest.raises(ValueError, match=r"weight.*automatic"):
        regularizer_of(model, weight="automatic")
    with pytest.raises(TypeError, match="'auto'"):
        CamRegularizer(Split(model.trunk, model.head), BatchCamLoss(prototypes()), "auto")


def test_the_weight_keeps_its_precision():
    auto = AutoWeight(0.3)
    auto.update(torch.tensor(1.0), torch.tensor(1.0))
    before = auto.weight.item()
    for cast in ("half", "bfloat16", "double"):
        assert getattr(auto, cast)().weight.dtype == torch.float32
        assert auto.weight.item() == before
