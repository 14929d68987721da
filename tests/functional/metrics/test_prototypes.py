"""How near cams are to prototypes."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from batchcam_captum.functional import prototype_cosine, prototype_distance
from tests import reference

LABELS = torch.tensor([0, 2, 2, 1])


@pytest.mark.parametrize("distance", ["l1", "l2", "ssim", "cosine"])
def test_metrics_equal_the_strict_loss_of_each_sample(distance):
    cams = torch.randn(4, 1, 5, 6, dtype=torch.float64, requires_grad=True)
    prototypes = torch.rand(3, 1, 9, 9, dtype=torch.float64)
    slow = reference.prototype_losses(cams, LABELS, prototypes, distance, revive=False)
    value = prototype_distance(cams, LABELS, prototypes, distance)
    assert not value.requires_grad
    assert_close(value, torch.stack(slow).detach())
    if distance == "cosine":
        assert_close(prototype_cosine(cams, LABELS, prototypes), 1 - value)


def test_dead_cams_count_as_the_zero_map():
    prototypes = torch.rand(3, 1, 5, 6)
    for cams in (torch.zeros(4, 1, 5, 6), -torch.rand(4, 1, 5, 6)):
        own = prototypes[LABELS] / prototypes[LABELS].amax((1, 2, 3), True)
        assert_close(prototype_distance(cams, LABELS, prototypes), own.mean((1, 2, 3)))
        assert (prototype_cosine(cams, LABELS, prototypes) == 0).all()
