"""Half types: cams and losses in float32 of what the half-precision network computed, gradients within its precision."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from batchcam_captum import BatchCamLoss, BatchGradCam, CamRegularizer, PrototypeLoss
from batchcam_captum.attribution import Split
from batchcam_captum.functional import grad_cam
from batchcam_captum.losses import CamLoss
from batchcam_captum.training import AutoWeight
from tests.reference import batch_cam_losses, prototype_losses, reduced
from tests.reference_training import (
    K,
    Parts,
    exact_maps,
    gradients,
    label_score,
    log_prob_sum,
    sample_cams,
)
from tests.training.models import captured

HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
BOTH = pytest.mark.parametrize("kind", ["hooks", "split"])
#: Image, weights and outputs of three layers, three more operators between them, and the same again on the way back: so many
#: values are rounded on a path. Each is off by at most u = eps / 2, this way or that: √24 u altogether.
ROUNDINGS = 24


def tolerance(dtype):
    return math.sqrt(ROUNDINGS) * torch.finfo(dtype).eps / 2


class Smooth(CamLoss):
    """Without a maximum or a kink, which the rounding of a cam could move to another pixel."""

    def per_sample(self, samples):
        self.seen = samples.cams
        maps = exact_maps()[samples.labels].to(samples.cams.dtype)
        return (samples.cams - maps).square().flatten(1).mean(1)


@pytest.fixture
def given():
    return Parts(), torch.rand(9, 1, 8, 8), torch.arange(9) % K


def off(ours, theirs):
    """‖ours − theirs‖ / ‖theirs‖ over all parameters."""
    ours, theirs = (torch.cat([g.double().flatten() for g in named.values()]) for named in (ours, theirs))
    assert theirs.norm() > 1e-3
    return float((ours - theirs).norm() / theirs.norm())


def exact(model, images, labels, score=label_score):
    """Smooth's gradients by a loop over samples in float64, of the weights as they are rounded already."""
    twin = copy.deepcopy(model).double()
    _, cams = sample_cams(twin, images.double(), labels, score=score)
    return gradients(Smooth()(cams["layer"], labels), twin)


def regularizer_of(model, loss, kind="hooks", **options):
    if kind == "hooks":
        return CamRegularizer(BatchGradCam(model, "layer"), loss, **options)
    parts = Split(nn.Sequential(model.trunk, model.layer), nn.Sequential(model.middle, model.head))
    return CamRegularizer(parts, loss, **options)


def run(regularizer, images, labels):
    """Return the scores and the cam loss, by either kind of regularizer."""
    if isinstance(regularizer.grad_cam, Split):
        return regularizer.run(images, labels)
    scores = captured(regularizer, images)
    return scores, regularizer(scores, labels)


@BOTH
@HALF
@pytest.mark.parametrize("way", ["forward", "forward and losses", "weights"])
def test_gradients(given, dtype, way, kind):
    model, images, labels = given
    loss, cast = Smooth(), way == "weights"
    if cast:
        # A BatchNorm in a half type rounds the mean of a channel, which shifts all of it: the network's affair, and no sum of
        # independent errors.
        model.trunk[1] = nn.Identity()
        images = images.to(model.to(dtype).head[1].weight)
    expected = exact(model, images, labels)
    regularizer = regularizer_of(model, loss, kind)
    if way == "forward" and kind == "hooks":
        with torch.autocast("cpu", dtype=dtype):
            scores = captured(regularizer, images)
        value = regularizer(scores, labels)
    else:
        with torch.autocast("cpu", dtype=dtype, enabled=not cast):
            scores, value = run(regularizer, images, labels)
    assert scores.dtype == dtype
    assert loss.seen.dtype == value.dtype == torch.float32
    ours = gradients(value, model)
    assert {gradient.dtype for gradient in ours.values()} == {dtype if cast else torch.float32}
    assert 0 < off(ours, expected) < tolerance(dtype)


@HALF
@pytest.mark.parametrize(
    ("make", "twin"), [(BatchCamLoss, batch_cam_losses), (PrototypeLoss, prototype_losses)]
)
def test_losses_are_exact_functions_of_the_half_precision_activations(given, dtype, make, twin):
    # Nothing after the activations and their gradients is rounded to the half type: float64 of these gives the same value.
    model, images, labels = given
    distances = ["l1", "l2", "ssim", "cosine"]
    losses = {distance: make(exact_maps(), distance=distance) for distance in distances}
    regularizer, seen = regularizer_of(model, losses), []
    handle = model.layer.register_forward_hook(lambda *values: seen.append(values[2]))
    with torch.autocast("cpu", dtype=dtype):
        scores, _ = run(regularizer, images, labels)
    handle.remove()
    (slopes,) = torch.autograd.grad(scores.float().gather(1, labels[:, None]).sum(), seen)
    assert seen[0].dtype == slopes.dtype == dtype
    cams = grad_cam(seen[0].double(), slopes.double())
    for distance in distances:
        expected = reduced(twin(cams, labels, exact_maps().double(), distance=distance), "mean")
        assert_close(regularizer.values[distance].double(), expected, rtol=2e-5, atol=0)


@pytest.mark.filterwarnings("ignore:.*all maps are dead")  # Σ log p falls with every class
@BOTH
@HALF
def test_log_probabilities_of_scores_in_half_types(given, dtype, kind):
    # A logarithm of a softmax in bfloat16 has two digits, and where the scores are sure of a class fewer.
    model, images, labels = given
    with torch.no_grad():
        model.head[1].weight *= 5  # sure of a class: 1 - K p is not the difference of two like numbers
    loss = Smooth()
    loss.score = "log_prob_sum"
    expected = exact(model, images, labels, log_prob_sum)
    with torch.autocast("cpu", dtype=dtype):
        scores, value = run(regularizer_of(model, loss, kind), images, labels)
    assert (scores.dtype, value.dtype) == (dtype, torch.float32)
    # A score s is off by u |s|, and so is its exponent.
    assert off(gradients(value, model), expected) < tolerance(dtype) * (1 + scores.abs().max())


def scaled_step(model, scale, images, labels, *, clip=None, weight=1.0, optimizer=None):
    regularizer = regularizer_of(model, BatchCamLoss(exact_maps(), distance="l2"), weight=weight)
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    with torch.autocast("cpu", dtype=torch.float16):
        scores = captured(regularizer, images)
        task = F.cross_entropy(scores, labels)
        loss = task + regularizer(scores, labels, task_loss=task)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    norm = None if clip is None else torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    scaler.step(optimizer)
    scaler.update()
    return regularizer, found, norm, scaler


@pytest.mark.parametrize("weight", [1.0, "auto"])
def test_the_cam_comes_from_unscaled_scores(given, weight):
    model, images, labels = given
    small, large = (
        scaled_step(copy.deepcopy(model), scale, images, labels, weight=weight) for scale in (8.0, 4096.0)
    )
    assert torch.equal(small[0].values["batch_cam"], large[0].values["batch_cam"])
    assert small[0].read_weights()["batch_cam"] == large[0].read_weights()["batch_cam"] > 0
    assert off(small[1], large[1]) < tolerance(torch.float16)
    regularizer = regularizer_of(model, BatchCamLoss(exact_maps(), distance="l2"), weight=weight)
    scores = captured(regularizer, images)
    task = F.cross_entropy(scores, labels)
    expected = gradients(task + regularizer(scores, labels, task_loss=task), model)
    assert off(large[1], expected) < tolerance(torch.float16)


def test_clipping_after_unscale_sees_the_true_norm(given):
    model, images, labels = given
    _, free, _, _ = scaled_step(copy.deepcopy(model), 1024.0, images, labels)
    _, clipped, norm, _ = scaled_step(model, 1024.0, images, labels, clip=0.01)
    free, clipped = (torch.cat([g.flatten() for g in found.values()]).norm() for found in (free, clipped))
    assert_close(norm, free)
    assert_close(clipped, torch.tensor(0.01), rtol=1e-3, atol=0)


def test_a_step_that_overflows_is_skipped_and_the_next_one_works(given):
    model, images, labels = given
    before = [parameter.clone() for parameter in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer, found, _, scaler = scaled_step(model, 2.0**60, images, labels, optimizer=optimizer)
    assert not all(gradient.isfinite().all() for gradient in found.values())
    assert all(map(torch.equal, before, model.parameters()))
    assert scaler.get_scale() == 2.0**59
    assert all(value.isfinite() for value in regularizer.values.values())
    regularizer.check()
    optimizer.zero_grad()
    _, found, _, _ = scaled_step(model, 256.0, images, labels, optimizer=optimizer)
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert not torch.equal(before[0], next(model.parameters()))


def test_an_auto_weight_keeps_its_value_where_a_gradient_overflows(given):
    model, images, labels = given
    weight, lambdas = AutoWeight(every=1), []
    regularizer = regularizer_of(model, BatchCamLoss(exact_maps()), weight=weight)
    for factor in (1.0, torch.inf, 1.0):
        with torch.autocast("cpu", dtype=torch.float16):
            scores = captured(regularizer, images)
            task = F.cross_entropy(scores, labels)
            assert regularizer(scores, labels, task_loss=task * factor).isfinite()
        lambdas.append(weight.weight.item())
    assert 0 < lambdas[0] == lambdas[1]
    assert_close(lambdas[2], lambdas[0])


def test_a_regularizer_that_is_cast_keeps_its_prototypes_and_its_precision(given):
    model, images, labels = given
    regularizer = regularizer_of(model, BatchCamLoss(exact_maps()), weight=AutoWeight())
    values = []
    for _ in range(2):
        scores = captured(regularizer, images)
        values.append(regularizer(scores, labels, task_loss=scores.square().mean()))
        regularizer.half()
    assert values[1].dtype == torch.float32
    assert_close(values[1], values[0], rtol=1e-3, atol=0)
