"""What the losses that compare cams with class prototypes have in common."""

from __future__ import annotations

from torch import Tensor

from ..functional import Resolution, class_weights
from ..functional.losses import check_cams, check_resolution
from ..functional.reduce import Reduction, check_reduction
from ..prototypes import ClassPrototypes
from .base import CamLoss


class PrototypeCamLoss(CamLoss):
    """A cam loss that holds class prototypes.

    Args:
        prototypes: the class prototypes, or ready maps (K, 1, *spatial).
        resolution: where cams and prototypes are compared, ``"map"`` or ``"prototype"``.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        ignore_index: labels of this value are left out.
        validate: see :class:`CamLoss`.

    Raises:
        TypeError: ``prototypes`` of another kind.
        ValueError: an unknown option.
    """

    def __init__(
        self,
        prototypes: ClassPrototypes | Tensor,
        *,
        resolution: Resolution,
        reduction: Reduction,
        ignore_index: int,
        validate: bool,
    ) -> None:
        super().__init__(validate=validate)
        if isinstance(prototypes, Tensor):
            prototypes = ClassPrototypes.from_maps(prototypes)
        if not isinstance(prototypes, ClassPrototypes):
            raise TypeError(
                f"prototypes: expected ClassPrototypes or a tensor (K, 1, *spatial), got {type(prototypes).__name__}"
            )
        check_resolution(resolution)
        check_reduction(reduction)
        self.prototypes = prototypes
        self.resolution: Resolution = resolution
        self.reduction: Reduction = reduction
        self.ignore_index = ignore_index

    @property
    def num_classes(self) -> int:
        """K of the prototypes."""
        return self.prototypes.num_classes

    def maps_for(self, cams: Tensor, labels: Tensor) -> Tensor:
        """The prototypes' maps to compare these cams with, after a check that every label has one.

        Args:
            cams: (N, 1, *spatial).
            labels: (N,) class indices, or (N, K) soft labels.

        Returns:
            (K, 1, *spatial) at the cams' size, or at the prototypes' own.

        Raises:
            ValueError: a label without a prototype, or labels that do not fit.
        """
        check_cams(cams)
        belongs = class_weights(
            labels,
            self.num_classes,
            num_samples=cams.shape[0],
            ignore_index=self.ignore_index,
            checks=self.checks,
        )
        self.checks.require(
            self.prototypes.seen | (belongs.weights == 0).all(0),
            "prototypes: expected a prototype for the class of every label, got labels of a class that was never seen; take "
            "the prototypes over the whole training set, or ignore these labels",
            lambda: f"classes without a prototype: {self.prototypes.unseen[:10]}",
        )
        return self.prototypes.maps(cams.shape[2:] if self.resolution == "map" else None)
