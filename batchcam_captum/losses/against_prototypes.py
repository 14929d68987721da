"""What the losses that compare cams with class prototypes have in common."""

from __future__ import annotations

from torch import Tensor

from ..functional import Resolution
from ..functional.comparison import check_cams, check_resolution
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
        super().__init__(ignore_index=ignore_index, validate=validate)
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

    @property
    def num_classes(self) -> int:
        """K of the prototypes."""
        return self.prototypes.num_classes

    def maps_for(self, cams: Tensor) -> Tensor:
        """The prototypes' maps to compare these cams with.

        Args:
            cams: (N, 1, *spatial).

        Returns:
            (K, 1, *spatial) at the cams' size, or at the prototypes' own.

        Raises:
            ValueError: cams that no loss can take.
        """
        check_cams(cams)
        return self.prototypes.maps(cams.shape[2:] if self.resolution == "map" else None)
