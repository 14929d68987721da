"""How a model's cams relate to the prototypes, over a data set."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypedDict

import torch
from torch import Tensor

from ..attribution import BatchGradCam
from ..functional import dead_cams, prototype_cosine, prototype_distance
from ..prototypes import ClassPrototypes


class CamReport(TypedDict):
    """What :func:`evaluate_cams` measures; every figure is a mean over the samples."""

    accuracy: float  #: share of samples whose highest score is the label's
    l1: float  #: L1 distance of relu(C) / max to the prototype of the label; smaller is nearer
    ssim: float  #: their structural similarity; larger is nearer
    cosine: float  #: their cosine; larger is nearer
    dead_fraction: float  #: share of cams without a positive value
    samples: int


def evaluate_cams(
    grad_cam: BatchGradCam, loader: Iterable[tuple[Tensor, Tensor]], prototypes: ClassPrototypes
) -> CamReport:
    """Measure accuracy, and the cams of the true classes against their prototypes, at the size of the cams.

    A dead cam counts as the zero map: its L1 distance is the prototype's mean, its cosine is 0.

    Args:
        grad_cam: the model, in the mode it should be measured in, and its layer.
        loader: batches of images (N, C, *spatial) and class indices (N,), on the model's device.
        prototypes: the class prototypes.

    Returns:
        The means over all samples.

    Raises:
        ValueError: the loader is empty.
    """
    sums = torch.zeros(5, dtype=torch.float64)
    samples = 0
    for images, labels in loader:
        cams, scores = grad_cam.attribute_with_scores(images, target=labels)
        assert isinstance(cams, Tensor)  # a layer with several tensors has no single cam
        with torch.no_grad():
            maps = prototypes.maps(cams.shape[2:])
            rows = (
                scores.argmax(1) == labels,
                prototype_distance(cams, labels, maps, "l1"),
                1 - prototype_distance(cams, labels, maps, "ssim"),
                prototype_cosine(cams, labels, maps),
                dead_cams(cams),
            )
            sums += torch.stack([row.double().sum() for row in rows]).cpu()
        samples += len(labels)
    if not samples:
        raise ValueError("loader: expected at least one sample, got none")
    accuracy, l1, similarity, cosine, dead = (sums / samples).tolist()
    return CamReport(
        accuracy=accuracy, l1=l1, ssim=similarity, cosine=cosine, dead_fraction=dead, samples=samples
    )
