"""The losses as functions: how far cams are from what they should look like.

They take raw, signed cams (N, 1, *spatial) with a graph. ``base`` prepares a batch for all of them; the formulas are in
``prototypes``, ``masks`` and ``pairs``.
"""

from .base import Samples
from .masks import energy_loss, gradia_loss, hint_loss, rrr_cam_loss
from .pairs import consistency_loss, image_loss, separability_loss, total_variation_loss
from .prototypes import batch_cam_loss, foreground_loss, prototype_contrastive_loss, prototype_loss

__all__ = [
    "Samples",
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
