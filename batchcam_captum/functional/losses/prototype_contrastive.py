"""The contrastive loss: each cam near to the prototype of its class, and far from the others."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..checks import ValueChecks
from ..distance import scaled, unit
from ..precision import no_autocast
from ..reduce import Reduction, reduce
from .comparison import (
    Resolution,
    check_cams,
    check_prototypes,
    check_temperature,
    fit,
    membership,
    without,
)


def prototype_contrastive_loss(
    cams: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    *,
    seen: Tensor | None = None,
    temperature: float = 0.1,
    resolution: Resolution = "prototype",
    reduction: Reduction = "mean",
    ignore_index: int = -100,
    sample_weights: Tensor | None = None,
    checks: ValueChecks | None = None,
) -> Tensor:
    r"""Pull a cam to the prototype of its class, and push it from the others.

    .. math:: -\log \mathrm{softmax}_c \left(\mathrm{unit}(C - \bar C) \cdot \mathrm{unit}(P_c - \bar P) / \tau\right)_y

    with C̄ the cam's mean over its pixels and P̄ the mean of the prototypes over the classes: what all prototypes share tells
    nothing of the class. This term is this project's own, not the paper's. It uses the signed cam, so a dead cam learns like
    any other; a flat one gives log K and no gradient.

    Args:
        cams: see :func:`prototype_loss`.
        labels: see :func:`prototype_loss`; soft labels are the target distribution, and several labels share it.
        prototypes: see :func:`prototype_loss`; of several a class the nearest one gives the class's logit.
        seen: see :func:`prototype_loss`; the other classes take no part.
        temperature: τ > 0; lower is sharper.
        resolution: see :func:`prototype_loss`.
        reduction: over the samples.
        ignore_index: see :func:`prototype_loss`.
        sample_weights: see :func:`prototype_loss`.
        checks: see :func:`prototype_loss`.

    Returns:
        A scalar, or (N,) for ``reduction="none"``. An empty batch gives a zero that is connected to the graph.

    Raises:
        ValueError: see :func:`prototype_loss`; or a temperature that is not positive.
        TypeError: see :func:`prototype_loss`.
    """
    check_cams(cams)
    check_prototypes(cams, prototypes)
    check_temperature(temperature)
    with no_autocast(cams):
        belongs = membership(cams, labels, prototypes, seen, ignore_index, sample_weights, checks)
        # The direction does not depend on the scale, and cams are smaller here than where they are compared.
        maps, prototypes = fit(scaled(without(cams, belongs.counted)), prototypes, resolution)
        centred = maps.flatten(1) - maps.flatten(1).mean(1, keepdim=True)
        lengths = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
        # A flat cam minus its mean is rounding noise, not a direction.
        flat = lengths <= 8 * torch.finfo(maps.dtype).eps * math.sqrt(centred.shape[1])
        num_classes, several = prototypes.shape[:2]
        others = torch.zeros_like(prototypes.flatten(1)[:, 0], dtype=torch.bool) if seen is None else ~seen
        rows = prototypes.flatten(0, 1).flatten(1)
        present = (~others).to(maps.dtype).repeat_interleave(several)
        rows = rows - (present @ rows) / present.sum().clamp(min=1)
        projections = (centred @ unit(rows).T).masked_fill(flat, 0)
        logits = projections / (temperature * lengths.masked_fill(flat, 1))
        if several > 1:
            logits = logits.unflatten(1, (num_classes, several)).amax(2)
        log_probabilities = logits.masked_fill(others, -math.inf).log_softmax(1)
        # An unseen class has weight 0 and log-probability −inf; 0 · −inf is not 0.
        values = -(belongs.shares * log_probabilities.masked_fill(others, 0)).sum(1)
        return reduce(values, reduction, belongs.counted, belongs.importance)
