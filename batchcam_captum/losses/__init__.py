"""The losses as modules, and the registry that finds them by name."""

from .base import LOSSES, CamLoss, LossOutput, NormalizedLoss, RectifiedLoss
from .masks import EnergyLoss, GradiaLoss, HintLoss, RrrCamLoss
from .pairs import ConsistencyLoss, ImageLoss, SeparabilityLoss, TotalVariationLoss
from .prototypes import BatchCamLoss, ForegroundLoss, PrototypeContrastiveLoss, PrototypeLoss

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
    "NormalizedLoss",
    "PrototypeContrastiveLoss",
    "PrototypeLoss",
    "RectifiedLoss",
    "RrrCamLoss",
    "SeparabilityLoss",
    "TotalVariationLoss",
]
