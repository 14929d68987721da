"""A training step reads no value on the host: on tensors that have none, any such read raises."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from batchcam_captum import (
    BatchCamLoss,
    BatchGradCam,
    CamRegularizer,
    ImageLoss,
    PrototypeContrastiveLoss,
    PrototypeLoss,
)

K = 5


@pytest.mark.parametrize("distance", ["l1", "l2", "ssim", "cosine"])
@pytest.mark.parametrize("soft", [False, True], ids=["indices", "soft labels"])
def test_a_regularized_step_needs_no_value(distance, soft):
    maps = torch.rand(K, 1, 12, 12)
    losses = {
        "prototype": PrototypeLoss(maps, distance=distance),
        "batch_cam": BatchCamLoss(maps, distance=distance, resolution="prototype"),
        "contrastive": PrototypeContrastiveLoss(maps),
        "image": ImageLoss(distance=distance, mean=(0.1, 0.2, 0.3), std=0.5),
    }
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, K)).to("meta")
    regularizer = CamRegularizer(BatchGradCam(model, model[1]), losses).to("meta")
    images = torch.rand(8, 3, 10, 10, device="meta")
    labels = torch.rand(8, K, device="meta") if soft else torch.zeros(8, dtype=torch.long, device="meta")
    with regularizer:
        scores = model(images)
    loss = F.cross_entropy(scores, labels) + regularizer(scores, labels, images=images)
    loss.backward()
    assert model[3].weight.grad.shape == model[3].weight.shape
    assert all(value.is_meta and not value.requires_grad for value in regularizer.values.values())
    with pytest.raises(RuntimeError, match="meta tensor"):
        regularizer.check()  # here the values are read


def test_attribution_with_an_integer_target_needs_no_value():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, K)).to("meta")
    cams = BatchGradCam(model, model[1]).attribute(torch.rand(2, 3, 10, 10, device="meta"), target=1)
    assert cams.shape == (2, 1, 8, 8)
