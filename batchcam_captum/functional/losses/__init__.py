"""The losses as functions: how far cams are from what they should resemble.

All of them take raw, signed cams (N, 1, *spatial) with a graph, and compare them with a map of the class or of the image, with a
mask, with another cam, or with nothing. One a file. The working definitions of the first four follow Batch-CAM (Ignesti et al.
2025, arXiv 2510.00664), which leaves normalisation, resolution and weighting open; where a formula comes from, and what is chosen
here, is said in each function.
"""

from .batch_cam import ClassSums, batch_cam_loss
from .comparison import Resolution
from .consistency import consistency_loss
from .energy import energy_loss
from .foreground import foreground_loss
from .gradia import gradia_loss
from .hint import hint_loss
from .image import image_loss
from .masks import MaskResolution
from .prototype import prototype_loss
from .prototype_contrastive import prototype_contrastive_loss
from .rrr_cam import rrr_cam_loss
from .separability import separability_loss
from .total_variation import total_variation_loss

__all__ = [
    "ClassSums",
    "MaskResolution",
    "Resolution",
    "batch_cam_loss",
    "consistency_loss",
    "energy_loss",
    "foreground_loss",
    "gradia_loss",
    "hint_loss",
    "image_loss",
    "prototype_contrastive_loss",
    "prototype_loss",
    "rrr_cam_loss",
    "separability_loss",
    "total_variation_loss",
]
