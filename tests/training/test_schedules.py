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
from tests.training.models import K, Net, batch, captured, objective, prototypes, regularizer_of

# ---- functions of the steps ----


def test_linear_warmup_is_a_straight_line_and_then_constant():
    warmup = LinearWarmup(2.0, steps=5, start=0.5)
    assert warmup(0) == 0.5
    rises = [warmup(step + 1) - warmup(step) for step in range(5)]
    assert rises == pytest.approx([0.3] * 5)
    assert warmup(5) == warmup(6) == warmup(10**9) == 2.0
    assert LinearWarmup(2.0, steps=1)(0) == 0.0


def test_cosine_is_the_published_formula():
    # Loshchilov and Hutter 2017, eq. 5: eta_min + (eta_max - eta_min) (1 + cos(pi T_cur / T_i)) / 2
    cosine = Cosine(3.0, steps=7, final=0.5)
    for step in range(8):
        assert cosine(step) == pytest.approx(0.5 + 0.5 * 2.5 * (1 + math.cos(math.pi * step / 7)))
    assert cosine(0) == 3.0
    assert cosine(7) == cosine(8) == cosine(10**9) == pytest.approx(0.5)
    assert Cosine(0.0, steps=2, final=1.0)(1) == pytest.approx(0.5)  # it may rise


def test_every_k_steps_begins_at_the_first_and_weighs_the_same_when_rescaled():
    plain, rescaled = EveryKSteps(0.7, k=3), EveryKSteps(0.7, k=3, rescale=True)
    assert [step for step in range(9) if plain(step)] == [0, 3, 6]
    assert sum(rescaled(step) for step in range(9)) == pytest.approx(9 * 0.7)
    assert sum(plain(step) for step in range(9)) == pytest.approx(3 * 0.7)


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


def test_a_schedule_that_returns_nan_is_named():
    model, (images, labels) = Net(), batch()
    regularizer = regularizer_of(model, weight=lambda step: 1.0 if step == 0 else math.nan)
    objective(regularizer, model, images, labels)
    regularizer.step()
    with pytest.raises(ValueError, match=r"weight.*batch_cam"):
        objective(regularizer, model, images, labels)


# ---- in a training loop ----


def test_the_weight_follows_the_steps_and_nothing_else():
    model, (images, labels) = Net(dropout=0.0), batch()
    regularizer = regularizer_of(model, weight=LinearWarmup(2.0, steps=2, start=1.0))
    unweighted = regularizer_of(model, regularizer.terms["batch_cam"])
    for steps, expected in enumerate([1.0, 1.5, 2.0, 2.0]):
        for _ in range(3):  # micro-batches of one step
            term = regularizer(captured(regularizer, images), labels)
            assert regularizer.read_weights() == {"batch_cam": expected}
            assert_close(term, expected * unweighted(captured(unweighted, images), labels))
        assert regularizer.steps == steps
        regularizer.step()


def test_skipped_steps_compute_nothing_and_each_term_has_its_own_schedule(monkeypatch):
    model, (images, labels) = Net(), batch()
    losses = {
        "often": (PrototypeLoss(prototypes()), EveryKSteps(1.0, k=2)),
        "seldom": (PrototypeContrastiveLoss(prototypes()), EveryKSteps(1.0, k=3, rescale=True)),
    }
    regularizer = regularizer_of(model, losses)
    taken = []
    original = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: taken.append(1) or original(*a, **k))
    seen = []
    for _ in range(6):
        taken.clear()
        total = regularizer(captured(regularizer, images), labels)
        seen.append((set(regularizer.values) - {"dead_fraction"}, bool(taken), bool(total.requires_grad)))
        regularizer.step()
    nothing = (set(), False, False)
    assert seen == [
        ({"often", "seldom"}, True, True), nothing, ({"often"}, True, True), ({"seldom"}, True, True), ({"often"}, True, True),
        nothing,
    ]  # fmt: skip


def test_a_missing_step_is_warned_of():
    model, (images, labels) = Net(), batch(2)
    regularizer = regularizer_of(
        model, weight=EveryKSteps(LinearWarmup(1.0, 10), 2)
    )  # 0 at step 0: cheap calls
    with regularizer:
        scores = model(images)
    for _ in range(1000):
        regularizer(scores, labels)
    with pytest.warns(UserWarning, match=r"step\(\)"):
        regularizer(scores, labels)


# ---- set from gradients ----


class KeepingTanh(nn.Tanh):
    """Keeps its output: the cam is made of this tensor, while the head may get a clone."""

    def forward(self, inputs):
        self.output = super().forward(inputs)
        return self.output


class WideNet(Net):
    """In float64."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0)
        self.layer = KeepingTanh()
        self.double()


def norms(losses, activations):
    """Return the norm of the gradient of each loss: the slow twin."""
    return [
        torch.linalg.vector_norm(torch.autograd.grad(loss, activations, retain_graph=True)[0])
        for loss in losses
    ]


def parts(regularizer, model, images, labels):
    """Return the task loss and the weighted cam terms."""
    with regularizer:
        scores = model(images)
    task = F.cross_entropy(scores, labels)
    return task, regularizer(scores, labels, task_loss=task)


@pytest.mark.parametrize("ratio", [0.1, 2.5])
def test_the_gradients_at_the_layer_have_the_chosen_ratio(ratio):
    model, (images, labels) = WideNet(), batch()
    auto = AutoWeight(ratio, momentum=0.0, every=1)
    regularizer = regularizer_of(model, weight=auto)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    weights = []
    for _ in range(3):
        task, term = parts(regularizer, model, images.double(), labels)
        of_task, of_term = norms((task, term), model.layer.output)
        assert_close(of_term / of_task, torch.tensor(ratio, dtype=torch.float64), rtol=1e-6, atol=0)
        weights.append(auto.weight.item())
        optimizer.zero_grad()
        (task + term).backward()
        optimizer.step()
        regularizer.step()
    assert len(set(weights)) == 3  # λ follows the gradients


def test_each_of_two_terms_has_its_ratio():
    model, (images, labels) = WideNet(), batch()
    losses = {
        "prototype": (PrototypeLoss(prototypes()), AutoWeight(0.3, momentum=0.0)),
        "contrastive": (PrototypeContrastiveLoss(prototypes()), AutoWeight(0.7, momentum=0.0)),
    }
    regularizer = regularizer_of(model, losses)
    alone = [regularizer_of(model, losses[name][0]) for name in losses]
    images = images.double()
    task, total = parts(regularizer, model, images, labels)
    (of_task,) = norms([task], model.layer.output)
    expected = 0.0
    for (name, (_, auto)), single in zip(losses.items(), alone, strict=True):
        value = single(captured(single, images), labels)
        (of_term,) = norms([value], model.layer.output)
        assert_close(auto.weight.double(), auto.ratio * of_task / of_term, rtol=1e-6, atol=0)
        assert regularizer.read_weights()[name] == auto.weight.item()
        expected = expected + auto.weight.double() * value.detach()
    assert_close(total.detach(), expected, rtol=1e-6, atol=0)


def test_the_gradient_of_the_task_is_taken_once_for_all_terms(monkeypatch):
    model, (images, labels) = Net(), batch()
    losses = {
        "a": (PrototypeLoss(prototypes()), "auto"),
        "b": (BatchCamLoss(prototypes()), "auto"),
        "c": PrototypeLoss(prototypes()),
    }
    regularizer = regularizer_of(model, losses)
    taken = []
    original = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: taken.append(1) or original(*a, **k))
    parts(regularizer, model, images, labels)
    # One each for the cam, the first step's try of a second derivative, the task, and the two terms with "auto".
    assert len(taken) == 1 + 1 + 1 + 2
    taken.clear()
    parts(regularizer, model, images, labels)
    assert len(taken) == 1  # no update is due


def test_the_norm_is_over_all_layers():
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(64, K)
    ).double()
    auto = AutoWeight(0.5, momentum=0.0)
    regularizer = CamRegularizer(BatchGradCam(model, [model[1], model[3]]), PrototypeLoss(prototypes()), auto)
    kept = []
    for layer in (model[1], model[3]):
        layer.register_forward_hook(lambda _, __, output: kept.append(output))
    images, labels = batch()
    task, term = parts(regularizer, model, images.double(), labels)

    def norm(loss):
        # The gradient at the first layer includes the path through the second.
        gradients = torch.autograd.grad(loss, kept[:2], retain_graph=True)
        return torch.cat([gradient.flatten() for gradient in gradients]).norm()

    assert_close(norm(term) / norm(task), torch.tensor(0.5, dtype=torch.float64), rtol=1e-6, atol=0)


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


def test_every_is_the_number_of_calls_between_updates(monkeypatch):
    model, (images, labels) = Net(), batch()
    auto = AutoWeight(every=3)
    regularizer = regularizer_of(model, weight=auto)
    updates = []
    original = AutoWeight.update
    monkeypatch.setattr(
        AutoWeight, "update", lambda self, *norms: updates.append(calls) or original(self, *norms)
    )
    weights = []
    for calls in range(7):
        parts(regularizer, model, images + calls, labels)
        weights.append(auto.weight.item())
    assert updates == [0, 3, 6]
    assert weights[0] == weights[1] == weights[2] != weights[3] == weights[5] != weights[6]


def test_evaluate_leaves_the_weight_alone():
    model, (images, labels) = Net(), batch()
    regularizer = regularizer_of(model, weight="auto")
    regularizer.evaluate(images, labels)
    auto = regularizer.auto_weights["batch_cam"]
    assert auto.weight.item() == 0.0
    assert auto.num_calls == 0


def test_auto_needs_the_task_loss():
    model, (images, labels) = Net(), batch()
    regularizer = regularizer_of(model, weight="auto")
    with pytest.raises(ValueError, match="task_loss"):
        regularizer(captured(regularizer, images), labels)
    with pytest.raises(ValueError, match="task_loss"):
        regularizer(captured(regularizer, images), labels, task_loss=torch.ones(8))
    with pytest.raises(ValueError, match="automatic"):
        regularizer_of(model, weight="automatic")
    with pytest.raises(TypeError, match="'auto'"):
        CamRegularizer(Split(model.trunk, model.head), BatchCamLoss(prototypes()), "auto")


def test_an_auto_weight_is_copied_for_each_term():
    auto = AutoWeight(0.2, every=1)
    model, (images, labels) = Net(dropout=0.0), batch()
    losses = {"a": PrototypeLoss(prototypes()), "b": PrototypeContrastiveLoss(prototypes())}
    together = regularizer_of(model, losses, weight=auto)
    assert together.weights["a"] is auto
    assert together.weights["b"] is not auto
    parts(together, model, images, labels)
    for name, loss in losses.items():
        alone = regularizer_of(model, {name: loss}, weight=AutoWeight(0.2, every=1))
        parts(alone, model, images, labels)
        assert together.read_weights()[name] == pytest.approx(alone.read_weights()[name], rel=1e-5)
    assert together.weights["a"].num_calls == together.weights["b"].num_calls == 1


def test_the_weight_keeps_its_precision():
    auto = AutoWeight(0.3)
    auto.update(torch.tensor(1.0), torch.tensor(1.0))
    before = auto.weight.item()
    for cast in ("half", "bfloat16", "double"):
        assert getattr(auto, cast)().weight.dtype == torch.float32
        assert auto.weight.item() == before
    assert auto.to("meta").weight.is_meta


def test_setting_the_weight_does_not_synchronize():
    """Tensors on the meta device have no values, so reading one on the host raises."""
    model = Net().to("meta")
    losses = {
        "a": (PrototypeLoss(prototypes()), "auto"),
        "b": (BatchCamLoss(prototypes()), AutoWeight(every=1)),
        "c": (PrototypeContrastiveLoss(prototypes()), LinearWarmup(1.0, 2)),
    }
    regularizer = regularizer_of(model, losses).to("meta")
    images, labels = torch.rand(8, 1, 8, 8, device="meta"), torch.zeros(8, dtype=torch.long, device="meta")
    for _ in range(3):
        task, term = parts(regularizer, model, images, labels)
        (task + term).backward()
        regularizer.step()
    assert regularizer.current_weights["b"].is_meta


# ---- saved and resumed ----


def run(model, regularizer, optimizer, steps):
    for step in steps:
        torch.manual_seed(step)  # batches, and the dropout mask
        images, labels = batch()
        task, term = parts(regularizer, model, images, labels)
        optimizer.zero_grad()
        (task + term).backward()
        optimizer.step()
        regularizer.step()


def fresh(seed):
    torch.manual_seed(seed)
    model = Net()
    losses = {
        "auto": (PrototypeLoss(torch.full((K, 1, 8, 8), 0.5)), AutoWeight(0.2, every=3)),
        "ramp": (BatchCamLoss(torch.eye(8).expand(K, 1, 8, 8).clone()), LinearWarmup(Cosine(1.0, 20), 6)),
    }
    return model, regularizer_of(model, losses), torch.optim.Adam(model.parameters(), lr=0.01)


def test_a_resumed_run_continues_bit_for_bit(tmp_path):
    whole = fresh(0)
    run(*whole, range(9))

    first = fresh(0)
    run(*first, range(4))  # between two updates of the norms, inside the ramp
    torch.save([part.state_dict() for part in first], tmp_path / "checkpoint.pt")
    resumed = fresh(5)  # other weights, all of which the checkpoint replaces
    for part, state in zip(resumed, torch.load(tmp_path / "checkpoint.pt", weights_only=True), strict=True):
        part.load_state_dict(state)
    run(*resumed, range(4, 9))

    model, regularizer, _ = whole
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, resumed[0].state_dict()[name]), name
    assert regularizer.read_weights() == resumed[1].read_weights()
    assert regularizer.read_weights()["auto"] > 0
    assert regularizer.steps == resumed[1].steps == 9
    assert regularizer.auto_weights["auto"].num_calls == resumed[1].auto_weights["auto"].num_calls == 9


def test_names_in_the_state():
    _, regularizer, _ = fresh(0)
    state = regularizer.state_dict()
    assert state["_extra_state"] == {"steps": 0}
    assert {"auto_weights.auto.weight", "auto_weights.auto._extra_state"} <= set(state)
    assert not any("ramp" in name for name in state if name.startswith("auto_weights"))


@pytest.mark.parametrize("split", [False, True], ids=["hooks", "split"])
def test_evaluate_measures_terms_that_a_schedule_skips_in_this_step(split):
    model, (images, labels) = Net().eval(), batch()
    losses = {
        "warming": (PrototypeLoss(prototypes()), LinearWarmup(1.0, 10)),  # 0 at step 0
        "constant": (PrototypeContrastiveLoss(prototypes()), 1.0),
        "off": (BatchCamLoss(prototypes()), 0),
    }
    trunk = nn.Sequential(model.trunk, model.layer)
    regularizer = CamRegularizer(Split(trunk, model.head), losses) if split else regularizer_of(model, losses)
    at_zero = regularizer.evaluate(images, labels)
    assert set(at_zero) == {"warming", "constant", "dead_fraction"}
    for _ in range(5):
        regularizer.step()
    later = regularizer.evaluate(images, labels)
    assert_close(at_zero, later)
    # A training call computes what has a weight now, before and after an evaluation.
    fresh_one = CamRegularizer(Split(trunk, model.head), losses) if split else regularizer_of(model, losses)
    fresh_one.evaluate(images, labels)
    if split:
        fresh_one.run(images, labels)
    else:
        fresh_one(captured(fresh_one, images), labels)
    assert set(fresh_one.values) == {"constant", "dead_fraction"}
