"""The losses train the head: numerically, against a loop over samples, through a regularizer, and over steps of descent."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from batchcam_captum import BatchGradCam, CamRegularizer, ForegroundLoss, functional
from batchcam_captum.functional import activation_gradients, apply_method, select_scores
from batchcam_captum.losses import LOSSES
from tests import reference
from tests.losses.family import MAKERS
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


def maps():
    return torch.rand(4, 1, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def cams_of(activations, scores, method="grad_cam", kinds=("label",)):
    cams = []
    for kind in kinds:
        (gradients,) = activation_gradients(
            select_scores(scores, LABELS, kind), [activations], create_graph=True
        )
        cams.append(apply_method(method, activations, gradients))
    return torch.cat(cams, 1)


TWO = ("label", "confused")
FAITHFUL = ("hires_cam", ("log_prob_sum",))
#: The loss, and how its cams are made.
CASES = {
    **{
        f"{name}-{distance}": (
            lambda cams, name=name, distance=distance: getattr(functional, f"{name}_loss")(
                cams, LABELS, maps()[:K], distance=distance
            ),
        )
        for name in ("prototype", "batch_cam")
        for distance in ("l1", "l2", "ssim", "cosine")
    },
    "contrastive": (lambda cams: functional.prototype_contrastive_loss(cams, LABELS, maps()[:K]),),
    "image": (lambda cams: functional.image_loss(cams, maps()),),
    "foreground": (lambda cams: functional.foreground_loss(cams, LABELS, maps()[:K]), *FAITHFUL),
    "share": (
        lambda cams: functional.foreground_loss(cams, LABELS, maps()[:K], normalization="share"),
        *FAITHFUL,
    ),
    "energy": (lambda cams: functional.energy_loss(cams, maps()),),
    "rrr_cam": (lambda cams: functional.rrr_cam_loss(cams, maps()),),
    "gradia": (lambda cams: functional.gradia_loss(cams, maps()),),
    "hint": (lambda cams: functional.hint_loss(cams, maps()),),
    "separability": (functional.separability_loss, "grad_cam", TWO),
    "consistency": (functional.consistency_loss,),
    "total_variation": (functional.total_variation_loss,),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_gradient_reaches_activations_and_head(case):
    loss, *how = case

    def checked(activations, kernel, weight):
        return loss(cams_of(activations, head(activations, kernel, weight), *how))

    given = parts()
    assert torch.autograd.gradcheck(checked, given)
    for gradient in torch.autograd.grad(checked(*given), given):
        assert gradient.abs().max() > 1e-6


@pytest.mark.parametrize("name", ["prototype", "batch_cam", "separability"])
def test_cam_loss_alone_gives_the_head_the_gradient_of_a_loop_over_samples(name):
    activations, kernel, weight = parts()
    kinds = TWO if name == "separability" else ("label",)
    cams = cams_of(activations, head(activations, kernel, weight), kinds=kinds)
    arguments = () if name == "separability" else (LABELS, maps()[:K])
    fast = torch.autograd.grad(getattr(functional, f"{name}_loss")(cams, *arguments), (kernel, weight))

    samples = []
    for activation, label in zip(activations, LABELS.tolist(), strict=True):
        sample = activation.detach()[None].requires_grad_()
        row = head(sample, kernel, weight)[0]
        confused = max((c for c in range(K) if c != label), key=lambda c, row=row: float(row[c].detach()))
        explained = (label, confused) if name == "separability" else (label,)
        samples.append(torch.cat([reference.cam_of(sample, row[c]) for c in explained], 1))
    value = reference.reduced(getattr(reference, f"{name}_losses")(torch.cat(samples), *arguments), "mean")
    for quick, expected in zip(fast, torch.autograd.grad(value, (kernel, weight)), strict=True):
        assert quick.abs().max() > 1e-3
        assert_close(quick, expected, rtol=1e-9, atol=1e-12)


def training_batch(name):
    """Images of 8×8, labels and masks; for consistency both views."""
    images, labels = batch(12)
    where = torch.zeros(12, 1, 8, 8)
    where[:, :, 2:5, 1:6] = 1
    if name == "consistency":
        return torch.cat([images, images.flip(-1)]), labels.repeat(2), where.repeat(2, 1, 1, 1)
    return images, labels, where


def loss_of(name):
    if name.startswith("foreground"):
        foregrounds = torch.zeros(K, 1, 8, 8)
        for c in range(K):
            foregrounds[c, :, c : c + 4, 2:7] = 1
        return ForegroundLoss(foregrounds, normalization="share" if "share" in name else "none")
    if name in ("prototype", "batch_cam", "prototype_contrastive"):
        return LOSSES[name](torch.rand(K, 1, 8, 8))
    return MAKERS[name]()


@pytest.mark.parametrize("name", MAKERS)
def test_cam_loss_alone_trains_the_head_and_descent_lowers_it(name):
    model = Net(dropout=0.0)
    images, labels, where = training_batch(name)
    regularizer = CamRegularizer(BatchGradCam(model, model.layer), loss_of(name))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    values = []
    for _ in range(40):
        with regularizer:
            scores = model(images)
        value = regularizer(scores, labels, images=images, masks=where)
        optimizer.zero_grad()
        value.backward()
        for name_of_weight, weight in model.head.named_parameters():
            if not values and name_of_weight.endswith("weight"):
                assert weight.grad.abs().max() > 1e-6
        optimizer.step()
        values.append(float(value.detach()))
    assert min(values[-5:]) < 0.9 * values[0]
    assert sum(values[-5:]) < 5 * values[0]


@pytest.mark.parametrize("seed", range(2))
def test_a_network_no_longer_follows_a_mark_outside_the_foreground(seed):
    """Training images carry a mark at the edge that tells the class; then the mark tells another class than the object."""

    def images(labels, marks):
        x = torch.rand(len(labels), 1, 12, 12) * 0.3
        for i, (label, mark) in enumerate(zip(labels.tolist(), marks.tolist(), strict=True)):
            x[i, 0, 5 + label, 3:9] += 0.3  # what the class is
            x[i, 0, 0:2, 4 * mark : 4 * mark + 2] = 1.5  # what gives it away
        return x

    def accuracy_with_misleading_marks(weight):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 144, K))
        foreground = torch.zeros(K, 1, 12, 12)
        foreground[:, :, 3:10] = 1  # what a convolution sees of the mark ends above
        regularizer = CamRegularizer(BatchGradCam(model, "1"), ForegroundLoss(foreground), weight=weight)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(60):
            labels = torch.randint(K, (48,))
            with regularizer:
                scores = model(images(labels, labels))
            loss = F.cross_entropy(scores, labels) + regularizer(scores, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        labels = torch.randint(K, (300,))
        scores = model(images(labels, (labels + 1) % K))
        return float((scores.argmax(1) == labels).float().mean())

    assert accuracy_with_misleading_marks(0.0) < 0.5
    assert accuracy_with_misleading_marks(1.0) > 0.9
