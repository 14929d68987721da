"""Class prototypes: the mean training image of each class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ..distributed import gathered, group_of, sending_device, total_over_ranks
from ..functional import class_sums
from ..functional.images import PerChannel, ToChannel, per_channel
from .stored import StoredPrototypes
from .streaming import Reading, take_together

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

#: Images of more spatial dimensions than anybody has.
_MOST_DIMENSIONS = 6


class ClassPrototypes(StoredPrototypes):
    """The mean training image of each class, and how many images it was taken over.

    Each image is reduced to one channel: its standardisation is undone (``mean``, ``std``), then its channels are averaged, or
    whatever ``to_channel`` does. Sums are float64 while streaming; the means are stored in float32 as buffers, travel with
    ``state_dict()`` and ``.to(device)``, and are never cast to a half type. Updating may go on after loading.

    **Several processes.** Each rank updates with its own share of the images, and at the end all of them call :meth:`reduce`, as
    :meth:`from_loader` does by itself.

    Args:
        num_classes: the number of classes, K.
        mean: the ``mean`` of ``torchvision.transforms.Normalize`` that the images went through; None if they did not.
        std: its ``std``.
        to_channel: (N, C, *spatial) -> (N, 1, *spatial), in the place of the channels' average.
        size: images are resized to this spatial size; needed where they come in several.
        ignore_index: images with this label are left out.

    Raises:
        ValueError: ``num_classes`` is not positive, or ``mean`` or ``std`` are no numbers.

    Example:
        >>> import torch
        >>> from batchcam_captum import ClassPrototypes
        >>> prototypes = ClassPrototypes(num_classes=3)
        >>> prototypes.update(torch.rand(5, 1, 8, 8), torch.tensor([0, 1, 0, 1, 1]))
        >>> prototypes.counts, prototypes.maps().shape
        (tensor([2, 3, 0]), torch.Size([3, 1, 8, 8]))
        >>> prototypes.unseen
        [2]
    """

    means: Tensor  #: (K, 1, *spatial) float32, in the images' own units; zero for an unseen class
    counts: Tensor  #: (K,) int64, how many images each mean was taken over; 0 = no prototype yet

    _settings: ClassVar[tuple[str, ...]] = ("mean", "std", "size", "ignore_index")

    def __init__(
        self,
        num_classes: int,
        *,
        mean: PerChannel = None,
        std: PerChannel = None,
        to_channel: ToChannel | None = None,
        size: Sequence[int] | None = None,
        ignore_index: int = -100,
    ) -> None:
        super().__init__(num_classes, size=size)
        self.mean = per_channel("mean", mean)
        self.std = per_channel("std", std)
        self.to_channel = to_channel
        self.ignore_index = ignore_index
        self._common: Tensor | None = None
        self._own: tuple[Tensor, Tensor] | None = None
        self._counts_are_own = False  #: without sums: whether the images counted are this rank's own

    @classmethod
    def from_loader(
        cls,
        loader: Iterable[Any],
        num_classes: int,
        *,
        mean: PerChannel = None,
        std: PerChannel = None,
        to_channel: ToChannel | None = None,
        size: Sequence[int] | None = None,
        ignore_index: int = -100,
        device: torch.device | str | None = None,
        progress: bool = True,
        sync: bool | ProcessGroup = True,
    ) -> Self:
        """Take the prototypes of a whole loader.

        Leave random augmentation out of the loader: the prototype is the mean of what the model is shown. In a process group each
        rank passes a loader over its share, which may be empty; a ``DistributedSampler`` that pads the last batch counts some
        images twice.

        Args:
            loader: of batches that begin with images (N, C, *spatial) and labels (N,).
            num_classes: the number of classes, K.
            mean: see the class.
            std: see the class.
            to_channel: see the class.
            size: see the class.
            ignore_index: see the class.
            device: where to add up, and where the result lies. Default: the CPU.
            progress: show a progress bar; in a process group its first rank does.
            sync: whether the ranks of the process group, if there is one, add up what they have seen, each of which then has to
                call this; or of which group. Pass False where one rank alone takes the prototypes.

        Returns:
            The prototypes, the same on all ranks.

        Raises:
            ValueError: images or labels that do not fit, or an empty loader (on all ranks).
            TypeError: batches, or ``sync``, of another kind.
        """
        prototypes = cls(
            num_classes, mean=mean, std=std, to_channel=to_channel, size=size, ignore_index=ignore_index
        )
        take_together([prototypes], loader, device, progress=progress, sync=sync)
        return prototypes

    def _take_batch(self, images: Tensor, labels: Tensor) -> None:
        """Add a batch of a loader. What can wait for the last one, a subclass leaves to :meth:`_taken`."""
        self.update(images, labels)

    def _taken(self, *, in_common: bool) -> None:
        """All batches of a loader are in, and those of the other ranks."""
        self._drop_sums(in_common=in_common)

    @classmethod
    def from_maps(cls, maps: Tensor) -> Self:
        """Take ready maps as prototypes.

        Args:
            maps: (K, 1, *spatial).

        Returns:
            Prototypes that count as seen once each.

        Raises:
            ValueError: another shape.
        """
        if maps.dim() < 3 or maps.shape[1] != 1:
            raise ValueError(f"prototypes: expected maps (K, 1, *spatial), got {tuple(maps.shape)}")
        with torch.inference_mode(False):
            prototypes = cls(maps.shape[0], size=maps.shape[2:])
            prototypes.to(maps.device)
            prototypes.means.copy_(maps.detach())
            prototypes.counts.fill_(1)
        return prototypes

    @torch.inference_mode(False)
    @torch.no_grad()
    def update(self, images: Tensor, labels: Tensor) -> None:
        """Add a batch to the means. Nothing changes if it raises.

        Args:
            images: (N, C, *spatial), any channel count, floating or integer.
            labels: (N,) class indices.

        Raises:
            ValueError: images of another size than before, not finite, or labels that do not fit.
            TypeError: labels that are no integers.
        """
        single, indices = self._read(images, labels)
        if not len(indices):  # an empty batch, or one that is ignored
            return
        self._fit(tuple(single.shape[2:]))
        common, (own, own_counts) = self._sums()
        device = own.device
        present, position = torch.unique(indices.to(device), return_inverse=True)
        rows = single.to(device, torch.float64)
        # Only the classes of this batch are touched, so that a thousand classes cost no more than the images do.
        counts = torch.bincount(position, minlength=len(present))
        own[present] += class_sums(rows, nn.functional.one_hot(position, len(present)))
        for each in (own_counts, self.counts):
            each[present.to(each.device)] += counts.to(each.device)
        sums = own[present] if common is None else common[present] + own[present]
        totals = self.counts[present.to(self.counts.device)].to(device).reshape(-1, *[1] * (rows.dim() - 1))
        self.means[present.to(self.means.device)] = (sums / totals).to(self.means.device, torch.float32)

    def _fit(self, size: tuple[int, ...]) -> None:
        """Have room for images of this spatial size, which is that of the images before if there were any."""
        spatial = tuple(self.means.shape[2:])
        if not self.means.numel():
            self.means = self.means.new_zeros(self.num_classes, 1, *size)
        elif size != spatial:
            raise ValueError(
                f"images: expected the spatial size {spatial} of the images before, got {size}; pass size= to have all of them "
                f"resized"
            )

    def _read(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What the means are taken of: (M, 1, *spatial), and the labels (M,), without those that are ignored."""
        reading = Reading(
            self.num_classes, self.mean, self.std, self.to_channel, self.size, self.ignore_index
        )
        return reading.read(images, labels)

    @torch.inference_mode(False)
    @torch.no_grad()
    def reduce(self, group: ProcessGroup | None = None) -> None:
        """Add up what the ranks of a process group have seen, so that each holds the prototypes of all images.

        Each image counts once, however often this is called: what is added up are the images of the updates since the last call.
        Updates may go on afterwards, and are this rank's own until the next call. What was loaded, moved in by
        :meth:`from_maps`, or added up before, all ranks have in common; it is not added up again.

        Every rank of the group has to call this, also one that has seen nothing, which need not know the images' size. Without a
        process group, or in one of a single rank, nothing happens.

        Args:
            group: of the ranks. Default: all of them.

        Raises:
            ValueError: on all ranks: they differ in the number of classes, in the size of their images, or in what they should
                have in common.
        """
        group = group_of(True if group is None else group)
        if group is not None and self._agree_on_size(group):
            self._add_up(group)

    def _add_up(self, group: ProcessGroup) -> None:
        """What :meth:`reduce` does, once the ranks agree."""
        common, (own, own_counts) = self._sums()
        total, total_counts = total_of_ranks(own, group), total_of_ranks(own_counts, group)
        self.counts += (total_counts - own_counts).to(self.counts.device)
        self._common = total if common is None else common + total
        self._own = None
        counts = self.counts.to(total.device).clamp(min=1).reshape(-1, *[1] * (total.dim() - 1))
        self.means.copy_(self._common / counts)

    def _agree_on_size(self, group: ProcessGroup) -> bool:
        """Whether any rank knows the images' size; all of them then do. Raises on all ranks, or on none."""
        spatial = tuple(self.means.shape[2:]) if self.means.numel() else ()
        rules = self._alike_on_all_ranks()
        padding = [0] * (_MOST_DIMENSIONS - len(spatial))
        every = gathered([*(own for _, own, _ in rules), len(spatial), *spatial, *padding], group)
        for (what, _, remedy), found in zip(rules, map(set, zip(*every, strict=True)), strict=False):
            if len(found) > 1:
                raise ValueError(f"reduce: expected {what} on all ranks, got {sorted(found)}; {remedy}")
        sizes = {tuple(each[len(rules) + 1 :][: each[len(rules)]]) for each in every if each[len(rules)]}
        if len(sizes) > 1:
            raise ValueError(
                f"reduce: expected one spatial size of the images on all ranks, got {sorted(sizes)}; pass size= to have all of "
                f"them resized"
            )
        if sizes and not spatial:
            self.means = self.means.new_zeros(self.num_classes, 1, *sizes.pop())
            return True
        return bool(sizes)

    def _alike_on_all_ranks(self) -> list[tuple[str, int, str]]:
        """What the ranks have to agree on beside the size: what it is, this rank's own, and the remedy where they do not."""
        return [
            ("one number of classes", self.num_classes, "pass the model's number of classes"),
            (
                "as many images that all have in common",
                self._number_in_common(),
                "load them on all ranks or on none",
            ),
        ]

    def _number_in_common(self) -> int:
        """Of how many images the ranks should all know already."""
        own = self.counts if self._counts_are_own else None if self._own is None else self._own[1]
        return int(self.counts.sum()) - (0 if own is None else int(own.sum()))

    def _sums(self) -> tuple[Tensor | None, tuple[Tensor, Tensor]]:
        """Sums in float64, of what all ranks have in common (None: nothing) and of this rank's own images, and their counts."""
        if self._own is None:
            so_far = None
            if self._common is None and bool(self.counts.any()):
                by_class = self.counts.reshape(-1, *[1] * (self.means.dim() - 1))
                so_far = self.means.to(self._sums_device, torch.float64) * by_class.to(self._sums_device)
            if so_far is not None and self._counts_are_own:
                self._own = so_far, self.counts.clone()
            else:
                self._common = self._common if so_far is None else so_far
                own = torch.zeros(self.means.shape, dtype=torch.float64, device=self._sums_device)
                self._own = own, torch.zeros_like(self.counts)
            self._counts_are_own = False
        return self._common, self._own

    @property
    def _sums_device(self) -> torch.device:
        device = self.means.device
        return torch.device("cpu") if device.type == "mps" else device  # MPS has no float64

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        # Moved, and never cast. They cannot be told from the means: those of other ranks are in them after reduce().
        if self._common is not None:
            self._common = self._common.to(self._sums_device)
        if self._own is not None:
            self._own = self._own[0].to(self._sums_device), self._own[1].to(self.counts.device)
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, *rest: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *rest)
        self._drop_sums(in_common=True)

    def _drop_sums(self, *, in_common: bool) -> None:
        """Drop the float64 sums, which are twice as large as the means: :meth:`_sums` makes them again from the means."""
        self._common, self._own = None, None
        self._counts_are_own = not in_common


def total_of_ranks(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """Σ_r x_r over the ranks, wherever the tensor lies, see :func:`~batchcam_captum.distributed.total_over_ranks`."""
    sent = tensor.to(sending_device(tensor.device, group))
    return total_over_ranks(sent, group).to(tensor.device)
