"""Masks of the batch as prototypes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..distributed import total_over_ranks
from ..functional import ValueChecks, class_sums, class_weights, resize
from ..functional.class_means import ClassWeights
from ..functional.precision import full_precision, no_autocast
from .base import Prototypes, References

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class MaskPrototypes(Prototypes):
    """What the samples of the batch are annotated with: masks, or boxes drawn as masks.

    A loss of samples compares each cam with its own mask. A loss of classes compares with the mean mask of each class in the
    batch, over the very samples, weights and ranks over which the cams are averaged; the classes without a sample in the batch
    take no part. With ``memory`` a :class:`~batchcam_captum.BatchCamLoss` still compares with the masks of the present call.

    The masks come with each call, ``loss(cams, labels, masks=masks)``: (N, 1, *spatial) in [0, 1], or booleans, of any size.
    :func:`~batchcam_captum.prototypes.boxes_to_masks` draws boxes. Losses divide what they compare with by its maximum, so that a
    small object on a coarse map still peaks at 1.

    Args:
        num_classes: the number of classes, K.
        skip_empty: leave out samples whose mask is all zero, for data of which a part is annotated. Default: they are an error.

    Raises:
        ValueError: ``num_classes`` is not positive.

    Example:
        >>> import torch
        >>> from batchcam_captum import MaskPrototypes, PrototypeLoss
        >>> from batchcam_captum.prototypes import boxes_to_masks
        >>> loss = PrototypeLoss(MaskPrototypes(num_classes=10))
        >>> masks = boxes_to_masks(torch.tensor([[4, 4, 20, 24], [0, 8, 28, 28]]), image_size=(28, 28))
        >>> loss(torch.randn(2, 1, 7, 7), torch.tensor([3, 1]), masks=masks) > 0
        tensor(True)
    """

    needs_masks = True

    def __init__(self, num_classes: int, *, skip_empty: bool = False) -> None:
        super().__init__(num_classes)
        self.skip_empty = skip_empty

    @property
    def seen(self) -> Tensor:
        """See :meth:`maps`.

        Raises:
            RuntimeError: always.
        """
        raise self._none_of_their_own()

    def maps(self, size: Sequence[int] | None = None) -> Tensor:
        """Without a batch there are none.

        Raises:
            RuntimeError: always.
        """
        raise self._none_of_their_own()

    def references(
        self,
        labels: Tensor,
        *,
        size: Sequence[int] | None = None,
        masks: Tensor | None = None,
        sample_weights: Tensor | None = None,
        ignore_index: int = -100,
        per_sample: bool = False,
        group: ProcessGroup | None = None,
        checks: ValueChecks | None = None,
    ) -> References:
        """The masks of the batch.

        Args:
            labels: (N,) class indices, or (N, K) soft labels.
            size: the masks are resized to this size, by area where they shrink. Default: their own.
            masks: (N, 1, *spatial) in [0, 1], or booleans.
            sample_weights: (N,) how much each sample counts, also in the mean masks.
            ignore_index: labels of this value are left out; their masks may hold anything.
            per_sample: each sample's own mask rather than the mean of each class.
            group: the ranks over which means are taken.
            checks: where checks of values go; default: they raise at once.

        Returns:
            For ``per_sample`` the labels 0 … N−1 and maps (N, 1, *size); otherwise the labels and maps (K, 1, *size), zero for an
            absent class. Samples that are left out have ``ignore_index``, or a row of zeros.

        Raises:
            ValueError: no masks, another shape, values out of [0, 1], or an empty mask; or labels that do not fit.
            TypeError: labels of a wrong kind, or masks that are no tensor.
        """
        checks = ValueChecks(synchronize=True) if checks is None else checks
        belongs = class_weights(
            labels,
            self.num_classes,
            ignore_index=ignore_index,
            sample_weights=sample_weights,
            checks=checks,
        )
        maps = self._checked(masks, belongs, size, checks)
        counted = belongs.counted
        if self.skip_empty:
            counted = counted & (maps.flatten(1) > 0).any(1)
        if per_sample:
            each = torch.arange(labels.shape[0], device=labels.device)
            return References(each.where(counted, ignore_index), maps, torch.ones_like(counted))
        if self.skip_empty:
            labels = _without(labels, counted, ignore_index)
        return References(labels, *self._means(maps, belongs, counted, group))

    def _checked(
        self, masks: Tensor | None, belongs: ClassWeights, size: Sequence[int] | None, checks: ValueChecks
    ) -> Tensor:
        """The masks as maps (N, 1, *size), zero where the sample is ignored."""
        n = belongs.counted.shape[0]
        if masks is None:
            raise ValueError(
                "masks: expected masks (N, 1, *spatial) for MaskPrototypes, got none; pass masks= to the loss"
            )
        if not isinstance(masks, Tensor):
            raise TypeError(
                f"masks: expected a tensor (N, 1, *spatial), got {type(masks).__name__}; pass torch.stack(masks), and boxes "
                f"through boxes_to_masks()"
            )
        dims = None if size is None else len(size) + 2
        if masks.dim() < 3 or masks.shape[:2] != (n, 1) or dims not in (None, masks.dim()):
            spatial = "*spatial" if dims is None else f"{dims - 2} spatial dimensions"
            raise ValueError(
                f"masks: expected ({n}, 1, {spatial}), got {tuple(masks.shape)}; pass one mask a sample, and boxes through "
                f"boxes_to_masks()"
            )
        with no_autocast(masks):
            maps = full_precision(masks.detach())
            ignored = ~belongs.counted.reshape(-1, *[1] * (maps.dim() - 1))
            maps = maps.masked_fill(ignored, 0)
            checks.require(
                (maps >= 0) & (maps <= 1),
                "masks: expected values from 0 to 1, or booleans, got others; divide masks of 0 and 255 by 255",
            )
            if not self.skip_empty:
                checks.require(
                    (maps.flatten(1) > 0).any(1) | ~belongs.counted,
                    "masks: expected a mask with a positive value for every sample, got an empty one; ignore the labels of "
                    "samples without an annotation, or pass skip_empty=True to MaskPrototypes",
                )
            return maps if size is None else resize(maps, size)

    def _means(
        self, maps: Tensor, belongs: ClassWeights, counted: Tensor, group: ProcessGroup | None
    ) -> tuple[Tensor, Tensor]:
        """The mean mask of each class (K, 1, *size), and which classes there are."""
        with no_autocast(maps):
            present = (belongs.weights * counted.unsqueeze(1)).to(maps.dtype)
            weights = (belongs.weighted * counted.unsqueeze(1)).to(maps.dtype)
            columns = torch.cat([class_sums(maps.flatten(1), weights), weights.sum(0).unsqueeze(1)], 1)
            columns = torch.cat([columns, present.sum(0).unsqueeze(1)], 1)
            if group is not None:
                columns = total_over_ranks(columns, group)
            sums, totals, present = columns[:, :-2], columns[:, -2:-1], columns[:, -1]
            means = sums / totals.where(totals > 0, 1)
        return means.reshape(-1, *maps.shape[1:]), present > 0

    @staticmethod
    def _none_of_their_own() -> RuntimeError:
        return RuntimeError(
            "prototypes: expected maps that are kept, got MaskPrototypes, whose maps come with each batch; call "
            "references(labels, masks=masks)"
        )

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"num_classes={self.num_classes}, skip_empty={self.skip_empty}"


def _without(labels: Tensor, counted: Tensor, ignore_index: int) -> Tensor:
    """The labels, ignored where a sample does not count."""
    if labels.is_floating_point():
        return labels * counted.unsqueeze(1)
    return labels.long().where(counted, ignore_index)
