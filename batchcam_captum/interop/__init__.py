"""To and from pytorch-grad-cam, Captum and TorchCAM. None of them but Captum is needed to import this."""

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
from .peer_methods import pytorch_grad_cam_method, torchcam_method
from .peers import OURS, PEERS, Peer, PeerError
from .presets import fuse_as_torchcam, to_captum, to_pytorch_grad_cam, to_torchcam
from .untouched import untouched

__all__ = [
    "OURS",
    "PEERS",
    "CamAdapter",
    "EigenCAM",
    "EigenGradCAM",
    "GradCAM",
    "GradCAMElementWise",
    "GradCAMPlusPlus",
    "HiResCAM",
    "LayerCAM",
    "Peer",
    "PeerError",
    "XGradCAM",
    "fuse_as_torchcam",
    "pytorch_grad_cam_method",
    "to_captum",
    "to_pytorch_grad_cam",
    "to_torchcam",
    "torchcam_method",
    "untouched",
]
