"""Cam losses in a training loop."""

from .regularizer import CamRegularizer
from .schedules import AutoWeight, Cosine, EveryKSteps, LinearWarmup
from .split_regularizer import SplitRegularizer

__all__ = ["AutoWeight", "CamRegularizer", "Cosine", "EveryKSteps", "LinearWarmup", "SplitRegularizer"]
