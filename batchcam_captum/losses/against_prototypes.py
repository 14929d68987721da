"""What the losses that compare cams with prototypes have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..functional import CamMethod, Resolution, Score, prepare
from ..functional.losses.comparison import check_aspect, check_cams, check_resolution, without
from ..functional.reduce import Reduction, check_reduction
from ..prototypes import ClassPrototypes, Prototypes, References
from .base import CamLoss

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class PrototypeCamLoss(CamLoss):
    """A cam loss that holds prototypes.

    Args:
        prototypes: the prototypes, of any kind, or ready maps (K, 1, *spatial).
        resolution: where cams and prototypes are compared, ``"map"`` or ``"prototype"``.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        ignore_index: labels of this value are left out.
        method: the weighting that makes the cam; None: that of the regularizer's ``grad_cam``.
        score: what the cam explains, see :func:`~batchcam_captum.functional.select_scores`. Default: ``"label"``.
        validate: see :class:`CamLoss`.

    Raises:
        TypeError: ``prototypes`` of another kind.
        ValueError: an unknown option.
    """

    def __init__(
        self,
        prototypes: Prototypes | Tensor,
        *,
        resolution: Resolution,
        reduction: Reduction,
        ignore_index: int,
        method: str | CamMethod | None,
        score: Score | None,
        validate: bool,
    ) -> None:
        super().__init__(ignore_index=ignore_index, method=method, score=score, validate=validate)
        if isinstance(prototypes, Tensor):
            prototypes = ClassPrototypes.from_maps(prototypes)
        if not isinstance(prototypes, Prototypes):
            raise TypeError(
                f"prototypes: expected ClassPrototypes, another kind of prototypes, or a tensor (K, 1, *spatial), got "
                f"{type(prototypes).__name__}"
            )
        check_resolution(resolution)
        check_reduction(reduction)
        self.prototypes = prototypes
        self.resolution: Resolution = resolution
        self._fits: Sequence[int] | None = None  #: the size of cams last compared with the prototypes' own
        self.reduction: Reduction = reduction

    @property
    def num_classes(self) -> int:
        """K of the prototypes."""
        return self.prototypes.num_classes

    @property
    def keeps_state(self) -> bool:
        """Whether the prototypes learn from the cams."""
        return self.prototypes.learns

    @property
    def group(self) -> ProcessGroup | None:
        """The ranks over which the loss sums its classes now; None where it does not."""
        return None

    def references(
        self,
        cams: Tensor,
        labels: Tensor,
        masks: Tensor | None,
        sample_weights: Tensor | None = None,
        *,
        per_sample: bool = False,
    ) -> References:
        """What to compare these cams with.

        Args:
            cams: (N, 1, *spatial).
            labels: (N,) class indices, or (N, K) soft labels.
            masks: (N, 1, *spatial), or None.
            sample_weights: (N,), or None.
            per_sample: whether each sample is compared by itself, with a map of its own where it has one.

        Returns:
            Labels, maps at the cams' size, or at the prototypes' own, and which of them there are, as the loss functions take
            them.

        Raises:
            ValueError: cams that no loss can take, or no masks where the prototypes need them.
        """
        check_cams(cams)
        if self.prototypes.needs_masks and masks is None:
            raise ValueError(
                f"masks: expected masks (N, 1, *spatial) for {type(self.prototypes).__name__}, got none; pass masks= to the loss"
            )
        if self.prototypes.needs_masks and isinstance(masks, Tensor) and masks.dim() == cams.dim():
            check_aspect("masks", masks.shape[2:], cams.shape[2:])
        size = cams.shape[2:] if self.resolution == "map" else None
        if size is not None and not torch.compiler.is_compiling():
            self._check_aspect(size)
        return self.prototypes.references(
            labels,
            size=size,
            masks=masks,
            sample_weights=sample_weights,
            ignore_index=self.ignore_index,
            per_sample=per_sample,
            group=self.group,
            checks=self.checks,
        )

    def _check_aspect(self, size: Sequence[int]) -> None:
        """Check, when the size of the cams has changed, that the prototypes' own goes with it."""
        if size == self._fits or self.prototypes.needs_masks or self.prototypes.learns:
            return
        own = self.prototypes.maps().shape[2:]
        if len(own) == len(size):
            check_aspect("prototypes", own, size)
        self._fits = size

    def of_samples(self, cams: Tensor, labels: Tensor, masks: Tensor | None) -> References:
        """What to compare each of these cams with by itself, see :meth:`references`."""
        return self.references(cams, labels, masks, per_sample=True)

    @torch.no_grad()
    def observe(
        self,
        cams: Tensor,
        labels: Tensor,
        *,
        masks: Tensor | None = None,
        sample_weights: Tensor | None = None,
    ) -> None:
        """Prototypes that learn from cams see those of a training batch."""
        if self.prototypes.learns and self.training:
            check_cams(cams)
            maps = prepare(without(cams.detach(), self.counted(labels, sample_weights))).maps
            self.prototypes.observe(
                maps,
                labels,
                sample_weights=sample_weights,
                ignore_index=self.ignore_index,
                checks=self.checks,
            )
