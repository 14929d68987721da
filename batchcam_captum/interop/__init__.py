"""Swap in for pytorch-grad-cam, Captum and TorchCAM: their calls, their weightings and their maps.

Only Captum has to be installed to import this.
"""

from .adapter import (
    CamAdapter,
    EigenCAM,
    EigenGradCAM,
    GradCAM,
    GradCAMElementWise,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    XGradCAM,
)
from .presets import (
    fuse_as_torchcam,
    pytorch_grad_cam_method,
    to_captum,
    to_pytorch_grad_cam,
    to_torchcam,
    torchcam_method,
)

__all__ = [
    "CamAdapter",
    "EigenCAM",
    "EigenGradCAM",
    "GradCAM",
    "GradCAMElementWise",
    "GradCAMPlusPlus",
    "HiResCAM",
    "LayerCAM",
    "XGradCAM",
    "fuse_as_torchcam",
    "pytorch_grad_cam_method",
    "to_captum",
    "to_pytorch_grad_cam",
    "to_torchcam",
    "torchcam_method",
]
