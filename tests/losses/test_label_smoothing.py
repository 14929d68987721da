"""Soft labels with a crumb of every class, as label smoothing makes them, teach what the labels themselves teach."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from batchcam_captum import BatchCamLoss, PrototypeLoss, RunningPrototypes
from batchcam_captum.functional import batch_cam_loss


def smoothed(labels, num_classes, smoothing=0.1):
    return F.one_hot(labels, num_classes).double() * (1 - smoothing) + smoothing / num_classes


@pytest.mark.parametrize("num_classes", [10, 100, 1000])
def test_the_gradient_points_where_that_of_the_labels_does(num_classes):
    cams = torch.randn(64, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(num_classes, (64,))
    maps = torch.rand(num_classes, 1, 5, 5, dtype=torch.float64)
    gradients = [
        torch.autograd.grad(batch_cam_loss(cams, given, maps), cams)[0].flatten()
        for given in (labels, smoothed(labels, num_classes))
    ]
    assert F.cosine_similarity(*gradients, dim=0) > 0.9


def test_a_class_of_less_than_one_image_counts_as_much_less():
    cams, maps = torch.randn(3, 1, 4, 4, dtype=torch.float64), torch.rand(3, 1, 4, 4, dtype=torch.float64)
    soft = torch.tensor([[1.0, 0, 0], [0.75, 0.25, 0], [1.0, 0, 0]], dtype=torch.float64)
    each = batch_cam_loss(cams, soft, maps, reduction="none", revive=False)
    means = torch.tensor([1.0, 0.25, 0], dtype=torch.float64)
    assert_close(batch_cam_loss(cams, soft, maps, revive=False), each.sum() / means.sum())
    assert_close(batch_cam_loss(cams, soft, maps, revive=False, reduction="sum"), each.sum())
    # However little samples weigh, they are whole samples.
    light = torch.full((3,), 1e-3)
    assert_close(batch_cam_loss(cams, soft, maps, sample_weights=light), batch_cam_loss(cams, soft, maps))


def test_a_memory_adds_up_what_there_is_of_a_class():
    torch.manual_seed(5)
    cams, maps = torch.rand(4, 1, 4, 4), torch.rand(2, 1, 4, 4)
    soft = torch.tensor([[0.75, 0.25]]).repeat(4, 1)
    loss = BatchCamLoss(maps, memory=1)
    loss(cams[:2], soft[:2])
    assert_close(loss(cams[2:], soft[2:]), BatchCamLoss(maps)(cams, soft))


def test_running_means_are_not_made_of_crumbs():
    place = torch.eye(6).reshape(6, 1, 6, 1).expand(6, 1, 6, 6).contiguous()  # class c's cams have row c
    prototypes = RunningPrototypes(6)
    loss = PrototypeLoss(prototypes)
    for _ in range(5):
        loss(place[[0] * 4], smoothed(torch.zeros(4, dtype=torch.long), 6))
    loss(place[[5]], torch.tensor([5]))
    assert prototypes.values[5, 0, 5].mean() > 0.5 > prototypes.values[5, 0, 0].mean()
    before = prototypes.values[5].clone()
    loss(place[[0] * 8], smoothed(torch.zeros(8, dtype=torch.long), 6))
    moved = (prototypes.values[5] - before).abs().max()
    assert 0 < moved < 0.1 * 8 * 0.1 / 6 + 1e-3, "a tenth of what there was of the class"
    assert prototypes.half().evidence.dtype == torch.float32
