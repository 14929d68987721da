"""Faithfulness: whether cams say what the model does. These measures run the model; none of them changes it.

A map that looks right may have nothing to do with the model, and a loss on maps can teach just that. Report one of these measures
beside every measure of the maps alone.
"""

from .cascade import CascadingRandomization, Similarity, cascading_randomization
from .curves import (
    Fill,
    PerturbationCurves,
    RoadScores,
    deletion_curve,
    filled_images,
    insertion_curve,
    linear_imputation,
    road,
)
from .perturbation import Explain, Perturbation, Sensitivity, infidelity, max_sensitivity
from .scores import Model, Score, Targets

__all__ = [
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
