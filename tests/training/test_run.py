"""CamRegularizer.run: what the hooks compute, through a head that is a function, and compiled whole."""

from __future__ import annotations

import copy
import logging
import shutil
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.testing import assert_close

from batchcam_captum import (
    BatchCamLoss,
    BatchGradCam,
    CamRegularizer,
    ClassPrototypes,
    ImageLoss,
    PrototypeContrastiveLoss,
    PrototypeLoss,
    split_model,
)
from batchcam_captum.attribution import Split
from batchcam_captum.functional import hires_cam
from batchcam_captum.prototypes import RunningPrototypes
from batchcam_captum.training import Cosine, LinearWarmup
from tests.functional.test_head import batch, parts
from tests.reference_training import Parts, exact_maps, gradients, terms
from tests.reference_training import objective as by_hand

K = 5
MAPS = torch.rand(K, 1, 12, 12, generator=torch.Generator().manual_seed(3))


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    # The compiler's own log of thousands of lines, which pytest would collect.
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)
    torch._dynamo.reset()
    with warnings.catch_warnings():
        # Of torch's own modules, which differ between versions and say nothing of the code here.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
        warnings.filterwarnings("ignore", message=".*mixes the samples")  # known: the head has a BatchNorm
        yield
    torch._dynamo.reset()


class Margin:
    """A kind of score that cannot be hashed; two of them look alike when printed."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, sign):
        self.sign = sign

    def __repr__(self):
        return "Margin()"

    def __call__(self, scores, labels):
        return self.sign * (scores[:, 0] - scores[:, 1:].square().mean(1))


def several():
    """Terms with scores and weightings of their own."""
    terms = {
        "first": BatchCamLoss(MAPS, distance="ssim"),
        "faithful": (PrototypeLoss(MAPS), 0.5),
        "every class": (PrototypeLoss(MAPS, distance="l2"), 0.25),
        "margin": (PrototypeLoss(MAPS), 2.0),
        "against": (PrototypeLoss(MAPS), 4.0),
        "image": ImageLoss(),
    }
    terms["faithful"][0].method = hires_cam
    terms["every class"][0].score = "log_prob_sum"
    terms["every class"][0].method = "layer_cam"
    terms["margin"][0].score = Margin(1.0)
    terms["against"][0].score = Margin(-1.0)
    return terms


def streamed():
    prototypes = ClassPrototypes(K, mean=0.1, std=2.0)
    prototypes.update(MAPS.repeat(2, 1, 1, 1), torch.arange(10) % K)
    return prototypes


LOSSES = {
    "batch_cam": lambda: BatchCamLoss(MAPS, distance="ssim"),
    "prototype": lambda: PrototypeLoss(streamed()),
    "contrastive": lambda: PrototypeContrastiveLoss(MAPS),
    "image": ImageLoss,
    "several": several,
    "memory": lambda: BatchCamLoss(MAPS, memory=2),
    "self": lambda: PrototypeLoss(RunningPrototypes(K)),
}
LABELS = {
    "indices": lambda labels: labels,
    "ignored": lambda labels: labels.where(torch.arange(len(labels)) != 1, -100),
    "soft": lambda labels: (
        torch.eye(K, dtype=torch.double)[labels].roll(1, 1) / 3
        + torch.eye(K, dtype=torch.double)[labels] * 2 / 3
    ),
}


def split_of(model, losses, weight=1.0, **options):
    return CamRegularizer(Split(model.trunk, model.head), losses, weight, **options)


def step_of(regularizer, task=F.cross_entropy):
    """(images, labels) -> the objective, by either regularizer."""

    def split(images, labels, **options):
        scores, cam_loss = regularizer.run(images, labels, **options)
        return task(scores, labels) + cam_loss

    def hooks(images, labels, **options):
        with regularizer:
            scores = regularizer.grad_cam.forward_func(images)
        return task(scores, labels) + regularizer(scores, labels, images=images, **options)

    return split if isinstance(regularizer.grad_cam, Split) else hooks


def train(step, regularizer, batches, **options):
    """Losses, values; parameters' gradients are left in the model."""
    seen = []
    for i, (images, labels) in enumerate(batches):
        torch.manual_seed(i)
        loss = step(images, labels, **options)
        loss.backward()
        seen.append((loss.detach(), dict(regularizer.values)))
        regularizer.step()
    return seen


def assert_same(ours, theirs, *, tolerance=1e-10):
    for (loss, values), (other, expected) in zip(ours, theirs, strict=True):
        assert_close(loss, other, rtol=tolerance, atol=0)
        assert values.keys() == expected.keys()
        for name, value in values.items():
            assert not value.requires_grad
            assert_close(value, expected[name], rtol=tolerance, atol=tolerance, msg=name)


def assert_same_model(model, twin, *, tolerance=1e-10):
    largest = max(float(p.grad.abs().max()) for p in twin.parameters())
    for (name, parameter), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert_close(parameter.grad, other.grad, rtol=0, atol=tolerance * largest, msg=name)
    for (name, buffer), other in zip(model.named_buffers(), twin.buffers(), strict=True):
        assert_close(buffer, other, rtol=0, atol=1e-12, msg=name)


@pytest.mark.parametrize(
    ("losses", "labels_of"),
    [
        *((losses, LABELS["indices"]) for losses in LOSSES.values()),
        *((several, of) for of in LABELS.values()),
    ],
    ids=[*LOSSES, *LABELS],
)
def test_equals_cam_regularizer_with_batch_norm_and_dropout_in_train_mode(losses, labels_of):
    model = parts()
    twin = copy.deepcopy(model)
    images, labels = batch()
    batches = [(images, labels_of(labels)), (images.flip(0), labels_of(labels.flip(0)))]
    terms = losses()
    ours = split_of(model, terms)
    theirs = CamRegularizer(BatchGradCam(twin, twin.trunk), copy.deepcopy(terms))
    weights = {"sample_weights": torch.tensor([1.0, 2.0, 0.0, 1.0, 0.5, 1.0])}
    assert_same(
        train(step_of(ours), ours, batches, **weights), train(step_of(theirs), theirs, batches, **weights)
    )
    assert_same_model(model, twin)


def test_equals_a_loop_over_samples():
    model = Parts().double()
    twin = copy.deepcopy(model)
    images, labels = torch.rand(6, 1, 8, 8, dtype=torch.double), torch.arange(6) % 3
    regularizer = CamRegularizer(
        Split(nn.Sequential(model.trunk, model.layer), nn.Sequential(model.middle, model.head)),
        BatchCamLoss(exact_maps()),
        0.75,
    )
    scores, cam_loss = regularizer.run(images, labels)
    expected = gradients(by_hand(twin, images, labels, exact_maps().double(), 0.75), twin)
    ours = gradients(F.cross_entropy(scores, labels) + cam_loss, model)
    for name, gradient in expected.items():
        assert_close(ours[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


def test_the_cam_loss_alone_reaches_the_head():
    model = Parts().double()
    twin = copy.deepcopy(model)
    images, labels = torch.rand(6, 1, 8, 8, dtype=torch.double), torch.arange(6) % 3
    head = nn.Sequential(model.middle, model.head)
    split = Split(nn.Sequential(model.trunk, model.layer), head)
    CamRegularizer(split, PrototypeLoss(exact_maps())).run(images, labels).loss.backward()
    _, found = terms(twin, images, labels, exact_maps().double(), kinds=["prototype"])
    expected = gradients(found["prototype"], twin)["head.1.weight"]
    assert expected.abs().max() > 1e-5
    assert_close(model.head[1].weight.grad, expected, rtol=1e-9, atol=1e-13)


#: The backend for tests of what is compiled anew, of many terms, and of what is read at a check: Dynamo's graph as it is, in half
#: the time. The others have "aot_eager", and with it the gradients that AOTAutograd makes.
ONCE = "eager"


def compiled(regularizer, backend="aot_eager", task=F.cross_entropy):
    counter = CompileCounterWithBackend(backend)
    return torch.compile(step_of(regularizer, task), fullgraph=True, backend=counter), counter


#: Compiling takes its time by the term, and as much again by the step: so all that keep no state are terms of one step.
COMPILED = {
    "stateless": lambda: several() | {name: LOSSES[name]() for name in ("prototype", "contrastive")},
    "remembering": lambda: {name: LOSSES[name]() for name in ("memory", "self")},
}


@pytest.mark.parametrize(
    ("losses", "backend", "compilations"), [("stateless", ONCE, 1), ("remembering", "aot_eager", 2)]
)
def test_a_compiled_step_is_the_step(losses, backend, compilations):
    model = parts()
    twin = copy.deepcopy(model)
    terms = COMPILED[losses]()
    ours, theirs = split_of(model, terms), split_of(twin, copy.deepcopy(terms))
    step, counter = compiled(ours, backend)
    batches = [batch(), batch(), batch()]
    options = {"sample_weights": torch.rand(6), "masks": torch.ones(6, 1, 10, 10)}
    assert_same(train(step, ours, batches, **options), train(step_of(theirs), theirs, batches, **options))
    assert_same_model(model, twin)
    assert ours.evaluate(*batch())  # compiles nothing
    # What remembers takes its shape from the first batch.
    assert counter.frame_count == compilations
    ours.check()


def test_a_schedule_and_a_loaded_state_compile_nothing_anew_but_for_zero():
    model = parts()
    twin = copy.deepcopy(model)
    ours, theirs = (split_of(each, BatchCamLoss(MAPS), lambda step: step % 3) for each in (model, twin))
    step, counter = compiled(ours, ONCE)
    batches = [batch()] * 5
    assert_same(train(step, ours, batches), train(step_of(theirs), theirs, batches))
    assert_same_model(model, twin)
    assert ours.read_weights() == theirs.read_weights() == {"batch_cam": 5 % 3}
    ours.load_state_dict(theirs.state_dict() | {"_extra_state": {"steps": 7}})
    for _ in range(2):
        theirs.step()
    batches = [batch()]
    assert_same(train(step, ours, batches), train(step_of(theirs), theirs, batches))
    assert ours.steps == 8
    assert counter.frame_count == 2
    # The state is that of a regularizer on hooks.
    hooks = CamRegularizer(BatchGradCam(model, model.trunk), BatchCamLoss(MAPS), Cosine(1.0, steps=9))
    hooks.load_state_dict(ours.state_dict())
    assert hooks.steps == 8


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles C++ on the CPU")
def test_inductor():
    model = parts()
    twin = copy.deepcopy(model)
    ours, theirs = (
        split_of(each, BatchCamLoss(MAPS), LinearWarmup(1.0, steps=3, start=0.5)) for each in (model, twin)
    )
    step, counter = compiled(ours, "inductor")
    with torch._inductor.config.patch(fallback_random=True):  # or its dropout masks are others than eager's
        assert_same(
            train(step, ours, [batch()] * 3), train(step_of(theirs), theirs, [batch()] * 3), tolerance=1e-9
        )
    assert_same_model(model, twin, tolerance=1e-9)
    assert counter.frame_count == 1


def test_what_a_compiled_step_finds_wrong_raises_at_check():
    model = parts(norm=False, dropout=0.0)
    seen = ClassPrototypes(K)
    seen.update(MAPS[1:], torch.arange(1, K))
    dead = PrototypeLoss(MAPS)
    dead.score = Margin(0.0)
    regularizer = split_of(model, {"label": BatchCamLoss(MAPS), "seen": PrototypeLoss(seen), "dead": dead})
    step, counter = compiled(regularizer, ONCE, lambda scores, labels: scores.square().mean())
    images, labels = batch()
    known = labels.clamp(min=1)
    step(images, known)
    with pytest.warns(UserWarning, match="dead"):
        regularizer.check()
    step(images, labels)  # class 0 was never seen
    step(images, known)
    with pytest.raises(ValueError, match=r"^seen: "):
        regularizer.check()
    regularizer.check()
    step(images, known + 3)
    with pytest.raises(ValueError, match=r"^label: .*; seen: "):
        regularizer.read_values()
    step(images * torch.nan, known)
    with pytest.raises(ValueError, match=r"^scores: "):
        regularizer.check()
    step(images, known)
    regularizer.check()
    assert counter.frame_count == 1


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("function", [False, True], ids=["modules", "trunk is a function"])
def test_evaluate_leaves_everything_as_it_was(function, training, context):
    model = parts().train(training)
    regularizer = CamRegularizer(
        Split((lambda x: model.trunk(x)) if function else model.trunk, model.head), several()
    )
    images, labels = batch()
    step_of(regularizer)(images, labels).backward()
    values, weights = dict(regularizer.values), dict(regularizer.current_weights)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    grads = [parameter.grad.clone() for parameter in model.parameters()]
    rng = torch.get_rng_state()
    with context():
        result = regularizer.evaluate(images.clone(), labels.clone())
    assert torch.equal(torch.get_rng_state(), rng)
    assert model.training is training
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert all(torch.equal(a, b.grad) for a, b in zip(grads, model.parameters(), strict=True))
    assert regularizer.values == values
    assert regularizer.current_weights == weights
    assert result.keys() == values.keys()
    assert not any(value.requires_grad for value in result.values())
    if not training:
        for name, value in result.items():
            assert_close(value, values[name])


def test_split_models_and_bound_methods():
    model = Parts().double().eval()
    images, labels = torch.rand(6, 1, 8, 8, dtype=torch.double), torch.arange(6) % 3
    chain = nn.Sequential(model.trunk, model.layer, model.middle, model.head)
    expected = CamRegularizer(BatchGradCam(chain, chain[1]), BatchCamLoss(exact_maps()))
    with expected:
        scores = chain(images)
    value = expected(scores, labels)
    bound = Split(nn.Sequential(chain[0], chain[1]).forward, nn.Sequential(chain[2], chain[3]).forward)
    for split in (split_model(chain, "1"), bound):
        output = CamRegularizer(split, BatchCamLoss(exact_maps())).run(images, labels)
        assert_close(output.scores, scores)
        assert_close(output.loss, value)


def test_it_is_no_part_of_the_model_and_keeps_its_weights_in_float32():
    model = parts()
    regularizer = split_of(model, BatchCamLoss(MAPS), 1e-9).half().eval()
    assert not list(regularizer.parameters())
    assert model.training
    assert next(model.parameters()).dtype == torch.double
    assert_close(regularizer.weights_now, torch.tensor([1e-9]))


def test_step_may_come_before_backward():
    model = parts()
    twin = copy.deepcopy(model)
    for each, early in ((model, True), (twin, False)):
        regularizer = split_of(each, BatchCamLoss(MAPS), lambda step: 1.0 + step)
        torch.manual_seed(2)
        loss = step_of(regularizer)(*batch())
        if early:
            regularizer.step()
        loss.backward()
    assert_same_model(model, twin)


def test_a_copy_and_a_pickle_work_on(tmp_path):
    model = parts()
    regularizer = split_of(model, BatchCamLoss(MAPS), LinearWarmup(1.0, steps=3, start=0.5))
    torch.save(regularizer, tmp_path / "regularizer.pt")
    expected = None
    for each in (
        regularizer,
        copy.deepcopy(regularizer),
        torch.load(tmp_path / "regularizer.pt", weights_only=False),
    ):
        torch.manual_seed(3)
        loss = each.run(*batch()).loss
        loss.backward()
        expected = loss if expected is None else expected
        assert torch.equal(loss, expected)


def test_what_cannot_be_split():
    model, loss = parts(), BatchCamLoss(MAPS)
    for given in (model, (model.trunk, model.head)):
        with pytest.raises(TypeError, match="grad_cam"):
            CamRegularizer(given, loss)
    with pytest.raises(TypeError, match="'auto'"):
        split_of(model, loss, "auto")
    with pytest.raises(ValueError, match="method"):
        CamRegularizer(Split(model.trunk, model.head, method="guesswork"), loss)
    with pytest.raises(RuntimeError, match="run"), split_of(model, loss):
        pass
    with pytest.raises(RuntimeError, match="run"):
        split_of(model, loss)(torch.rand(2, K), torch.arange(2))
