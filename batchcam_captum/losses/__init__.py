"""The losses as modules, one a file, and the registry that finds them by name."""

from .base import LOSSES, CamLoss, LossOutput
from .batch_cam import BatchCamLoss
from .consistency import ConsistencyLoss
from .energy import EnergyLoss
from .foreground import ForegroundLoss
from .gradia import GradiaLoss
from .hint import HintLoss
from .image import ImageLoss
from .prototype import PrototypeLoss
from .prototype_contrastive import PrototypeContrastiveLoss
from .rrr_cam import RrrCamLoss
from .separability import SeparabilityLoss
from .total_variation import TotalVariationLoss

__all__ = [
    "LOSSES",
    "BatchCamLoss",
    "CamLoss",
    "ConsistencyLoss",
    "EnergyLoss",
    "ForegroundLoss",
    "GradiaLoss",
    "HintLoss",
    "ImageLoss",
    "LossOutput",
    "PrototypeContrastiveLoss",
    "PrototypeLoss",
    "RrrCamLoss",
    "SeparabilityLoss",
    "TotalVariationLoss",
]
