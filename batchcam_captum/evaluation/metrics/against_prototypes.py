"""Cams against the prototypes of their classes, as streaming metrics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...functional import (
    Distance,
    ValueChecks,
    get_distance,
    nearest_prototype,
    prototype_cosine,
    prototype_distance,
)
from ...functional.losses.comparison import Resolution, check_resolution, membership
from ...functional.metrics.prototypes import CENTRED_COSINE
from ...prototypes.base import Prototypes
from .base import MeanOverSamples, Samples


class _AgainstPrototypes(MeanOverSamples):
    needs = ("labels",)

    prototypes: Tensor
    seen: Tensor

    def __init__(
        self,
        prototypes: Prototypes | Tensor,
        distance: str | Distance,
        resolution: Resolution,
        ignore_index: int,
        **kwargs: Any,
    ) -> None:
        check_resolution(resolution)
        maps, seen = _snapshot(prototypes)
        super().__init__(
            distance, resolution, tuple(maps.shape), maps, seen, ignore_index=ignore_index, **kwargs
        )
        self.distance = distance
        self.resolution = resolution
        self.register_buffer("prototypes", maps, persistent=False)
        self.register_buffer("seen", seen, persistent=False)


def _snapshot(prototypes: Prototypes | Tensor) -> tuple[Tensor, Tensor]:
    """The maps (K, P, *spatial) as they are now, and which classes have some (K,)."""
    if isinstance(prototypes, Prototypes):
        if prototypes.needs_masks:
            raise ValueError(
                f"prototypes: expected one map or several a class, got {type(prototypes).__name__}, which depends on the "
                f"masks of a batch; use a metric against masks, such as EnergyPointingGame"
            )
        return prototypes.maps().detach().clone(), prototypes.seen.detach().clone()
    if not isinstance(prototypes, Tensor) or not prototypes.is_floating_point() or prototypes.dim() < 3:
        got = (
            f"{prototypes.dtype} {tuple(prototypes.shape)}"
            if isinstance(prototypes, Tensor)
            else type(prototypes).__name__
        )
        raise TypeError(
            f"prototypes: expected ClassPrototypes, or a floating tensor (K, 1, *spatial), got {got}; pass one map a class"
        )
    if prototypes.dim() == 3 and prototypes.shape[1] != 1:
        raise ValueError(
            f"prototypes: expected (K, 1, *spatial), got {tuple(prototypes.shape)}; of one (height, width) map a class pass "
            f"prototypes.unsqueeze(1)"
        )
    if not bool(torch.isfinite(prototypes).all()):
        raise ValueError("prototypes: expected finite numbers, got others")
    return prototypes.detach().clone(), (prototypes.detach().flatten(1) > 0).any(1)


class PrototypeDistance(_AgainstPrototypes):
    """Mean distance of the normalised cams to the prototypes of their classes, at least 0; smaller is nearer.

    A dead cam counts as the zero map, which is *near* to a dark prototype: report :class:`DeadFraction` beside it. See
    :func:`~batchcam_captum.functional.prototype_distance`.

    Args:
        prototypes: :class:`~batchcam_captum.ClassPrototypes` or of another kind, or (K, 1, *spatial), all zero for a class
            without one. The metric keeps a copy of the maps as they are now.
        distance: see :data:`~batchcam_captum.functional.DISTANCES`, or your own function of pairs.
        resolution: ``"map"`` compares at the cams' size, ``"prototype"`` at the prototypes'.
        ignore_index: samples with this label are left out.
        **kwargs: of ``torchmetrics.Metric``.

    Raises:
        ValueError: an unknown distance or resolution, or prototypes that depend on masks or are not finite.
        TypeError: prototypes of another kind.

    Example:
        >>> metric = PrototypeDistance(torch.ones(2, 1, 4, 4), "l1")
        >>> metric.update(torch.tensor([[[[0.0, 2.0]]]]).expand(1, 1, 4, 2).repeat(1, 1, 1, 2), torch.tensor([1]))
        >>> metric.compute()
        tensor(0.5000)
    """

    higher_is_better = False
    plot_upper_bound = None

    def __init__(
        self,
        prototypes: Prototypes | Tensor,
        distance: str | Distance = "l1",
        *,
        resolution: Resolution = "map",
        ignore_index: int = -100,
        **kwargs: Any,
    ) -> None:
        get_distance(distance)
        super().__init__(prototypes, distance, resolution, ignore_index, **kwargs)

    def values(self, samples: Samples, checks: ValueChecks) -> Tensor:
        """Distances (N,)."""
        assert samples.labels is not None
        return prototype_distance(
            samples.cams,
            samples.labels,
            self.prototypes,
            self.distance,
            seen=self.seen,
            resolution=self.resolution,
            ignore_index=self.ignore_index,
            checks=checks,
        )


class PrototypeCosine(_AgainstPrototypes):
    """Mean cosine of the normalised cams and the prototypes of their classes, in [0, 1]; larger is nearer. A dead cam gets 0.

    See :func:`~batchcam_captum.functional.prototype_cosine`.

    Args:
        prototypes: see :class:`PrototypeDistance`.
        resolution: see :class:`PrototypeDistance`.
        ignore_index: samples with this label are left out.
        **kwargs: of ``torchmetrics.Metric``.

    Raises:
        ValueError: see :class:`PrototypeDistance`.
        TypeError: see :class:`PrototypeDistance`.
    """

    higher_is_better = True

    def __init__(
        self,
        prototypes: Prototypes | Tensor,
        *,
        resolution: Resolution = "map",
        ignore_index: int = -100,
        **kwargs: Any,
    ) -> None:
        super().__init__(prototypes, "cosine", resolution, ignore_index, **kwargs)

    def values(self, samples: Samples, checks: ValueChecks) -> Tensor:
        """Cosines (N,)."""
        assert samples.labels is not None
        return prototype_cosine(
            samples.cams,
            samples.labels,
            self.prototypes,
            seen=self.seen,
            resolution=self.resolution,
            ignore_index=self.ignore_index,
            checks=checks,
        )


class NearestPrototypeAccuracy(_AgainstPrototypes):
    """Share of the cams that are nearest to the prototype of their own class, in [0, 1]; larger is better.

    A dead cam is near to none, and counts as wrong. See :func:`~batchcam_captum.functional.nearest_prototype`.

    Args:
        prototypes: see :class:`PrototypeDistance`; a label of a class without one raises.
        distance: ``"centred_cosine"``, or see :class:`PrototypeDistance`.
        resolution: see :class:`PrototypeDistance`.
        ignore_index: samples with this label are left out.
        **kwargs: of ``torchmetrics.Metric``.

    Raises:
        ValueError: see :class:`PrototypeDistance`.
        TypeError: see :class:`PrototypeDistance`.
    """

    higher_is_better = True

    def __init__(
        self,
        prototypes: Prototypes | Tensor,
        distance: str | Distance = CENTRED_COSINE,
        *,
        resolution: Resolution = "map",
        ignore_index: int = -100,
        **kwargs: Any,
    ) -> None:
        if distance != CENTRED_COSINE:
            get_distance(distance)
        super().__init__(prototypes, distance, resolution, ignore_index, **kwargs)

    def values(self, samples: Samples, checks: ValueChecks) -> Tensor:
        """1 where the nearest prototype is the own one, else 0: (N,)."""
        assert samples.labels is not None
        if samples.labels.is_floating_point():
            raise TypeError(
                f"labels: expected class indices ({samples.cams.shape[0]},), got soft labels {tuple(samples.labels.shape)}; "
                f"pass labels.argmax(1)"
            )
        belongs = membership(
            samples.cams, samples.labels, self.prototypes, self.seen, self.ignore_index, None, checks
        )
        near = nearest_prototype(
            samples.cams,
            self.prototypes,
            self.distance,
            seen=self.seen,
            resolution=self.resolution,
            counted=samples.counted,
            checks=checks,
        )
        assert belongs.indices is not None  # which soft labels alone do not have
        return (near == belongs.indices).float().masked_fill(~samples.counted, torch.nan)
