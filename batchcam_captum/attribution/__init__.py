"""Captum's face: attributions as Captum users know them, and the capture that training reuses."""

from .batch_grad_cam import BatchGradCam
from .capture import LayerCapture
from .targets import Target, select_target

__all__ = ["BatchGradCam", "LayerCapture", "Target", "select_target"]
