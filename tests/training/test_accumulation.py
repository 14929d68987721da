"""Accumulated gradients, several optimizers, several orders of backward: each equal to a loop over samples, in float64."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from batchcam_captum import BatchCamLoss, BatchGradCam, CamRegularizer, PrototypeLoss
from tests.reference_training import K, Parts, exact_maps, gradients, objective, terms
from tests.training.models import hooks_of

MAPS = exact_maps()


@pytest.fixture
def model():
    return Parts().double()


def batches(count, n=6):
    return [(torch.rand(n, 1, 8, 8, dtype=torch.double), torch.arange(n) % K) for _ in range(count)]


def regularizer_of(model, loss=BatchCamLoss, layer="layer", **options):
    return CamRegularizer(BatchGradCam(model, layer), loss(MAPS), **options)


def step(regularizer, model, images, labels):
    with regularizer:
        scores = model(images)
    return F.cross_entropy(scores, labels) + regularizer(scores, labels)


def by_hand(model, images, labels, **options):
    return gradients(objective(model, images, labels, MAPS.double(), **options), model)


def assert_equal(ours, theirs):
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    assert largest > 1e-3
    for name, gradient in theirs.items():
        assert_close(ours[name], gradient, rtol=1e-9, atol=1e-11 * largest, msg=name)


@pytest.mark.parametrize("kind", ["batch_cam", "prototype"])
@pytest.mark.parametrize("distance", ["l1", "l2", "cosine"])
def test_a_step_equals_the_loop_over_samples(model, kind, distance):
    twin = copy.deepcopy(model)
    ((images, labels),) = batches(1)
    loss = {"batch_cam": BatchCamLoss, "prototype": PrototypeLoss}[kind]
    regularizer = regularizer_of(model, lambda maps: loss(maps, distance=distance), weight=0.7)
    step(regularizer, model, images, labels).backward()
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert_equal(ours, by_hand(twin, images, labels, weight=0.7, kinds=[kind], distance=distance))


def test_the_cam_loss_alone_reaches_the_head(model):
    # Of the linear layer the first-order part would be nothing: its weights are the channels' weights.
    twin = copy.deepcopy(model)
    ((images, labels),) = batches(1)
    regularizer = regularizer_of(model)
    with regularizer:
        scores = model(images)
    regularizer(scores, labels).backward()
    _, found = terms(twin, images, labels, MAPS.double())
    expected = gradients(found["batch_cam"], twin)
    assert expected["head.1.weight"].abs().max() > 1e-3
    assert_close(model.head[1].weight.grad, expected["head.1.weight"], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_accumulated_gradients_are_the_mean_over_micro_batches(model, set_to_none):
    twin, micro = copy.deepcopy(model), batches(3)
    regularizer = regularizer_of(model)
    step(regularizer, model, *batches(1)[0]).backward()
    model.zero_grad(set_to_none=set_to_none)
    model.load_state_dict(twin.state_dict())
    for images, labels in micro:
        (step(regularizer, model, images, labels) / len(micro)).backward()
    assert regularizer.steps == 0
    regularizer.step()
    assert regularizer.steps == 1
    separate = [by_hand(twin, images, labels) for images, labels in micro]
    expected = {name: sum(each[name] for each in separate) / len(micro) for name in separate[0]}
    assert_equal({name: parameter.grad for name, parameter in model.named_parameters()}, expected)


def test_micro_batches_may_be_summed_before_one_backward(model):
    twin, micro = copy.deepcopy(model), batches(3)
    regularizer = regularizer_of(model)
    sum(step(regularizer, model, images, labels) for images, labels in micro).backward()
    separate = [by_hand(twin, images, labels) for images, labels in micro]
    expected = {name: sum(each[name] for each in separate) for name in separate[0]}
    assert_equal({name: parameter.grad for name, parameter in model.named_parameters()}, expected)


@pytest.mark.parametrize("order", ["together", "cam first", "task first", "task twice"])
def test_orders_of_backward(model, order):
    twin = copy.deepcopy(model)
    ((images, labels),) = batches(1)
    regularizer = regularizer_of(model)
    with regularizer:
        scores = model(images)
    if order == "cam first":
        regularizer(scores, labels).backward(retain_graph=True)
        F.cross_entropy(scores, labels).backward()
    elif order == "together":
        (regularizer(scores, labels) + F.cross_entropy(scores, labels)).backward()
    else:
        F.cross_entropy(scores, labels).backward(retain_graph=True)
        regularizer(scores, labels).backward()
    expected = by_hand(twin, images, labels)
    if order == "task twice":
        F.cross_entropy(model(images), labels).backward()
        task, _ = terms(twin, images, labels, MAPS.double())
        again = gradients(task, twin)
        expected = {name: expected[name] + again[name] for name in expected}
    assert_equal({name: parameter.grad for name, parameter in model.named_parameters()}, expected)


def test_the_retained_graph_gives_the_same_gradient_again(model):
    ((images, labels),) = batches(1)
    loss = step(regularizer_of(model), model, images, labels)
    loss.backward(retain_graph=True)
    first = model.head[1].weight.grad.clone()
    loss.backward()
    assert torch.equal(model.head[1].weight.grad, 2 * first)


def trained(model, steps, alternate):
    """Two optimizers: the trunk's, and that of what follows the layer. ``steps`` gives the loss of each step."""
    behind = [*model.middle.parameters(), *model.head.parameters()]
    optimizers = [
        torch.optim.SGD(model.trunk.parameters(), lr=0.1, momentum=0.9),
        torch.optim.Adam(behind, lr=0.01),
    ]
    for i, loss in enumerate(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        gradient = loss()
        if gradient is not None:
            for name, parameter in model.named_parameters():
                parameter.grad = gradient[name]
        for optimizer in [optimizers[i % 2]] if alternate else optimizers:
            optimizer.step()
    return dict(model.named_parameters())


@pytest.mark.parametrize("alternate", [False, True], ids=["both", "alternating"])
def test_two_optimizers(model, alternate):
    twin, start, data = copy.deepcopy(model), copy.deepcopy(model), batches(4)
    regularizer = regularizer_of(model)

    def step_of(images, labels):
        return lambda: step(regularizer, model, images, labels).backward()

    ours = trained(model, [step_of(*each) for each in data], alternate)
    theirs = trained(twin, [lambda each=each: by_hand(twin, *each) for each in data], alternate)
    for (name, parameter), before in zip(theirs.items(), start.parameters(), strict=True):
        assert_close(ours[name], parameter, rtol=1e-7, atol=1e-9, msg=name)
        # What a BatchNorm subtracts again has no gradient.
        assert name == "trunk.0.bias" or (parameter - before).abs().max() > 1e-3


def test_two_regularizers_with_different_layers_may_nest(model):
    twin = copy.deepcopy(model)
    ((images, labels),) = batches(1)
    first, second = regularizer_of(model), regularizer_of(model, PrototypeLoss, "middle", weight=0.5)
    with first, second:
        scores = model(images)
    (F.cross_entropy(scores, labels) + second(scores, labels) + first(scores, labels)).backward()
    maps = MAPS.double()
    task, found = terms(twin, images, labels, maps)
    _, others = terms(twin, images, labels, maps, kinds=["prototype"], layers=["middle"])
    expected = gradients(task + found["batch_cam"] + 0.5 * others["prototype"], twin)
    assert_equal({name: parameter.grad for name, parameter in model.named_parameters()}, expected)
    assert hooks_of(model) == 0


def test_a_capture_is_used_once_and_the_other_regularizer_keeps_its_own(model):
    ((images, labels),) = batches(1)
    first, second = regularizer_of(model), regularizer_of(model)
    with first, second:
        scores = model(images)
    value = first(scores, labels)
    with pytest.raises(RuntimeError, match=r"got none; .*call the regularizer once for each such block"):
        first(scores, labels)
    assert_close(second(scores, labels), value)
    assert step(first, model, images, labels).isfinite()  # the next step works
