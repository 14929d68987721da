"""What every kind of prototypes has in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

from ..functional import ValueChecks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class References(NamedTuple):
    """What the cams of a batch are compared with: the maps of G groups, which are the classes, or each sample by itself."""

    labels: Tensor  #: (N,) group indices, or (N, G) soft labels: which maps each sample is compared with
    maps: Tensor  #: (G, P, *spatial) in [0, 1]: P prototypes of each group, of which the nearest counts
    seen: Tensor  #: (G,) booleans: which groups have some


class Prototypes(nn.Module):
    """Maps of each class, for cams to resemble. Every loss takes every kind.

    A subclass implements :meth:`maps` and :attr:`seen`; one whose maps depend on the batch, :meth:`references`; one that learns
    from the cams, :meth:`observe`. State belongs into buffers, so that it travels with ``state_dict()``;
    :class:`~batchcam_captum.prototypes.StoredPrototypes` has what keeping a map a class takes.

    Args:
        num_classes: the number of classes, K.

    Raises:
        ValueError: ``num_classes`` is not positive.
    """

    #: Whether the loss has to be given ``masks``.
    needs_masks = False
    #: Whether calls of a loss change the maps, so that one object serves one layer.
    learns = False

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes: expected at least 1, got {num_classes}")
        self.num_classes = num_classes

    @property
    def seen(self) -> Tensor:
        """(K,) booleans: which classes have a prototype."""
        raise NotImplementedError(f"{type(self).__name__} has to implement seen")

    def maps(self, size: Sequence[int] | None = None) -> Tensor:
        """The prototypes as maps in [0, 1].

        Args:
            size: the spatial size of the cams to compare with. Default: the prototypes' own.

        Returns:
            (K, P, *size), without a graph; all zero for a class without a prototype. Not to be changed in place.
        """
        raise NotImplementedError(f"{type(self).__name__} has to implement maps()")

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
        """What the cams of a batch are compared with.

        Args:
            labels: (N,) class indices, or (N, K) soft labels.
            size: see :meth:`maps`.
            masks: (N, 1, *spatial), where the loss was given some.
            sample_weights: (N,), or None.
            ignore_index: labels of this value are left out.
            per_sample: the loss compares each sample by itself, so that samples may have maps of their own, and be a group each;
                otherwise the groups are the K classes.
            group: the ranks over which the loss sums its classes, all of which are in the same call; None where it does not.
            checks: where checks of values go; default: they raise at once.

        Returns:
            The labels as they came and the class prototypes, unless a subclass knows better.
        """
        return References(labels, self.maps(size), self.seen)

    def observe(
        self,
        maps: Tensor,
        labels: Tensor,
        *,
        sample_weights: Tensor | None = None,
        ignore_index: int = -100,
        checks: ValueChecks | None = None,
    ) -> None:
        """Learn from a training batch, before its loss is computed. Nothing to learn here.

        All ranks of a process group are in the same call.

        Args:
            maps: (N, 1, *spatial), rectified and normalised cams without a graph; zero where dead, or where the label is ignored.
            labels: (N,) class indices, or (N, K) soft labels.
            sample_weights: (N,), or None.
            ignore_index: labels of this value are left out.
            checks: where checks of values go; default: they raise at once.
        """

    def __len__(self) -> int:
        return self.num_classes
