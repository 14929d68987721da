"""Captum's face: attributions as Captum users know them, and the capture that training reuses."""

from .batch_grad_cam import BatchGradCam
from .capture import LayerCapture
from .guided import GuidedBatchGradCam
from .output import pick_output
from .target_kinds import BinaryTarget, MaskTarget, MultiLabelTarget, RowTarget
from .targets import Target, select_target

__all__ = [
    "BatchGradCam",
    "BinaryTarget",
    "GuidedBatchGradCam",
    "LayerCapture",
    "MaskTarget",
    "MultiLabelTarget",
    "RowTarget",
    "Target",
    "pick_output",
    "select_target",
]
