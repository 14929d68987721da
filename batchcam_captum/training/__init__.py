"""Cam losses in a training loop."""

from .regularizer import CamRegularizer

__all__ = ["CamRegularizer"]
