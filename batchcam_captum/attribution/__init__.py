"""Captum's face: attributions as Captum users know them, and the capture that training reuses."""

from .batch_grad_cam import BatchGradCam
from .capture import LayerCapture
from .check import CheckReport, Finding, LayerFigures, check
from .guided import GuidedBatchGradCam
from .output import pick_output
from .split import Split, split_model
from .suggestions import LayerSuggestion, LayerSuggestions, suggest_layers
from .target_kinds import BinaryTarget, MaskTarget, MultiLabelTarget, RowTarget
from .targets import Target, select_target

__all__ = [
    "BatchGradCam",
    "BinaryTarget",
    "CheckReport",
    "Finding",
    "GuidedBatchGradCam",
    "LayerCapture",
    "LayerFigures",
    "LayerSuggestion",
    "LayerSuggestions",
    "MaskTarget",
    "MultiLabelTarget",
    "RowTarget",
    "Split",
    "Target",
    "check",
    "pick_output",
    "select_target",
    "split_model",
    "suggest_layers",
]
