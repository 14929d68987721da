"""The losses as functions: how far cams are from what they should resemble.

All of them take raw, signed cams (N, 1, *spatial) with a graph, rectify and normalise them, and compare them with a map of the
class or of the image. One a file. The working definitions follow Batch-CAM (Ignesti et al. 2025, arXiv 2510.00664), which leaves
normalisation, resolution and weighting open; what is chosen here is said in each function.
"""

from .batch_cam import ClassSums, batch_cam_loss
from .comparison import Resolution
from .image import image_loss
from .prototype import prototype_loss
from .prototype_contrastive import prototype_contrastive_loss

__all__ = [
    "ClassSums",
    "Resolution",
    "batch_cam_loss",
    "image_loss",
    "prototype_contrastive_loss",
    "prototype_loss",
]
