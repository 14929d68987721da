"""Networks that the comparison meets."""

from __future__ import annotations

import os
import signal

import torch
from torch import Tensor, nn

from tests.models import strong_heads


class Tokens(nn.Module):
    """A layer that returns (N, 1 + 4 * 4, C): a class token, and a grid of patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 4, stride=4)
        self.layer = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        self.head = strong_heads(nn.Linear(6, 5))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1)
        return self.head(self.layer(tokens).square().mean(1))


class Hungry(nn.Module):
    """Takes 40 MB, and is ended by the system at eight images."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) >= 8:
            os.kill(os.getpid(), signal.SIGKILL)
        torch.ones(10_000_000)
        return self.head(self.layer(x).relu().mean((2, 3)))
