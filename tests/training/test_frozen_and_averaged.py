"""Frozen parts are trained around, and averaged copies of the model are made, used and evaluated at any moment."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.testing import assert_close

from batchcam_captum import BatchCamLoss, BatchGradCam, CamRegularizer
from tests.reference_training import K, Parts, exact_maps, gradients, objective
from tests.training.models import hooks_of

FROZEN = {
    "trunk": ["trunk"],
    "trunk and layer's own": ["trunk", "layer"],
    "all but the last linear": ["trunk", "layer", "middle"],
    "head": ["middle", "head"],
    "head's last": ["head"],
}


def batch(n=6):
    return torch.rand(n, 1, 8, 8, dtype=torch.double), torch.arange(n) % K


def regularizer_of(model, layer="layer", **options):
    return CamRegularizer(BatchGradCam(model, layer), BatchCamLoss(exact_maps()), **options)


def step(regularizer, model, images, labels):
    with regularizer:
        scores = model(images)
    return F.cross_entropy(scores, labels) + regularizer(scores, labels)


@pytest.mark.parametrize("running", ["train", "eval"])
@pytest.mark.parametrize("frozen", FROZEN)
def test_what_is_not_frozen_gets_the_gradient_of_a_loop_over_samples(frozen, running):
    model = Parts().double()
    model.trunk.train(running == "train")
    twin = copy.deepcopy(model)
    for name in FROZEN[frozen]:
        model.get_submodule(name).requires_grad_(False)
    images, labels = batch()
    regularizer = regularizer_of(model)
    expected = gradients(objective(twin, images, labels, exact_maps().double()), twin)
    for _ in range(2):  # nothing is left behind that would change the second step
        model.zero_grad()
        step(regularizer, model, images, labels).backward()
        for name, parameter in model.named_parameters():
            if name.startswith(tuple(f"{part}." for part in FROZEN[frozen])):
                assert parameter.grad is None
                assert not parameter.requires_grad
            else:
                assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-12, msg=name)
    assert any(parameter.grad is not None for parameter in model.parameters())


def test_a_model_without_anything_to_train_still_gives_a_value():
    model = Parts().double().requires_grad_(False)
    images, labels = batch()
    regularizer = regularizer_of(model)
    with regularizer:
        scores = model(images)
    value = regularizer(scores, labels)
    assert value > 0


COPIES = {
    "deepcopy": copy.deepcopy,
    "timm's EMA": lambda model: ModelEmaV3(model, decay=0.5, min_decay=0.0),
}


def of_copy(made):
    return made if isinstance(made, Parts) else made.module


@pytest.mark.parametrize("when", ["inside", "captured"])
@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_copies_of_a_model_with_a_regularizer_around_it(make, when):
    model = Parts().double()
    twin = copy.deepcopy(model)
    images, labels = batch()
    regularizer = regularizer_of(model)
    copies = []

    def at(moment):
        if moment == when:
            copies.append(make(model))

    at("before")
    with regularizer:
        scores = model(images)
        at("inside")
    at("captured")
    (F.cross_entropy(scores, labels) + regularizer(scores, labels)).backward()
    at("after")
    expected = gradients(objective(twin, images, labels, exact_maps().double()), twin)
    assert_close(model.head[1].weight.grad, expected["head.1.weight"], rtol=1e-9, atol=1e-13)
    made = of_copy(copies[0])
    made.train()  # timm's is in eval mode
    with regularizer:
        watched = model(images)
        with torch.no_grad():
            assert_close(made(images), watched)  # another model: not captured
    assert hooks_of(model) == hooks_of(made) == 0
    assert regularizer(watched, labels).isfinite()
    # The copy is explained, and trained, by itself.
    its_own = regularizer_of(made)
    loss = step(its_own, made, images, labels)
    assert loss.isfinite()
    assert its_own.evaluate(images, labels)["batch_cam"] > 0


def test_an_average_is_evaluated_by_a_regularizer_of_its_own_and_statistics_are_updated():
    model = Parts().double()
    images, labels = batch()
    regularizer = regularizer_of(model)
    average = AveragedModel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        step(regularizer, model, images, labels).backward()
        optimizer.step()
        average.update_parameters(model)
    update_bn([images], average)
    inner = regularizer_of(average.module)
    wrapped = CamRegularizer(BatchGradCam(average, average.module.layer), BatchCamLoss(exact_maps()))
    average.eval()
    values = inner.evaluate(images, labels), wrapped.evaluate(images, labels)
    by_hand = copy.deepcopy(average.module)
    task = F.cross_entropy(by_hand(images), labels)
    expected = objective(by_hand, images, labels, exact_maps().double()) - task
    for value in values:
        assert_close(value["batch_cam"], expected.detach(), rtol=1e-9, atol=0)
    assert hooks_of(average) == 0


def test_a_copy_of_the_regularizer_copies_its_model_and_trains_it():
    model = Parts().double()
    images, labels = batch()
    regularizer = regularizer_of(model)
    step(regularizer, model, images, labels).backward()
    other = copy.deepcopy(regularizer)
    network = other.grad_cam.forward_func
    assert isinstance(network, nn.Module)
    model.zero_grad()
    network.zero_grad()
    losses = [step(r, m, images, labels) for r, m in ((regularizer, model), (other, network))]
    for loss in losses:
        loss.backward()
    assert torch.equal(*losses)
    for ours, theirs in zip(network.parameters(), model.parameters(), strict=True):
        assert ours is not theirs
        assert torch.equal(ours.grad, theirs.grad)
