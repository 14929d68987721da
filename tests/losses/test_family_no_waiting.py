"""A training step with the new losses reads no value on the host: on tensors that have none, any such read raises."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from batchcam_captum import BatchGradCam, CamRegularizer, ForegroundLoss
from batchcam_captum.prototypes import MaskPrototypes
from tests.losses.family import MAKERS, NEW

K = 4


@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
@pytest.mark.parametrize("soft", [False, True], ids=["indices", "soft labels"])
def test_a_regularized_step_needs_no_value(soft, weighted):
    # Consistency reads the batch as both views of four images.
    losses = {name: MAKERS[name]() for name in NEW}
    losses["own masks"] = ForegroundLoss(MaskPrototypes(K))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, K)).to("meta")
    regularizer = CamRegularizer(BatchGradCam(model, model[1]), losses).to("meta")
    images = torch.rand(8, 3, 10, 10, device="meta")
    masks = torch.rand(8, 1, 10, 10, device="meta")
    labels = torch.rand(8, K, device="meta") if soft else torch.zeros(8, dtype=torch.long, device="meta")
    weights = torch.rand(8, device="meta") if weighted else None
    with regularizer:
        scores = model(images)
    cam_loss = regularizer(scores, labels, images=images, masks=masks, sample_weights=weights)
    (F.cross_entropy(scores, labels) + cam_loss).backward()
    assert model[3].weight.grad.shape == model[3].weight.shape
    assert all(value.is_meta and not value.requires_grad for value in regularizer.values.values())
    with pytest.raises(RuntimeError, match="cannot be called on meta tensors"):
        regularizer.check()  # here the values are read
