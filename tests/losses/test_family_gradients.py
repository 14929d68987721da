"""The new losses train the head: numerically, on a network through a regularizer, and over a few steps of descent."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from batchcam_captum import BatchGradCam, CamRegularizer, functional
from batchcam_captum.attribution import Split
from batchcam_captum.functional import activation_gradients, apply_method, select_scores
from tests import reference, reference_losses
from tests.losses.family import MAKERS, NEW
from tests.training.models import Net, batch

K = 3
LABELS = torch.tensor([0, 1, 1, 2])


def head(activations, kernel, weight):
    """A curved head, so that ∂s/∂A depends on A and on both weights."""
    hidden = F.softplus(F.conv2d(torch.tanh(activations), kernel))
    return torch.tanh(hidden).flatten(1) @ weight


def parts():
    activations = torch.randn(4, 2, 5, 5, dtype=torch.float64)
    kernel = torch.randn(2, 2, 2, 2, dtype=torch.float64)
    weight = torch.randn(2 * 4 * 4, K, dtype=torch.float64)
    return tuple(tensor.requires_grad_() for tensor in (activations, kernel, weight))


def masks():
    return torch.rand(4, 1, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


#: The loss, the map and the scores of its cams.
CASES = {
    "foreground": (
        lambda cams: functional.foreground_loss(cams, LABELS, masks()[:K]),
        "hires_cam",
        ("log_prob_sum",),
    ),
    "foreground-share": (
        lambda cams: functional.foreground_loss(cams, LABELS, masks()[:K], normalization="share"),
        "hires_cam",
        ("log_prob_sum",),
    ),
    "energy": (lambda cams: functional.energy_loss(cams, masks()), "grad_cam", ("label",)),
    "rrr_cam": (lambda cams: functional.rrr_cam_loss(cams, masks()), "grad_cam", ("label",)),
    "gradia": (lambda cams: functional.gradia_loss(cams, masks()), "grad_cam", ("label",)),
    "hint": (
        lambda cams: functional.hint_loss(cams, masks(), resolution="mask"),
        "grad_cam",
        ("label",),
    ),
    "separability": (functional.separability_loss, "grad_cam", ("label", "confused")),
    "consistency": (functional.consistency_loss, "grad_cam", ("label",)),
    "total_variation": (functional.total_variation_loss, "grad_cam", ("label",)),
}


def cams_of(activations, scores, method, kinds):
    cams = []
    for kind in kinds:
        selected = select_scores(scores, LABELS, kind)
        (gradients,) = activation_gradients(selected, [activations], create_graph=True)
        cams.append(apply_method(method, activations, gradients))
    return torch.cat(cams, 1)


@pytest.mark.parametrize(("loss", "method", "kinds"), CASES.values(), ids=CASES)
def test_gradient_reaches_activations_and_head(loss, method, kinds):
    def checked(activations, kernel, weight):
        return loss(cams_of(activations, head(activations, kernel, weight), method, kinds))

    given = parts()
    assert torch.autograd.gradcheck(checked, given)
    for gradient in torch.autograd.grad(checked(*given), given):
        assert gradient.abs().max() > 1e-6


def test_separability_gives_the_head_the_gradient_of_a_loop_over_samples():
    activations, kernel, weight = parts()
    scores = head(activations, kernel, weight)
    cams = cams_of(activations, scores, "grad_cam", ("label", "confused"))
    fast = torch.autograd.grad(functional.separability_loss(cams), (kernel, weight))

    pairs = []
    for activation, label in zip(activations, LABELS.tolist(), strict=True):
        sample = activation.detach()[None].requires_grad_()
        row = head(sample, kernel, weight)[0]
        confused = max((c for c in range(K) if c != label), key=lambda c, row=row: float(row[c].detach()))
        pairs.append(torch.cat([reference.cam_of(sample, row[c]) for c in (label, confused)], 1))
    slow = reference_losses.reduced(reference_losses.separability_losses(torch.cat(pairs)), [1.0] * 4, "mean")
    for quick, expected in zip(fast, torch.autograd.grad(slow, (kernel, weight)), strict=True):
        assert quick.abs().max() > 1e-3
        assert_close(quick, expected, rtol=1e-9, atol=1e-12)


def training_batch(name):
    """Images of 8×8, labels and masks; for consistency both views."""
    images, labels = batch(12)
    where = torch.zeros(12, 1, 8, 8)
    where[:, :, 2:5, 1:6] = 1
    if name == "consistency":
        images, labels, where = (
            torch.cat([images, images.flip(-1)]),
            labels.repeat(2),
            where.repeat(2, 1, 1, 1),
        )
    return images, labels, where


def loss_of(name):
    if not name.startswith("foreground"):
        return MAKERS[name]()
    foregrounds = torch.zeros(K, 1, 8, 8)
    for c in range(K):
        foregrounds[c, :, c : c + 4, 2:7] = 1
    return type(MAKERS[name]())(foregrounds, normalization="share" if "share" in name else "none")


@pytest.mark.parametrize("name", NEW)
def test_the_cam_loss_alone_trains_the_head_through_a_regularizer(name):
    model = Net(dropout=0.0)
    images, labels, where = training_batch(name)
    regularizer = CamRegularizer(BatchGradCam(model, model.layer), loss_of(name))
    with regularizer:
        scores = model(images)
    regularizer(scores, labels, masks=where).backward()
    for name_of_weight, weight in model.head.named_parameters():
        if name_of_weight.endswith("weight"):
            assert weight.grad.abs().max() > 1e-6
    assert ("dead_fraction" in regularizer.values) is loss_of(name).rectifies


@pytest.mark.parametrize("name", NEW)
def test_a_split_model_gives_the_same_value_and_gradients(name):
    model = Net(dropout=0.0)
    images, labels, where = training_batch(name)
    hooked = CamRegularizer(BatchGradCam(model, model.layer), loss_of(name))
    with hooked:
        scores = model(images)
    expected = hooked(scores, labels, masks=where)
    weights = list(model.head.parameters())
    by_hook = torch.autograd.grad(expected, weights, allow_unused=True)

    split = CamRegularizer(Split(nn.Sequential(model.trunk, model.layer), model.head), loss_of(name))
    actual = split.run(images, labels, masks=where)[1]
    assert_close(actual, expected)
    by_split = torch.autograd.grad(actual, weights, allow_unused=True)
    assert_close(
        [g for g in by_split if g is not None and g.any()],
        [g for g in by_hook if g is not None and g.any()],
        rtol=1e-3,
        atol=1e-6,
    )


@pytest.mark.parametrize("name", MAKERS)
def test_a_few_steps_of_descent_lower_the_value(name):
    model = Net(dropout=0.0)
    images, labels, where = training_batch(name)
    loss = loss_of(name) if name in NEW else MAKERS[name]()
    if name in ("prototype", "batch_cam", "prototype_contrastive"):
        loss = type(loss)(torch.rand(K, 1, 8, 8))
    regularizer = CamRegularizer(BatchGradCam(model, model.layer), loss)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    values = []
    for _ in range(40):
        with regularizer:
            scores = model(images)
        value = regularizer(scores, labels, images=images, masks=where)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert min(values[-5:]) < 0.9 * values[0]
    assert sum(values[-5:]) < 5 * values[0]


@pytest.mark.parametrize("name", MAKERS)
def test_loss_compiles_whole(name):
    loss = loss_of(name) if name in NEW else MAKERS[name]()
    channels = len(loss.scores)
    cams, labels = torch.randn(4, channels, 8, 8), torch.tensor([0, 1, 0, 1])
    images, where = torch.rand(4, 1, 8, 8), torch.rand(4, 1, 8, 8)
    weights = torch.tensor([1.0, 2.0, 1.0, 2.0])

    def value(cams):
        return loss(cams, labels, images=images, masks=where, sample_weights=weights)

    torch.compiler.reset()
    compiled = torch.compile(value, fullgraph=True, backend="eager")
    assert_close(compiled(cams), value(cams))
