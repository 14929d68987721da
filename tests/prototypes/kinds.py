"""One object of each kind of prototypes, ready for cams of K classes."""

from __future__ import annotations

import torch

from batchcam_captum import (
    ClassPrototypes,
    ClusterPrototypes,
    ForegroundPrototypes,
    MaskPrototypes,
    MedianPrototypes,
    RunningPrototypes,
)

K = 4


def _loader():
    return [(torch.rand(20, 3, 10, 12), torch.arange(20) % K)]


def _running():
    prototypes = RunningPrototypes(K)
    prototypes.observe(torch.rand(8, 1, 5, 6), torch.arange(8) % K)
    return prototypes


MAKERS = {
    "class": lambda: ClassPrototypes.from_loader(_loader(), K, progress=False),
    "cluster": lambda: ClusterPrototypes.from_loader(_loader(), K, per_class=3, progress=False),
    "foreground": lambda: ForegroundPrototypes.from_loader(
        _loader(), K, lit=0.6, share=0.2, dilate=0, progress=False
    ),
    "median": lambda: MedianPrototypes.from_loader(_loader(), K, bins=32, quantile=0.6, progress=False),
    "running": _running,
    "mask": lambda: MaskPrototypes(K),
}
#: Those that keep maps, and so have a state.
STORED = [name for name in MAKERS if name != "mask"]
#: An object without maps, of another shape than those of MAKERS where it has one.
FRESH = {
    "class": lambda: ClassPrototypes(K),
    "cluster": lambda: ClusterPrototypes(K, 2, size=(3, 3)),
    "foreground": lambda: ForegroundPrototypes(K, lit=0.6, share=0.2, dilate=0),
    "median": lambda: MedianPrototypes(K),
    "running": lambda: RunningPrototypes(K),
}
