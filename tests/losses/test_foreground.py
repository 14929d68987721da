"""The foreground loss with prototypes of every kind, and what it is for."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from batchcam_captum import BatchGradCam, CamRegularizer, ClassPrototypes, ForegroundLoss, functional
from batchcam_captum.prototypes import (
    ClusterPrototypes,
    ForegroundPrototypes,
    MaskPrototypes,
    RunningPrototypes,
)
from tests import reference_losses as twins

K = 3
LABELS = torch.tensor([0, 1, 2, 1, -100])
IMAGES = torch.rand(30, 1, 12, 12, generator=torch.Generator().manual_seed(3))


def stored(kind):
    labels = torch.arange(30) % K
    if kind == "clusters":
        loader = [(IMAGES, labels)]
        return ClusterPrototypes.from_loader(loader, K, per_class=3, progress=False)
    prototypes = {"class": ClassPrototypes, "foreground": ForegroundPrototypes}[kind](K)
    prototypes.update(IMAGES * (labels.reshape(-1, 1, 1, 1) + 1) / K, labels)
    return prototypes


@pytest.mark.parametrize("labels", ["hard", "soft"])
@pytest.mark.parametrize("normalization", ["none", "share"])
@pytest.mark.parametrize("kind", ["class", "foreground", "clusters"])
def test_stored_prototypes(kind, normalization, labels):
    prototypes = stored(kind)
    cams = torch.randn(5, 1, 6, 6, dtype=torch.float64)
    given = LABELS
    if labels == "soft":  # as label smoothing makes them, or the union of all foregrounds is everywhere
        given = nn.functional.one_hot(LABELS.clamp(min=0), K).double() * 0.9 + 0.05
    maps = prototypes.maps((6, 6)).double()
    assert maps.shape[1] == (3 if kind == "clusters" else 1)
    slow = twins.foreground_losses(cams, given, maps, normalization)
    fast = ForegroundLoss(prototypes, normalization=normalization)(cams, given)
    assert fast > 0
    assert_close(fast, twins.reduced(slow, [1.0] * 5, "mean"), rtol=1e-6, atol=1e-8)


def test_masks_as_prototypes_count_for_their_own_sample():
    cams, masks = torch.randn(5, 1, 6, 6), (torch.rand(5, 1, 12, 12) > 0.6).float()
    masks[2] = 0
    loss = ForegroundLoss(MaskPrototypes(K, skip_empty=True), reduction="none")
    values = loss(cams, LABELS, masks=masks)
    assert (values > 0).tolist() == [True, True, False, True, False]
    own = loss.references(cams, LABELS, masks, per_sample=True).maps
    outside = (1 - own) * cams
    assert_close(values[:2], outside.square().flatten(1).sum(1)[:2])
    with pytest.raises(ValueError, match=r"masks: .*aspect ratio \(6, 6\), got \(96, 12\)"):
        loss(cams, LABELS, masks=torch.ones(5, 1, 96, 12))
    with pytest.raises(ValueError, match="masks: expected masks"):
        loss(cams, LABELS)


def test_running_prototypes():
    loss = ForegroundLoss(RunningPrototypes(K))
    cams = torch.randn(5, 1, 6, 6, requires_grad=True)
    loss(cams, LABELS).backward()
    assert cams.grad[:4].flatten(1).any(1).all()
    assert not cams.grad[4].any()


def test_evidence_inside_costs_nothing_for_or_against_the_class():
    foreground = torch.zeros(K, 1, 12, 12)
    foreground[..., :6] = 1
    inside = torch.zeros(2, 1, 6, 6)
    inside[0, ..., :3], inside[1, ..., :3] = 2, -2
    labels = torch.tensor([0, 1])
    for normalization in ("none", "share"):
        outside = functional.foreground_loss(inside.flip(-1), labels, foreground, normalization=normalization)
        assert functional.foreground_loss(inside, labels, foreground, normalization=normalization) == 0
        assert outside == (2**2 * 18 if normalization == "none" else 1)
    assert functional.foreground_loss(3 * inside.flip(-1), labels, foreground) == 9 * 2**2 * 18


def test_labels_together_have_the_union_of_their_foregrounds():
    foreground = torch.zeros(K, 1, 6, 6)
    foreground[0, ..., :3], foreground[1, ..., 2:4] = 1, 1
    cams = torch.ones(1, 1, 6, 6)
    both = torch.tensor([[1.0, 1, 0]])
    assert functional.foreground_loss(cams, both, foreground) == 12
    mixed = torch.tensor([[0.5, 0.25, 0]])
    assert functional.foreground_loss(cams, mixed, foreground) == 12 + 6 * 0.5**2


@pytest.mark.parametrize("seed", range(3))
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
            loss = nn.functional.cross_entropy(scores, labels) + regularizer(scores, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        labels = torch.randint(K, (300,))
        scores = model(images(labels, (labels + 1) % K))
        return float((scores.argmax(1) == labels).float().mean())

    plain, regularized = accuracy_with_misleading_marks(0.0), accuracy_with_misleading_marks(1.0)
    assert plain < 0.5
    assert regularized > 0.9
