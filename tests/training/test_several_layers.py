"""Several layers: each term is the mean over them, in value and gradient, from one gradient for all layers."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from batchcam_captum import BatchCamLoss, BatchGradCam, CamRegularizer, PrototypeLoss
from batchcam_captum.prototypes import RunningPrototypes
from batchcam_captum.training import AutoWeight
from tests.reference_training import K, Parts, exact_maps, gradients, objective, sample_cams, terms
from tests.training.models import hooks_of

LAYERS = ["layer", "middle"]


def batch(n=6):
    return torch.rand(n, 1, 8, 8, dtype=torch.double), torch.arange(n) % K


def regularizer_of(model, losses=None, layers=LAYERS, **options):
    losses = BatchCamLoss(exact_maps()) if losses is None else losses
    return CamRegularizer(BatchGradCam(model, layers), losses, **options)


def step(regularizer, model, images, labels, **options):
    with regularizer:
        scores = model(images)
    task = F.cross_entropy(scores, labels)
    return task + regularizer(scores, labels, task_loss=task, **options)


@pytest.mark.parametrize("layers", [LAYERS, LAYERS[::-1]], ids=["in order", "reversed"])
def test_gradients_equal_a_loop_over_samples_and_layers(layers):
    model = Parts().double()
    twin = copy.deepcopy(model)
    images, labels = batch()
    losses = [BatchCamLoss(exact_maps()), PrototypeLoss(exact_maps())]
    regularizer = regularizer_of(model, losses, layers, weight=0.5)
    step(regularizer, model, images, labels).backward()
    options = {"kinds": ["batch_cam", "prototype"], "layers": LAYERS}
    expected = gradients(objective(twin, images, labels, exact_maps().double(), 0.5, **options), twin)
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-12, msg=name)
    _, found = terms(twin, images, labels, exact_maps().double(), **options)
    for name, value in found.items():
        assert_close(regularizer.values[name], value.detach(), rtol=1e-9, atol=0)
        parts = [regularizer.values[f"{name}/{layer}"] for layer in LAYERS]
        assert parts[0] != parts[1]
        assert_close(sum(parts) / 2, value.detach(), rtol=1e-9, atol=0)
    assert hooks_of(model) == 0


def test_one_gradient_for_all_layers(monkeypatch):
    model = Parts().double()
    images, labels = batch()
    regularizer = regularizer_of(model)
    calls = []
    original = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: calls.append(1) or original(*a, **k))
    for _ in range(2):  # the first step also tries the second derivative
        calls.clear()
        with regularizer:
            scores = model(images)
        regularizer(scores, labels)
    assert len(calls) == 1


def test_evaluate_gives_the_values_of_each_layer():
    model = Parts().double().eval()
    images, labels = batch()
    regularizer = regularizer_of(model)
    step(regularizer, model, images, labels)
    values = regularizer.evaluate(images, labels)
    assert set(values) == {"batch_cam", "batch_cam/layer", "batch_cam/middle", "dead_fraction"}
    for name, value in values.items():
        assert_close(value, regularizer.values[name])


def test_dead_fraction_is_that_of_the_layer_with_the_most():
    model = Parts().double().eval()
    with torch.no_grad():
        model.head[1].weight[
            0
        ].abs_().neg_()  # nothing at the middle layer, which is positive, speaks for class 0
    images, labels = batch()
    regularizer = regularizer_of(model)
    step(regularizer, model, images, labels)
    _, cams = sample_cams(model, images, labels, LAYERS)
    dead = [
        float((c.amax((1, 2, 3)) <= 1e-3 * c.abs().amax((1, 2, 3))).double().mean()) for c in cams.values()
    ]
    assert dead[0] != dead[1]
    assert_close(regularizer.values["dead_fraction"].item(), max(dead))


def test_auto_weight_sets_the_ratio_of_gradients_over_all_layers():
    model = Parts().double()
    images, labels = batch()
    regularizer = regularizer_of(model, weight=AutoWeight(0.3, momentum=0.0))
    with regularizer:
        scores = model(images)
        activations = [row[images.device][0] for row in regularizer._observer.activations]
    task = F.cross_entropy(scores, labels)
    cam_loss = regularizer(scores, labels, task_loss=task)
    norms = []
    for loss in (task, cam_loss):
        slopes = torch.autograd.grad(loss, activations, retain_graph=True)
        norms.append(torch.stack([slope.square().sum() for slope in slopes]).sum().sqrt())
    assert_close(norms[1] / norms[0], torch.tensor(0.3, dtype=torch.double), rtol=1e-6, atol=0)


def test_a_layer_that_does_not_run_is_named_and_the_next_step_works():
    model = Parts().double()
    images, labels = batch()
    other = torch.nn.Softplus()
    model.add_module("unused", other)
    regularizer = regularizer_of(model, layers=["layer", "unused"])
    with pytest.raises(
        RuntimeError, match=r"Softplus: expected one run of the layer inside `with reg.*got none"
    ):
        step(regularizer, model, images, labels)
    assert hooks_of(model) == 0
    assert step(regularizer_of(model), model, images, labels).isfinite()


def test_a_loss_with_a_memory_serves_one_layer():
    with pytest.raises(ValueError, match="losses"):
        regularizer_of(Parts(), PrototypeLoss(RunningPrototypes(K)))
