"""Whether cams say what the model does: measures that ask the model again. None of them changes it.

A map that looks right may have nothing to do with the model, and a loss on maps can teach just that. These measures stand
beside every measure of the maps alone.
"""

from .captum_metrics import Explain, Perturbation, Sensitivity, infidelity, max_sensitivity
from .cascade import CascadingRandomization, Similarity, cascading_randomization
from .fills import Fill, filled_images
from .imputation import linear_imputation
from .perturbation_curves import PerturbationCurves, deletion_curve, insertion_curve
from .remove_and_debias import PERCENTILES, RoadScores, road
from .scoring import Model, Score, Targets

__all__ = [
    "PERCENTILES",
    "CascadingRandomization",
    "Explain",
    "Fill",
    "Model",
    "Perturbation",
    "PerturbationCurves",
    "RoadScores",
    "Score",
    "Sensitivity",
    "Similarity",
    "Targets",
    "cascading_randomization",
    "deletion_curve",
    "filled_images",
    "infidelity",
    "insertion_curve",
    "linear_imputation",
    "max_sensitivity",
    "road",
]
