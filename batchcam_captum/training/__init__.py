"""Cam losses in a training loop."""

from .recipes import RECIPES, recipe_losses
from .regularizer import CamRegularizer
from .schedules import AutoWeight, Cosine, EveryKSteps, LinearWarmup

__all__ = [
    "RECIPES",
    "AutoWeight",
    "CamRegularizer",
    "Cosine",
    "EveryKSteps",
    "LinearWarmup",
    "recipe_losses",
]
