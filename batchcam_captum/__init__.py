"""Differentiable, batched Grad-CAM for Captum, and Batch-CAM losses to train with it.

The public names load on first use, so that ``import batchcam_captum.functional`` needs torch alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy import lazy_names

if TYPE_CHECKING:
    from . import functional
    from .attribution import (
        BatchGradCam,
        BinaryTarget,
        GuidedBatchGradCam,
        LayerCapture,
        MaskTarget,
        MultiLabelTarget,
        check,
        split_model,
        suggest_layers,
    )
    from .losses import (
        BatchCamLoss,
        ConsistencyLoss,
        EnergyLoss,
        ForegroundLoss,
        GradiaLoss,
        HintLoss,
        ImageLoss,
        PrototypeContrastiveLoss,
        PrototypeLoss,
        RrrCamLoss,
        SeparabilityLoss,
        TotalVariationLoss,
    )
    from .prototypes import (
        ClassPrototypes,
        ClusterPrototypes,
        ForegroundPrototypes,
        MedianPrototypes,
        RunningPrototypes,
    )
    from .training import CamRegularizer

__version__ = "0.3.0"

__all__ = [
    "BatchCamLoss",
    "BatchGradCam",
    "BinaryTarget",
    "CamRegularizer",
    "ClassPrototypes",
    "ClusterPrototypes",
    "ConsistencyLoss",
    "EnergyLoss",
    "ForegroundLoss",
    "ForegroundPrototypes",
    "GradiaLoss",
    "GuidedBatchGradCam",
    "HintLoss",
    "ImageLoss",
    "LayerCapture",
    "MaskTarget",
    "MedianPrototypes",
    "MultiLabelTarget",
    "PrototypeContrastiveLoss",
    "PrototypeLoss",
    "RrrCamLoss",
    "RunningPrototypes",
    "SeparabilityLoss",
    "TotalVariationLoss",
    "__version__",
    "check",
    "functional",
    "split_model",
    "suggest_layers",
]

_HOMES = {
    "BatchCamLoss": ".losses",
    "BatchGradCam": ".attribution",
    "BinaryTarget": ".attribution",
    "CamRegularizer": ".training",
    "ClassPrototypes": ".prototypes",
    "ClusterPrototypes": ".prototypes",
    "ConsistencyLoss": ".losses",
    "EnergyLoss": ".losses",
    "ForegroundLoss": ".losses",
    "ForegroundPrototypes": ".prototypes",
    "GradiaLoss": ".losses",
    "GuidedBatchGradCam": ".attribution",
    "HintLoss": ".losses",
    "ImageLoss": ".losses",
    "LayerCapture": ".attribution",
    "MaskTarget": ".attribution",
    "MedianPrototypes": ".prototypes",
    "MultiLabelTarget": ".attribution",
    "PrototypeContrastiveLoss": ".losses",
    "PrototypeLoss": ".losses",
    "RrrCamLoss": ".losses",
    "RunningPrototypes": ".prototypes",
    "SeparabilityLoss": ".losses",
    "TotalVariationLoss": ".losses",
    "check": ".attribution",
    "functional": ".functional",
    "split_model": ".attribution",
    "suggest_layers": ".attribution",
}


__getattr__, __dir__ = lazy_names(__name__, _HOMES)
