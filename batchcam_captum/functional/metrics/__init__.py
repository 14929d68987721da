"""What cams are worth, as numbers: pure functions, one number a sample or a class.

Metrics need no graph and take the signed cams, as the losses do. NaN means that there is nothing to measure (an empty mask, an
ignored label), never that something went wrong: cams that are not finite raise.
"""

from .coherence import CoherenceSums, class_coherence, coherence_of, coherence_sums
from .curves import area_under_curve, average_ranks, pixel_ranks, rank_correlation
from .maps import entropy, sparsity
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
    "CoherenceSums",
    "ShortcutShare",
    "area_under_curve",
    "average_ranks",
    "class_coherence",
    "coherence_of",
    "coherence_sums",
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
