"""What cams are compared with: one map, or several, of each class."""

from .base import Prototypes
from .boxes import boxes_to_masks
from .class_prototypes import ClassPrototypes, ImagePrototypes
from .foreground import ForegroundPrototypes
from .running import RunningPrototypes
from .sampled import ClusterPrototypes, MedianPrototypes, SampledPrototypes

__all__ = [
    "ClassPrototypes",
    "ClusterPrototypes",
    "ForegroundPrototypes",
    "ImagePrototypes",
    "MedianPrototypes",
    "Prototypes",
    "RunningPrototypes",
    "SampledPrototypes",
    "boxes_to_masks",
]
