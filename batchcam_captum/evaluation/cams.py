"""How a model's cams relate to the prototypes, over a data set."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypedDict

import torch
from torch import Tensor

from ..attribution import BatchGradCam
from ..batches import batches
from ..functional import dead_cams, prototype_cosine, prototype_distance
from ..prototypes import Prototypes


class CamReport(TypedDict):
    """The result of :func:`evaluate_cams`; every figure is a mean over the samples."""

    accuracy: float  #: share of samples whose highest score is the label's
    l1: float  #: L1 distance of relu(C) / max to the prototype of the label; smaller is closer
    ssim: float  #: their structural similarity; larger is closer
    cosine: float  #: their cosine; larger is closer
    dead_fraction: float  #: share of cams without a positive value
    samples: int


def evaluate_cams(
    grad_cam: BatchGradCam, loader: Iterable[tuple[Tensor, Tensor]], prototypes: Prototypes
) -> CamReport:
    """Measure accuracy, and the cams of the true classes against their prototypes, at the size of the cams.

    A dead cam counts as the zero map: its L1 distance is the prototype's mean, its cosine is 0.

    Args:
        grad_cam: the model, in the mode to measure it in, and its layer.
        loader: batches that begin with images (N, C, *spatial) and class indices (N,), on the model's device.
        prototypes: the class prototypes.

    Returns:
        The means over all samples.

    Raises:
        ValueError: the loader is empty, or labels or cams that do not fit.
        TypeError: batches of another kind, or a layer with several tensors.
    """
    sums = torch.zeros(5, dtype=torch.float64)
    samples = 0
    for images, labels in batches(loader):
        cams, scores = grad_cam.attribute_with_scores(images, target=labels)
        if not isinstance(cams, Tensor):
            raise TypeError(
                f"grad_cam: expected one layer with one tensor, got {type(cams).__name__} of cams; measure one of them"
            )
        maps = prototypes.maps(cams.shape[2:])
        values = (
            scores.argmax(1) == labels,
            prototype_distance(cams, labels, maps, "l1"),
            1 - prototype_distance(cams, labels, maps, "ssim"),
            prototype_cosine(cams, labels, maps),
            dead_cams(cams),
        )
        sums += torch.stack([value.double().sum() for value in values]).cpu()
        samples += len(labels)
    if not samples:
        raise ValueError("loader: expected at least one sample, got none; check the data set and drop_last")
    accuracy, l1, similarity, cosine, dead = (sums / samples).tolist()
    return CamReport(
        accuracy=accuracy, l1=l1, ssim=similarity, cosine=cosine, dead_fraction=dead, samples=samples
    )
