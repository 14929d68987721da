"""Captum's face: attributions as Captum users know them, and the capture that training reuses."""

from . import graph
from .batch_grad_cam import BatchGradCam
from .capture import LayerCapture
from .check import CheckReport, Finding, LayerFigures, check
from .forward import ModelFacts, attempts, left_as_it_was
from .guided import GuidedBatchGradCam
from .observer import ForwardObserver, input_shape
from .output import pick_output
from .second_order import check_second_order
from .shortcut import Shortcut, find_shortcut
from .split import Split, split_model
from .state import BufferCopies, recordable
from .suggestions import LayerSuggestion, LayerSuggestions, suggest_layers
from .targets import BinaryTarget, MaskTarget, MultiLabelTarget, RowTarget, Target, select_target

__all__ = [
    "BatchGradCam",
    "BinaryTarget",
    "BufferCopies",
    "CheckReport",
    "Finding",
    "ForwardObserver",
    "GuidedBatchGradCam",
    "LayerCapture",
    "LayerFigures",
    "LayerSuggestion",
    "LayerSuggestions",
    "MaskTarget",
    "ModelFacts",
    "MultiLabelTarget",
    "RowTarget",
    "Shortcut",
    "Split",
    "Target",
    "attempts",
    "check",
    "check_second_order",
    "find_shortcut",
    "graph",
    "input_shape",
    "left_as_it_was",
    "pick_output",
    "recordable",
    "select_target",
    "split_model",
    "suggest_layers",
]
