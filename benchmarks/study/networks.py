"""The networks of the study, with stems for small images, so that the explained layer's maps are 4×4 at least."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from batchcam_captum.demo.model import SimpleCNN


@dataclass(frozen=True)
class Network:
    """How a network is made, explained and trained."""

    make: Callable[[int, int], nn.Module]  #: (classes, channels) -> model
    layer: str  #: that is explained
    padding: int = 0  #: pixels around the 28×28 images
    epochs: int = 3
    weight_decay: float = 0.0  #: of AdamW; with 0 it is Adam

    def optimizer(self, model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        """Adam, or AdamW where there is a weight decay."""
        return torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=self.weight_decay)


def _simple_cnn(num_classes: int, channels: int) -> nn.Module:
    return SimpleCNN(num_classes, channels=channels)


def _resnet18(num_classes: int, channels: int) -> nn.Module:
    import timm

    model = timm.create_model("resnet18", num_classes=num_classes, in_chans=channels)
    # 28 → 28, 14, 7, 4 instead of 28 → 7, 4, 2, 1.
    model.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def _convnextv2_tiny(num_classes: int, channels: int) -> nn.Module:
    import timm

    # 32 → 32, 16, 8, 4 instead of 32 → 8, 4, 2, 1.
    return timm.create_model("convnextv2_tiny", num_classes=num_classes, in_chans=channels, patch_size=1)


NETWORKS = {
    "simple_cnn": Network(_simple_cnn, "features"),
    "resnet18": Network(_resnet18, "layer4"),
    "convnextv2_tiny": Network(_convnextv2_tiny, "stages.3", padding=2, epochs=20, weight_decay=0.05),
}
