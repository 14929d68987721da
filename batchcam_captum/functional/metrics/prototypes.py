"""How near cams are to prototypes, per sample. Metrics need no graph and take the signed cams, as the losses do."""

from __future__ import annotations

import torch
from torch import Tensor

from ..class_means import class_weights
from ..distance import Distance, cosine_similarity, get_distance
from ..maps import normalize, prepare, resize


def _prepared_pair(cams: Tensor, labels: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    maps = prepare(cams.detach()).maps
    belongs = class_weights(labels, prototypes.shape[0], num_samples=cams.shape[0])
    return maps, belongs.pick(normalize(resize(prototypes.to(maps.dtype), maps.shape[2:])))


@torch.no_grad()
def prototype_distance(
    cams: Tensor, labels: Tensor, prototypes: Tensor, distance: str | Distance = "l1"
) -> Tensor:
    """Distance of each normalised cam relu(C) / max to the prototype of its class.

    Args:
        cams: (N, 1, *spatial), signed.
        labels: (N,) class indices.
        prototypes: (K, 1, *spatial), resized to the cams by area and divided by their maxima.
        distance: see :data:`~batchcam_captum.functional.DISTANCES`.

    Returns:
        (N,), at least 0; smaller is nearer. An all-zero or dead cam counts as the zero map.
    """
    return get_distance(distance)(*_prepared_pair(cams, labels, prototypes))


@torch.no_grad()
def prototype_cosine(cams: Tensor, labels: Tensor, prototypes: Tensor) -> Tensor:
    """Cosine of each normalised cam and the prototype of its class.

    Args:
        cams: (N, 1, *spatial), signed.
        labels: (N,) class indices.
        prototypes: (K, 1, *spatial).

    Returns:
        (N,), in [0, 1]; larger is nearer. An all-zero or dead cam gets 0.
    """
    return cosine_similarity(*_prepared_pair(cams, labels, prototypes))
