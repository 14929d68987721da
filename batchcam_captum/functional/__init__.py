"""Pure functions on tensors: gradients, cams, maps, distances, losses, metrics. Needs torch and nothing else.

Nothing in here keeps state, knows a model, or imports Captum or matplotlib.
"""

from .cam import (
    CAM_METHODS,
    CONSTANT_GRADIENT_WEIGHTS,
    CamMethod,
    apply_method,
    channel_weights,
    get_method,
    grad_cam,
)
from .checks import ValueChecks
from .class_gradients import class_gradients
from .class_means import ClassWeights, class_means, class_sums, class_weights
from .distance import (
    DISTANCES,
    Distance,
    cosine_distance,
    cosine_similarity,
    get_distance,
    l1_distance,
    l2_distance,
    ssim_distance,
)
from .gradients import Score, activation_gradients, select_scores
from .head import Head, HeadCams, HeadGradients, head_cams, head_gradients
from .images import image_maps, to_one_channel, undo_standardization
from .layout import TokenGrid, channels_last_to_first, infer_grid, tokens_to_grid
from .losses import (
    ClassSums,
    MaskResolution,
    Resolution,
    batch_cam_loss,
    consistency_loss,
    energy_loss,
    foreground_loss,
    gradia_loss,
    hint_loss,
    image_loss,
    prototype_contrastive_loss,
    prototype_loss,
    rrr_cam_loss,
    separability_loss,
    total_variation_loss,
)
from .maps import (
    Normalization,
    PreparedCams,
    dead_cams,
    dead_fraction,
    normalize,
    peak,
    prepare,
    rectify,
    resize,
)
from .metrics import prototype_cosine, prototype_distance
from .overlay import overlay
from .precision import exact_matmul_dtype, full_precision, no_autocast
from .reduce import Reduction, reduce
from .registry import Registry
from .ssim import ssim
from .weightings import grad_cam_plus_plus, hires_cam, layer_cam, xgrad_cam

__all__ = [
    "CAM_METHODS",
    "CONSTANT_GRADIENT_WEIGHTS",
    "DISTANCES",
    "CamMethod",
    "ClassSums",
    "ClassWeights",
    "Distance",
    "Head",
    "HeadCams",
    "HeadGradients",
    "MaskResolution",
    "Normalization",
    "PreparedCams",
    "Reduction",
    "Registry",
    "Resolution",
    "Score",
    "TokenGrid",
    "ValueChecks",
    "activation_gradients",
    "apply_method",
    "batch_cam_loss",
    "channel_weights",
    "channels_last_to_first",
    "class_gradients",
    "class_means",
    "class_sums",
    "class_weights",
    "consistency_loss",
    "cosine_distance",
    "cosine_similarity",
    "dead_cams",
    "dead_fraction",
    "energy_loss",
    "exact_matmul_dtype",
    "foreground_loss",
    "full_precision",
    "get_distance",
    "get_method",
    "grad_cam",
    "grad_cam_plus_plus",
    "gradia_loss",
    "head_cams",
    "head_gradients",
    "hint_loss",
    "hires_cam",
    "image_loss",
    "image_maps",
    "infer_grid",
    "l1_distance",
    "l2_distance",
    "layer_cam",
    "no_autocast",
    "normalize",
    "overlay",
    "peak",
    "prepare",
    "prototype_contrastive_loss",
    "prototype_cosine",
    "prototype_distance",
    "prototype_loss",
    "rectify",
    "reduce",
    "resize",
    "rrr_cam_loss",
    "select_scores",
    "separability_loss",
    "ssim",
    "ssim_distance",
    "to_one_channel",
    "tokens_to_grid",
    "total_variation_loss",
    "undo_standardization",
    "xgrad_cam",
]
