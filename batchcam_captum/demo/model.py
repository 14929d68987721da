"""The small network of the demo."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SimpleCNN(nn.Module):
    """Two padded 3 × 3 convolutions and two linear layers.

    Args:
        num_classes: the number of classes, K.
        image_size: side of the square images; from 16 pixels on they are halved between the convolutions.
        channels: of the images.

    The layer to explain is :attr:`features`, the second convolution after its ReLU: (N, 64, s, s), with s = 14 for images of
    28 pixels and 8 for images of 8.
    """

    def __init__(self, num_classes: int = 10, image_size: int = 28, channels: int = 1) -> None:
        super().__init__()
        side = image_size // 2 if image_size >= 16 else image_size
        self.features = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2) if image_size >= 16 else nn.Identity(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
        )
        self.hidden = nn.Linear(64 * (side // 2) ** 2, 128)
        self.classifier = nn.Linear(128, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return scores before any softmax: (N, C, s, s) -> (N, K)."""
        pooled = F.max_pool2d(self.features(images), 2).flatten(1)
        scores: Tensor = self.classifier(F.relu(self.hidden(pooled)))
        return scores
