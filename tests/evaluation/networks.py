"""A model of which everything is known, and a small network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from batchcam_captum import BatchGradCam
from tests.models import SmallCnn


class Linear(nn.Module):
    """Scores (N, 2): Σ w x over all pixels for class 0, and 0 for class 1."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)
        self.forwards = 0

    def forward(self, images: Tensor) -> Tensor:
        self.forwards += 1
        evidence = (images * self.weights).flatten(1).sum(1)
        return torch.stack([evidence, torch.zeros_like(evidence)], 1)


class Case:
    """A trained-looking network, images, targets, and its cams."""

    def __init__(self, **options: object) -> None:
        torch.manual_seed(3)
        self.model = SmallCnn(**options).eval()
        dims = options.get("dims", 2)
        self.images = torch.rand(4, 3, *[8] * dims)
        self.targets = torch.tensor([1, 4, 0, -1])
        self.grad_cam = BatchGradCam(self.model, self.model.layer)
        self.cams = self.grad_cam.attribute(self.images, target=self.targets)
