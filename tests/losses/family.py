"""One batch, and every loss of the family on it, for tests of what all of them have in common."""

from __future__ import annotations

from typing import NamedTuple

import torch

from batchcam_captum import (
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

K = 4
LABELS = (0, 1, 1, 3, 3, 0)


class Family(NamedTuple):
    """Data of N samples; those of a loss of two views, or of two scores, are taken from the same tensors."""

    cams: torch.Tensor  #: (N, 2, 5, 6): the second channel is another score, or another view
    labels: torch.Tensor
    masks: torch.Tensor
    images: torch.Tensor

    def at(self, index):
        """The samples of these indices, in this order."""
        return Family(*[tensor[index] for tensor in self])


def family(n=6):
    """Sample 1 is dead, and sample 4 in both channels."""
    cams = torch.randn(n, 2, 5, 6, dtype=torch.float64)
    if n:
        cams[1, 0] = -cams[1, 0].abs() - 0.1
        cams[4] = -cams[4].abs() - 0.1
    masks = torch.rand(n, 1, 10, 11, dtype=torch.float64)
    images = torch.rand(n, 3, 10, 11, dtype=torch.float64)
    return Family(cams, torch.tensor(LABELS[:n], dtype=torch.long), masks, images)


def prototypes(several=1):
    maps = torch.rand(K, 1, 9, 10)
    return maps if several == 1 else torch.cat([maps] * several, 1)


MAKERS = {
    "prototype": lambda **kw: PrototypeLoss(prototypes(), **kw),
    "batch_cam": lambda **kw: BatchCamLoss(prototypes(), **kw),
    "prototype_contrastive": lambda **kw: PrototypeContrastiveLoss(prototypes(), **kw),
    "image": ImageLoss,
    "foreground": lambda **kw: ForegroundLoss(prototypes(), **kw),
    "foreground-share": lambda **kw: ForegroundLoss(prototypes(), normalization="share", **kw),
    "energy": EnergyLoss,
    "rrr_cam": RrrCamLoss,
    "gradia": GradiaLoss,
    "hint": HintLoss,
    "separability": SeparabilityLoss,
    "consistency": ConsistencyLoss,
    "total_variation": TotalVariationLoss,
}

NEW = [name for name in MAKERS if name not in ("prototype", "batch_cam", "prototype_contrastive", "image")]
WITH_MASKS = ["energy", "rrr_cam", "gradia", "hint"]


def call(loss, data, weights=None):
    """The value of a loss on these samples."""
    cams, labels, masks, images = data
    kind = getattr(loss, "__self__", loss)  # of its method evaluate
    if isinstance(kind, ConsistencyLoss):
        with torch.autocast("cpu", enabled=False):  # which does not concatenate float16
            cams = torch.cat([cams[:, :1], cams[:, 1:]])
            labels, masks, images = (torch.cat([tensor, tensor]) for tensor in (labels, masks, images))
        weights = None if weights is None else torch.cat([weights, weights])
    elif not isinstance(kind, SeparabilityLoss):
        cams = cams[:, :1]
    return loss(cams, labels, masks=masks, images=images, sample_weights=weights)


def with_gradient(loss, data, index=None, weights=None):
    """The value, and its gradient with respect to the cams of all samples."""
    cams = data.cams.detach().clone().requires_grad_()
    given = data._replace(cams=cams)
    value = call(loss, given if index is None else given.at(index), weights)
    return value, torch.autograd.grad(value.sum(), cams)[0]
