"""Small networks and batches for the regulariser's tests."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from batchcam_captum import BatchCamLoss, BatchGradCam, CamRegularizer

K = 3


class Net(nn.Module):
    """BatchNorm before the layer, dropout after it, a curved head."""

    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
        self.layer = nn.Tanh()
        self.head = nn.Sequential(
            nn.Dropout(dropout), nn.Conv2d(4, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(4 * 16, K)
        )
        self.runs = 0

    def forward(self, images):
        self.runs += 1
        return self.head(self.layer(self.trunk(images)))


def batch(n=8):
    return torch.rand(n, 1, 8, 8), torch.arange(n) % K


def prototypes():
    return torch.rand(K, 1, 8, 8)


def regularizer_of(model, losses=None, **options):
    losses = BatchCamLoss(prototypes()) if losses is None else losses
    return CamRegularizer(BatchGradCam(model, model.layer), losses, **options)


def captured(regularizer, images):
    with regularizer:
        return regularizer.grad_cam.forward_func(images)


def objective(regularizer, model, images, labels):
    """Cross-entropy plus the cam term, from one forward."""
    with regularizer:
        scores = model(images)
    return F.cross_entropy(scores, labels) + regularizer(scores, labels)


def hooks_of(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
