"""Metrics of cams as pure functions: one number per sample or per class.

Metrics need no graph and take signed cams, as the losses do. NaN means that there is nothing to measure (an empty mask, an
ignored label). Cams that are not finite raise.
"""

from .curves import area_under_curve, pixel_ranks, rank_correlation
from .maps import class_coherence, entropy, sparsity
from .masks import (
    ShortcutShare,
    energy_in_mask,
    mask_iou,
    pointing_game,
    rank_accuracy,
    shortcut_share,
    wrong_reason,
)
from .prototypes import nearest_prototype, prototype_cosine, prototype_distance

__all__ = [
    "ShortcutShare",
    "area_under_curve",
    "class_coherence",
    "energy_in_mask",
    "entropy",
    "mask_iou",
    "nearest_prototype",
    "pixel_ranks",
    "pointing_game",
    "prototype_cosine",
    "prototype_distance",
    "rank_accuracy",
    "rank_correlation",
    "shortcut_share",
    "sparsity",
    "wrong_reason",
]
