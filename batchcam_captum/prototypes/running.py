"""Self-prototypes: the running mean cam of each class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor

from ..distributed import Ranks, total_over_ranks
from ..functional import ValueChecks, class_sums, class_weights, normalize, resize
from ..functional.precision import full_precision, no_autocast
from .stored import StoredPrototypes

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class RunningPrototypes(StoredPrototypes):
    r"""The mean cam of each class, an exponential moving average over the training batches.

    .. math:: P_c \leftarrow m P_c + (1 - m)\,\bar M_c, \qquad
        \bar M_c = \frac{\sum_i s_i w_{ic} M_i}{\sum_i s_i w_{ic}}

    with M the rectified and normalised cams, w the labels and s the weights of the samples. The first mean of a class is taken
    as it is. Where soft labels add up to less than one sample of a class the mean moves by as much less. A cam is thereby asked
    to resemble those that the network made of its class before: no images are needed, and no masks.

    A loss in train mode updates them with each batch before it compares, so the first batch of a class is compared with its own
    mean. Dead cams do not enter the mean, nor does a cam that is not finite: one overflow would stay for good. Averages are
    float32 and carry no graph. In a process group the sums over the batch are added up over all ranks, so that each holds the
    same prototypes; every rank has to call the loss equally often, also one without any image. Under accumulation of gradients
    each micro-batch is an update.

    Give each loss, and each layer, prototypes of its own, or every step counts twice.

    Args:
        num_classes: the number of classes, K.
        momentum: m in [0, 1).
        size: the spatial size to average at. Default: that of the first cams; later ones are resized to it. Needed where the
            ranks of a group see cams of several sizes.
        sync: whether the means are taken over all ranks of the process group, if there is one; or over which group.

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

    means: Tensor  #: (K, 1, *spatial) float32, in [0, 1]; zero for a class without a living cam yet
    counts: Tensor  #: (K,) int64, how many cams of each class there were; 0 = no prototype yet
    evidence: Tensor  #: (K,) float32 in [0, 1]: the most that a batch held of each class, at most one sample

    learns = True
    _settings: ClassVar[tuple[str, ...]] = ("momentum", "size")
    _samples: ClassVar[str] = "cams"
    _remedy: ClassVar[str] = "they are learnt in training: call the loss in train mode first, or load a state"

    def __init__(
        self,
        num_classes: int,
        momentum: float = 0.9,
        *,
        size: Sequence[int] | None = None,
        sync: bool | ProcessGroup = True,
    ) -> None:
        super().__init__(num_classes, size=size)
        if not 0 <= momentum < 1:
            raise ValueError(
                f"momentum: expected a number of at least 0 and below 1, got {momentum}; 0.9 keeps nine tenths of the old mean"
            )
        self.momentum = momentum
        self._ranks = Ranks(sync)
        with torch.inference_mode(False):
            self.register_buffer("evidence", torch.zeros(num_classes))

    @property
    def sync(self) -> bool | ProcessGroup:
        """Over which ranks the means are taken."""
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
        """Move the means towards those of a batch. Losses in train mode call it.

        Args:
            maps: (N, 1, *spatial), rectified and normalised cams; an all-zero one is dead.
            labels: (N,) class indices, or (N, K) soft labels.
            sample_weights: (N,), or None.
            ignore_index: labels of this value are left out.
            checks: where checks of values go; default: they raise at once.

        Raises:
            ValueError: maps with another number of dimensions than before, or labels that do not fit.
            TypeError: labels of a wrong kind.
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
            if self.means.numel() and maps.dim() != self.means.dim():
                raise ValueError(
                    f"cams: expected {self.means.dim() - 2} spatial dimensions as before, got {tuple(maps.shape)}; make "
                    f"prototypes for each layer"
                )
            maps = full_precision(maps)
            if not self.means.numel():
                self.means = self.means.new_zeros(self.num_classes, 1, *maps.shape[2:])
            maps = normalize(resize(maps, self.means.shape[2:]), "max")
            rows = maps.flatten(1)
            finite = rows.isfinite().all(1)
            rows = rows.masked_fill(~finite.unsqueeze(1), 0)
            living = rows.amax(1, keepdim=True) > 0
            columns = torch.cat([rows, living.to(rows.dtype)], 1)
            sums = class_sums(columns, belongs.weighted)
            # The number of samples, and how much of them is of the class, beside the sums: one message for all.
            number = (belongs.weighted > 0).sum(0, dtype=sums.dtype)
            mass = class_sums(living.to(rows.dtype), belongs.weights)
            packed = torch.cat([sums, mass, number.unsqueeze(1)], 1)
            group = self._ranks.group
            if group is not None:
                packed = total_over_ranks(packed, group)
            sums, weights, mass, number = packed[:, :-3], packed[:, -3:-2], packed[:, -2:-1], packed[:, -1]
            old = self.means.flatten(1)
            batch = (sums / weights.where(weights > 0, 1)).to(old.dtype)
            # Less than one sample in all, as of most classes under label smoothing, moves the mean by as much less. What is known
            # so far resists in proportion, so that the first sample of a class takes the place of such crumbs.
            mass = mass.clamp(max=1).to(old.dtype)
            resistance = self.evidence.unsqueeze(1) * (self.momentum / (1 - self.momentum))
            share = mass / (mass + resistance).where(mass > 0, 1)
            self.means.copy_(torch.lerp(old, batch, share).where(weights > 0, old).reshape(self.means.shape))
            self.evidence.copy_(torch.maximum(self.evidence, mass.squeeze(1)))
            self.counts.add_(number.round().long())

    @torch.inference_mode(False)
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = self.evidence
        super()._apply(fn, recurse)
        # As the means: the device may change, the precision may not.
        self.evidence = before.to(self.evidence.device)
        return self

    @torch.no_grad()
    def _made(self, size: tuple[int, ...]) -> Tensor:
        # No min-max: zero means that the cams never were there.
        return normalize(resize(self.means, size), "max")
