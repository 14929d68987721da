"""The losses as modules, one a file, and the registry that finds them by name."""

from .base import LOSSES, CamLoss
from .batch_cam import BatchCamLoss
from .image import ImageLoss
from .prototype import PrototypeLoss
from .prototype_contrastive import PrototypeContrastiveLoss

__all__ = [
    "LOSSES",
    "BatchCamLoss",
    "CamLoss",
    "ImageLoss",
    "PrototypeContrastiveLoss",
    "PrototypeLoss",
]
