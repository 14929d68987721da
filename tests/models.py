"""Small networks, one for each thing that can surround an explained layer."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import torch
from torch import Tensor, nn


def strong_heads(model: nn.Module) -> nn.Module:
    """Re-initialise the last linear layer, so that maps are not vanishingly small, and return the model."""
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    nn.init.normal_(head.weight, std=1.0)
    return model


def frozen(model: nn.Module) -> nn.Module:
    """Freeze every parameter, so that nothing before the layer has a graph, and return the model."""
    return model.requires_grad_(False)


class SmallCnn(nn.Module):
    """Convolutions, then a head. ``layer`` is explained. In 1, 2 or 3 spatial dimensions; (N, K) scores."""

    def __init__(
        self,
        dims: int = 2,
        num_classes: int = 5,
        *,
        norm: bool = False,
        dropout: float = 0.0,
        channels: int = 3,
    ) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[dims - 1]
        batch_norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
        self.stem = nn.Sequential(
            conv(channels, 6, 3, padding=1), batch_norm(6) if norm else nn.Identity(), nn.ReLU()
        )
        self.dropout = nn.Dropout(dropout)
        self.layer = conv(6, 8, 3, stride=2)
        self.tail = nn.Sequential(nn.Tanh(), conv(8, 8, 3), nn.Softplus(), pool(2), nn.Flatten())
        self.head = nn.Linear(8 * 2**dims, num_classes)
        strong_heads(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.tail(self.layer(self.dropout(self.stem(x)))))


class InPlaceNet(nn.Module):
    """After the layer an in-place ReLU and ``x += shortcut``, which rewrite what a plain hook remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.layer = nn.Conv2d(6, 6, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.mix = nn.Conv2d(6, 6, 3, padding=1)
        self.head = strong_heads(nn.Linear(6 * 4, 5))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.stem(x)
        x = self.mix(self.relu(self.layer(shortcut)))
        x += shortcut
        return self.head(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


class AddsInPlace(InPlaceNet):
    """``x += shortcut`` directly on what the layer returned."""

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.stem(x)
        x = self.layer(shortcut)
        x += shortcut
        return self.head(nn.functional.adaptive_avg_pool2d(x.tanh(), 2).flatten(1))


Pair = namedtuple("Pair", ["coarse", "fine"])


class TwoBranches(nn.Module):
    """Returns two tensors of different sizes, in a container of the given kind."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.coarse = nn.Conv2d(6, 4, 3, stride=2)
        self.fine = nn.Conv2d(6, 3, 3)
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        branches = self.coarse(x), self.fine(x)
        return self.kind(*branches) if self.kind is Pair else self.kind(branches)


class TupleNet(nn.Module):
    """A layer that returns several tensors; with ``by_name`` they are read as the fields of a named tuple."""

    def __init__(self, kind: Any = tuple, *, by_name: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.layer = TwoBranches(kind)
        self.head = strong_heads(nn.Linear(7, 5))
        self.by_name = by_name

    def forward(self, x: Tensor) -> Tensor:
        branches = self.layer(self.stem(x).relu())
        coarse, fine = (branches.coarse, branches.fine) if self.by_name else branches
        return self.head(torch.cat([coarse.tanh().mean((2, 3)), fine.sigmoid().mean((2, 3))], 1))


class Residual(nn.Module):
    """A layer with a path around it: x + scale · tanh(layer(x))."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.5 * self.layer(x).tanh()


class ResidualNet(nn.Module):
    """``layer`` is the module inside a residual block, ``block`` the block itself."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
        self.block = Residual(layer)
        self.head = strong_heads(nn.Linear(6 * 4, 5))

    @property
    def layer(self) -> nn.Module:
        return self.block.layer

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.adaptive_avg_pool2d(self.block(self.stem(x)), 2).tanh().flatten(1))


class VectorNet(nn.Module):
    """A layer without places: (N, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 7)
        self.head = strong_heads(nn.Linear(7, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x.flatten(1)[:, :12]).tanh())


class RepeatedNet(nn.Module):
    """The layer runs twice in one forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.layer = nn.Conv2d(6, 6, 3)
        self.head = strong_heads(nn.Linear(6, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.layer(self.stem(x)).tanh()).tanh().mean((2, 3)))


class TwoInputs(nn.Module):
    """Two images, and further arguments of which some are no tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.layer = nn.Conv2d(6, 8, 3)
        self.head = strong_heads(nn.Linear(8, 5))

    def forward(
        self, x: Tensor, y: Tensor, shift: Tensor | None = None, factor: float = 1.0, mode: str = "plain"
    ) -> Tensor:
        maps = self.layer(self.stem(x - y).relu()).tanh()
        if shift is not None:
            maps = maps + shift[:, None, None, None]
        scores = self.head(maps.square().mean((2, 3))) * factor
        return scores.flip(1) if mode == "flipped" else scores


class DenseNetOutput(nn.Module):
    """Scores for every place: (N, K, 3, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 6, 3)
        self.out = nn.Conv2d(6, 5, 1)
        nn.init.normal_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(nn.functional.adaptive_avg_pool2d(self.layer(x).tanh(), 3))
