"""One object of each kind of prototypes, for cams of K classes."""

from __future__ import annotations

import torch

from batchcam_captum import (
    ClassPrototypes,
    ClusterPrototypes,
    ForegroundPrototypes,
    MedianPrototypes,
    RunningPrototypes,
)

K = 4


def _from_loader(kind, **options):
    loader = [(torch.rand(20, 3, 10, 12), torch.arange(20) % K)]
    return kind.from_loader(loader, K, progress=False, **options)


def _running():
    prototypes = RunningPrototypes(K)
    prototypes.observe(torch.rand(8, 1, 5, 6), torch.arange(8) % K)
    return prototypes


MAKERS = {
    "class": lambda: _from_loader(ClassPrototypes),
    "cluster": lambda: _from_loader(ClusterPrototypes, per_class=3),
    "foreground": lambda: _from_loader(ForegroundPrototypes, lit=0.6, share=0.2, dilate=0),
    "median": lambda: _from_loader(MedianPrototypes, quantile=0.6),
    "running": _running,
}
