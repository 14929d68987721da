"""What cams are compared with: a map, or several, of each class."""

from .base import Prototypes, References
from .boxes import boxes_to_masks
from .class_prototypes import ClassPrototypes
from .clusters import ClusterPrototypes
from .foreground import ForegroundPrototypes
from .masks import MaskPrototypes
from .median_prototypes import MedianPrototypes
from .running import RunningPrototypes
from .stored import StoredPrototypes

__all__ = [
    "ClassPrototypes",
    "ClusterPrototypes",
    "ForegroundPrototypes",
    "MaskPrototypes",
    "MedianPrototypes",
    "Prototypes",
    "References",
    "RunningPrototypes",
    "StoredPrototypes",
    "boxes_to_masks",
]
