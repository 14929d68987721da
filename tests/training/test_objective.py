"""Terms with weights: schedules in a training loop, steps in which nothing is computed, and no waiting for the device."""

from __future__ import annotations

import copy
import math

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
    PrototypeContrastiveLoss,
    PrototypeLoss,
)
from batchcam_captum.attribution import Split
from batchcam_captum.training import AutoWeight, Cosine, EveryKSteps, LinearWarmup
from tests.training.models import K, Net, batch, captured, objective, prototypes, regularizer_of

BOTH = pytest.mark.parametrize("kind", ["hooks", "split"])


def make(model, kind, losses, weight=1.0):
    if kind == "split":
        return CamRegularizer(Split(nn.Sequential(model.trunk, model.layer), model.head), losses, weight)
    return regularizer_of(model, losses, weight=weight)


def run(regularizer, images, labels, **options):
    """Return the scores and the cam loss, by either kind of regularizer."""
    if isinstance(regularizer.grad_cam, Split):
        return regularizer.run(images, labels, **options)
    scores = captured(regularizer, images)
    task = F.cross_entropy(scores, labels)
    return scores, regularizer(scores, labels, images=images, task_loss=task, **options)


@pytest.fixture
def taken(monkeypatch):
    """Note each gradient that is taken besides backward(): by torch.autograd.grad, and through torch.func."""
    calls = []
    for owner, name in ((torch.autograd, "grad"), (torch.func, "vjp")):
        original = getattr(owner, name)

        def counting(*args, original=original, **kwargs):
            calls.append(1)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)
    return calls


# ---- weights ----


def test_the_weight_follows_the_steps_and_nothing_else():
    model, (images, labels) = Net(dropout=0.0), batch()
    regularizer = regularizer_of(model, weight=LinearWarmup(2.0, steps=2, start=1.0))
    unweighted = regularizer_of(model, regularizer.terms["batch_cam"])
    for steps, expected in enumerate([1.0, 1.5, 2.0, 2.0]):
        for _ in range(2):  # micro-batches of one step
            term = regularizer(captured(regularizer, images), labels)
            assert regularizer.read_weights() == {"batch_cam": expected}
            assert_close(term, expected * unweighted(captured(unweighted, images), labels))
        assert regularizer.steps == steps
        regularizer.step()


def test_a_schedule_that_returns_nan_is_named():
    model, (images, labels) = Net(), batch()
    regularizer = regularizer_of(model, weight=lambda step: 1.0 if step == 0 else math.nan)
    objective(regularizer, model, images, labels)
    regularizer.step()
    with pytest.raises(ValueError, match=r"weight.*batch_cam"):
        objective(regularizer, model, images, labels)


@BOTH
def test_each_term_has_its_own_schedule_and_what_is_off_takes_no_gradient(kind, taken):
    model, (images, labels) = Net(), batch()
    losses = {
        "often": (PrototypeLoss(prototypes()), EveryKSteps(1.0, k=2)),
        "seldom": (PrototypeContrastiveLoss(prototypes()), EveryKSteps(1.0, k=3, rescale=True)),
        "never": (BatchCamLoss(prototypes()), 0.0),
    }
    regularizer, seen = make(model, kind, losses), []
    for _ in range(6):
        taken.clear()
        _, total = run(regularizer, images, labels)
        values = set(regularizer.values) - {"dead_fraction"}
        assert bool(taken) == bool(total.requires_grad) == bool(values)
        seen.append(values)
        regularizer.step()
    assert seen == [{"often", "seldom"}, set(), {"often"}, {"seldom"}, {"often"}, set()]


@BOTH
def test_evaluate_measures_terms_that_a_schedule_leaves_out_in_this_step(kind):
    model, (images, labels) = Net().eval(), batch()
    losses = {
        "warming": (PrototypeLoss(prototypes()), LinearWarmup(1.0, 10)),  # 0 at step 0
        "constant": (BatchCamLoss(prototypes()), 1.0),
        "off": (BatchCamLoss(prototypes()), 0),
    }
    regularizer = make(model, kind, losses)
    at_zero = regularizer.evaluate(images, labels)
    assert set(at_zero) == {"warming", "constant", "dead_fraction"}
    # A training call computes what has a weight now, also after an evaluation.
    run(regularizer, images, labels)
    assert set(regularizer.values) == {"constant", "dead_fraction"}
    for _ in range(5):
        regularizer.step()
    assert_close(regularizer.evaluate(images, labels), at_zero)


def test_a_missing_step_is_warned_of():
    model, (images, labels) = Net(), batch(2)
    # 0 at step 0: cheap calls.
    regularizer = regularizer_of(model, weight=EveryKSteps(LinearWarmup(1.0, 10), 2))
    scores = captured(regularizer, images)
    for _ in range(1000):
        regularizer(scores, labels)
    with pytest.warns(UserWarning, match=r"step\(\)"):
        regularizer(scores, labels)
    regularizer(scores, labels)


# ---- weight 0 ----


class Deep(Net):
    """BatchNorm and dropout before the layer, too."""

    def __init__(self):
        super().__init__(dropout=0.4)
        self.trunk.append(nn.Dropout(0.3))


def train(model, regularizer, steps=4):
    """Return all that training leaves behind: losses, parameters, gradients, statistics, the optimizer's and the RNG's state."""
    torch.manual_seed(7)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    left = []
    for _ in range(steps):
        images, labels = torch.rand(6, 1, 8, 8), torch.randint(K, (6,))
        optimizer.zero_grad()
        scores, cam_loss = (model(images), 0.0) if regularizer is None else run(regularizer, images, labels)
        loss = F.cross_entropy(scores, labels) + cam_loss
        loss.backward()
        optimizer.step()
        if regularizer is not None:
            regularizer.step()
        left += [loss.detach(), *(p.grad.clone() for p in model.parameters())]
    of_optimizer = [value for state in optimizer.state.values() for value in state.values()]
    return [*left, *model.state_dict().values(), *of_optimizer, torch.get_rng_state()]


@BOTH
@pytest.mark.parametrize(
    "weight", [0.0, lambda step: 0.0, Cosine(0.0, steps=3), EveryKSteps(lambda step: float(step > 0), k=5)]
)
def test_training_with_weight_zero_is_bit_identical_and_computes_nothing(weight, kind, taken):
    model = Deep()
    plain, other, maps = copy.deepcopy(model), copy.deepcopy(model), prototypes()
    regularizer = make(model, kind, [BatchCamLoss(maps), PrototypeLoss(maps)], weight)
    expected = train(plain, None)
    assert all(map(torch.equal, train(model, regularizer), expected))
    assert not taken
    assert regularizer.values == {}
    assert set(regularizer.read_weights().values()) == {0.0}
    # So that this is known to be able to fail.
    assert not all(map(torch.equal, train(other, make(other, kind, BatchCamLoss(maps), 1e-3)), expected))
    assert len(taken) >= 4


def test_weight_zero_asks_for_nothing():
    regularizer = regularizer_of(Net(), {"a": (BatchCamLoss(prototypes()), 0.0)})
    assert regularizer(torch.full((4, K), math.nan), torch.zeros(4, dtype=torch.long)) == 0


# ---- no waiting for the device: a value on the meta device cannot be read on the host ----


def many_losses(weight):
    maps = torch.rand(K, 1, 8, 8)
    every_class, predicted = (
        PrototypeLoss(maps, distance="l2"),
        ImageLoss(distance="cosine", mean=0.1, std=0.5),
    )
    every_class.score, every_class.method = "log_prob_sum", "hires_cam"
    predicted.score = "predicted"
    return {
        "batch_cam": (BatchCamLoss(maps, distance="ssim"), weight),
        "every class": every_class,
        "contrastive": PrototypeContrastiveLoss(ClassPrototypes.from_maps(maps)),
        "image": predicted,
        "large": BatchCamLoss(maps, distance="l1"),
    }


@pytest.mark.parametrize("soft", [False, True], ids=["indices", "soft"])
@pytest.mark.parametrize(
    ("kind", "layers", "weight"),
    [
        ("hooks", ["layer"], lambda: 1.0),
        ("hooks", ["layer", "head.1"], lambda: AutoWeight(every=2)),
        ("split", None, lambda: EveryKSteps(Cosine(1.0, steps=5), k=2)),
    ],
)
def test_no_step_reads_a_value_on_the_host(kind, layers, weight, soft):
    model, losses = Net().to("meta"), many_losses(weight())
    regularizer = make(model, kind, losses)
    if kind == "hooks":
        regularizer = CamRegularizer(BatchGradCam(model, layers), losses)
    regularizer.to("meta")
    images = torch.rand(8, 1, 8, 8, device="meta")
    labels = torch.rand(8, K, device="meta") if soft else torch.zeros(8, dtype=torch.long, device="meta")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        scores, cam_loss = run(regularizer, images, labels, sample_weights=torch.rand(8, device="meta"))
        (F.cross_entropy(scores, labels) + cam_loss).backward()
        optimizer.step()
        regularizer.step()
    assert model.head[4].weight.grad.shape == model.head[4].weight.shape
    values = [*regularizer.values.values(), *regularizer.evaluate(images, labels).values()]
    assert all(value.is_meta and not value.requires_grad for value in values)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        regularizer.check()  # here the values are read
    if kind == "hooks" and not soft:
        assert regularizer.grad_cam.attribute(images, target=1) is not None
