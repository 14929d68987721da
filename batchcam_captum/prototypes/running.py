"""The running mean cam of each class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..distributed import Ranks, total_over_ranks
from ..functional import ValueChecks, class_sums, class_weights, normalize, resize
from ..functional.common import full_precision, no_autocast
from .base import Prototypes

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class RunningPrototypes(Prototypes):
    r"""The mean cam of each class, an exponential moving average over the training batches.

    .. math:: P_c \leftarrow m P_c + (1 - m)\,\bar M_c, \qquad
        \bar M_c = \frac{\sum_i s_i w_{ic} M_i}{\sum_i s_i w_{ic}}

    with M the rectified and normalized cams, w the labels and s the weights of the samples. The first mean of a class is stored
    as it is. If the soft labels of a batch add up to less than one sample of a class, the mean moves by proportionally less. A
    loss thus asks that cams resemble earlier cams of their class; no images and no masks are needed.

    A loss in training mode updates the prototypes with each batch before it compares, so the first batch of a class is compared
    with its own mean. Dead cams and cams that are not finite do not enter the mean. Under gradient accumulation each micro-batch
    is an update. Each loss, and each layer, needs prototypes of its own; otherwise every step counts twice.

    In a process group the sums of a batch are added up over all ranks, so all ranks hold the same prototypes; every rank has to
    call the loss equally often, even without images.

    Args:
        num_classes: the number of classes, K.
        momentum: m in [0, 1).
        size: the spatial size of the mean. Default: that of the first cams; later ones are resized to it. Needed if the ranks of
            a group see cams of different sizes.
        sync: average over all ranks of the process group, if there is one, or over the given group.

    Raises:
        TypeError: ``sync`` of another kind.
        ValueError: ``num_classes`` is not positive, or ``momentum`` is out of range.

    Example:
        >>> import torch
        >>> from batchcam_captum import PrototypeLoss, RunningPrototypes
        >>> prototypes = RunningPrototypes(num_classes=3, momentum=0.9)
        >>> loss = PrototypeLoss(prototypes, distance="cosine")
        >>> loss(torch.randn(4, 1, 7, 7), torch.tensor([0, 1, 1, 0])) < 1
        tensor(True)
        >>> prototypes.counts, prototypes.maps().shape
        (tensor([2, 2, 0]), torch.Size([3, 1, 7, 7]))
    """

    evidence: (
        Tensor  #: (K,) float32 in [0, 1]: the largest number of samples of the class in one batch, at most 1
    )

    learns: ClassVar[bool] = True
    settings: ClassVar[tuple[str, ...]] = ("momentum", "size")
    samples: ClassVar[str] = "cams"
    remedy: ClassVar[str] = "call the loss in training mode first, or load a state"

    def __init__(
        self,
        num_classes: int,
        momentum: float = 0.9,
        *,
        size: Sequence[int] | None = None,
        sync: bool | ProcessGroup = True,
    ) -> None:
        super().__init__(num_classes)
        if not 0 <= momentum < 1:
            raise ValueError(
                f"momentum: expected a number of at least 0 and below 1, got {momentum}; 0.9 keeps nine tenths of the old mean"
            )
        self.momentum = momentum
        self.size = None if size is None else tuple(size)
        self._ranks = Ranks(sync)
        with torch.inference_mode(False):
            self.register_buffer("evidence", torch.zeros(num_classes))

    @property
    def sync(self) -> bool | ProcessGroup:
        """The ranks that the means are taken over."""
        return self._ranks.sync

    @torch.inference_mode(False)
    @torch.no_grad()
    def observe(
        self,
        maps: Tensor,
        labels: Tensor,
        *,
        sample_weights: Tensor | None = None,
        ignore_index: int = -100,
        checks: ValueChecks | None = None,
    ) -> None:
        """Move the means towards those of a batch. Losses in training mode call it.

        Args:
            maps: (N, 1, *spatial), rectified and normalized cams; an all-zero one is dead.
            labels: (N,) class indices, or (N, K) soft labels.
            sample_weights: (N,), or None.
            ignore_index: samples with this label are ignored.
            checks: collects value checks. Default: they raise at once.

        Raises:
            ValueError: maps with another number of dimensions than before, or labels that do not fit.
            TypeError: labels of another kind.
        """
        with no_autocast(maps):
            belongs = class_weights(
                labels,
                self.num_classes,
                num_samples=maps.shape[0],
                ignore_index=ignore_index,
                sample_weights=sample_weights,
                checks=checks,
            )
            if self.values.numel() and maps.dim() != self.values.dim():
                raise ValueError(
                    f"cams: expected {self.values.dim() - 2} spatial dimensions as before, got {tuple(maps.shape)}; make "
                    f"prototypes for each layer"
                )
            maps = full_precision(maps)
            if not self.values.numel():
                self.values = self.values.new_zeros(self.num_classes, 1, *(self.size or maps.shape[2:]))
            rows = normalize(resize(maps, self.values.shape[2:]), "max").flatten(1)
            rows = rows.masked_fill(~rows.isfinite().all(1, keepdim=True), 0)
            alive = (rows.amax(1, keepdim=True) > 0).to(rows.dtype)
            sums = class_sums(torch.cat([rows, alive], 1), belongs.weighted)
            mass = class_sums(alive, belongs.weights)
            number = (belongs.weighted > 0).sum(0, dtype=sums.dtype)
            packed = torch.cat([sums, mass, number.unsqueeze(1)], 1)  # one message between the ranks
            if self._ranks.group is not None:
                packed = total_over_ranks(packed, self._ranks.group)
            self._move(packed[:, :-3], packed[:, -3:-2], packed[:, -2:-1])
            self.counts.add_(packed[:, -1].round().long())

    def _move(self, sums: Tensor, weights: Tensor, mass: Tensor) -> None:
        """Move the means.

        Args:
            sums: (K, pixels) the weighted sums of the cams.
            weights: (K, 1) the sums of their weights.
            mass: (K, 1) the sums of their labels alone: how many samples of the class there are.
        """
        old = self.values.flatten(1)
        means = (sums / weights.where(weights > 0, 1)).to(old.dtype)
        # Under label smoothing most classes have a small fraction of a sample in a batch, and move by as little. The old mean
        # resists in proportion to its own evidence, so the first whole sample of a class replaces such fractions.
        mass = mass.clamp(max=1).to(old.dtype)
        resistance = self.evidence.unsqueeze(1) * (self.momentum / (1 - self.momentum))
        share = mass / (mass + resistance).where(mass > 0, 1)
        self.values.copy_(torch.lerp(old, means, share).where(weights > 0, old).reshape(self.values.shape))
        self.evidence.copy_(torch.maximum(self.evidence, mass.squeeze(1)))

    @torch.no_grad()
    def _make_maps(self, size: tuple[int, ...]) -> Tensor:
        """Return the maps without min–max: zero means that no cam was ever positive there."""
        return normalize(resize(self.values, size), "max")
