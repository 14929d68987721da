"""Prototypes of images: how images are read, and the mean image of each class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from ..batches import batches
from ..distributed import Ranks, gathered, sending_device, total_over_ranks
from ..functional import ValueChecks, class_weights, resize, to_one_channel
from ..functional.images import PerChannel, ToChannel, per_channel
from ..warn import warn_user
from .base import MAX_DIMENSIONS, Prototypes

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class ImagePrototypes(Prototypes):
    """Prototypes that are computed from the training images of each class.

    Each image is reduced to one channel: its standardization is undone (``mean``, ``std``), then its channels are averaged, or
    reduced by ``to_channel``.

    The options are those of :class:`ClassPrototypes`, and ``per_class``. For a new kind derive from :class:`SampledPrototypes`.
    """

    settings: ClassVar[tuple[str, ...]] = ("mean", "std", "size", "ignore_index")
    remedy: ClassVar[str] = "use from_loader() or from_maps()"
    #: How to change prototypes that are the same everywhere; None: :meth:`from_loader` does not warn of them.
    remedy_for_flat: ClassVar[str | None] = None

    def __init__(
        self,
        num_classes: int,
        *,
        per_class: int = 1,
        mean: PerChannel = None,
        std: PerChannel = None,
        to_channel: ToChannel | None = None,
        size: Sequence[int] | None = None,
        ignore_index: int = -100,
    ) -> None:
        super().__init__(num_classes, per_class=per_class)
        if to_channel is not None and not callable(to_channel):
            raise TypeError(f"to_channel: expected a function of images, got {type(to_channel).__name__}")
        if size is not None and not all(isinstance(each, int) and each > 0 for each in size):
            raise ValueError(f"size: expected positive integers, got {tuple(size)}")
        if not isinstance(ignore_index, int):
            raise TypeError(f"ignore_index: expected an integer, got {type(ignore_index).__name__}")
        self.mean = per_channel("mean", mean)
        self.std = per_channel("std", std)
        self.to_channel = to_channel
        self.size = None if size is None else tuple(size)
        self.ignore_index = ignore_index

    @classmethod
    @torch.inference_mode(False)
    def from_maps(cls, maps: Tensor) -> Self:
        """Use given maps as prototypes.

        Args:
            maps: (K, P, *spatial), one map per class (P = 1) or several.

        Returns:
            Prototypes with a count of 1 for every class, on the device of the maps.

        Raises:
            ValueError: ``maps`` has another shape.
        """
        if maps.dim() < 3 or not maps.shape[1]:
            raise ValueError(f"prototypes: expected maps (K, P, *spatial), got {tuple(maps.shape)}")
        prototypes = cls(maps.shape[0]).to(maps.device)
        prototypes.values = maps.detach().to(torch.float32, copy=True)
        prototypes.counts.fill_(1)
        return prototypes

    @classmethod
    def from_loader(
        cls,
        loader: Iterable[Any],
        num_classes: int,
        *,
        device: torch.device | str | None = None,
        progress: bool = True,
        sync: bool | ProcessGroup = True,
        **options: Any,
    ) -> Self:
        """Compute the prototypes of a data set.

        Use a loader without random augmentation: prototypes show where things are. In a process group each rank passes a loader
        over its share of the images, which may be empty; a ``DistributedSampler`` that pads the last batch counts some images
        twice.

        Args:
            loader: batches that begin with images (N, C, *spatial) and labels (N,).
            num_classes: the number of classes, K.
            device: where to compute, and where the result is stored. Default: the CPU.
            progress: show a progress bar; in a process group the first rank does.
            sync: combine the images of all ranks of the process group, if there is one, or of the given group; every rank then
                has to call this. Pass False if one rank computes the prototypes alone.
            **options: the options of the constructor, such as ``mean`` and ``std``.

        Returns:
            The prototypes, the same on all ranks.

        Raises:
            ValueError: images or labels do not fit, or there are none (on any rank).
            TypeError: batches, ``sync`` or an option of another kind.

        Warns:
            UserWarning: prototypes of some classes are the same everywhere, which teaches nothing.
        """
        prototypes = cls(num_classes, **options)
        fill([prototypes], loader, device, progress=progress, sync=sync)
        return prototypes

    def read(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Check a batch and reduce its images to one channel. Synchronizes with the device.

        Args:
            images: (N, C, *spatial), any number of channels, floating or integer.
            labels: (N,) class indices.

        Returns:
            (M, 1, *spatial) floating and (M,) int64, without the samples that are ignored.

        Raises:
            ValueError: images are not finite or have another size than earlier ones, or labels do not fit.
            TypeError: labels are not integers.
        """
        if labels.is_floating_point():
            raise TypeError(f"labels: expected integer class indices, got {labels.dtype}")
        belongs = class_weights(
            labels, self.num_classes, num_samples=images.shape[0], ignore_index=self.ignore_index
        )
        single = to_one_channel(images, mean=self.mean, std=self.std, to_channel=self.to_channel)
        ValueChecks(synchronize=True).require(
            torch.isfinite(single), "images: expected finite values, got NaN or infinity; check the data set"
        )
        if self.size is not None:
            single = resize(single, self.size)
        known = tuple(self.values.shape[2:])
        if self.values.numel() and tuple(single.shape[2:]) != known:
            raise ValueError(
                f"images: expected the spatial size {known} of earlier images, got {tuple(single.shape[2:])}; pass size= to "
                f"resize all images"
            )
        assert belongs.indices is not None
        return single[belongs.counted], belongs.indices[belongs.counted]

    def _add(self, images: Tensor, labels: Tensor) -> None:
        """Add a batch of a loader."""
        raise NotImplementedError(f"{type(self).__name__} has to implement _add()")

    def _finish(self, group: ProcessGroup | None) -> None:
        """Compute the prototypes when all batches of a loader have been added, on this rank and on those of the group."""
        raise NotImplementedError(f"{type(self).__name__} has to implement _finish()")

    def _make_room(self, size: Sequence[int]) -> None:
        """Allocate the values when the size of the images becomes known."""
        if not self.values.numel():
            self.values = self.values.new_zeros(*self.values.shape[:2], *size)

    def _agree_on_size(self, group: ProcessGroup) -> None:
        """Tell ranks without images the size of the others'. Raise on all ranks if they differ."""
        size = tuple(self.values.shape[2:]) if self.values.numel() else ()
        rows = gathered([self.num_classes, len(size), *size, *[0] * (MAX_DIMENSIONS - len(size))], group)
        if len({row[0] for row in rows}) > 1:
            raise ValueError(
                f"num_classes: expected the same number on all ranks, got {sorted(row[0] for row in rows)}; pass the model's "
                f"number of classes"
            )
        sizes = {tuple(row[2 : 2 + row[1]]) for row in rows if row[1]}
        if len(sizes) > 1:
            raise ValueError(
                f"images: expected one spatial size on all ranks, got {sorted(sizes)}; pass size= to resize all images"
            )
        for each in sizes:
            self._make_room(each)

    def _warn_of_flat(self) -> None:
        """Warn of classes whose maps are the same everywhere. Synchronizes with the device."""
        if self.remedy_for_flat is None:
            return
        flat = self.maps().flatten(1)
        classes = torch.nonzero(self.seen & (flat.amax(1) == flat.amin(1))).flatten().tolist()
        if classes:
            now = ", ".join(f"{name}={getattr(self, name)}" for name in self.settings)
            warn_user(
                f"{type(self).__name__}: expected prototypes that differ from place to place, got the same value everywhere in "
                f"classes {classes[:10]}; {self.remedy_for_flat} (now {now})"
            )


def fill(
    several: Sequence[ImagePrototypes],
    loader: Iterable[Any],
    device: torch.device | str | None = None,
    *,
    progress: bool,
    sync: bool | ProcessGroup,
) -> None:
    """Fill new prototypes of several kinds in one pass over a loader.

    Args:
        several: the prototypes.
        loader: as for :meth:`ImagePrototypes.from_loader`.
        device: as for :meth:`ImagePrototypes.from_loader`.
        progress: as for :meth:`ImagePrototypes.from_loader`.
        sync: as for :meth:`ImagePrototypes.from_loader`.

    Raises:
        ValueError: images or labels do not fit, or there are none (on any rank).
        TypeError: batches or ``sync`` of another kind.
    """
    group = Ranks(sync).group
    for each in several:
        each.to(device)
    shown = progress and (group is None or group.rank() == 0)
    for images, labels in batches(loader, device, description="prototypes", progress=shown):
        for each in several:
            each._add(images, labels)
    for each in several:
        if group is not None:
            each._agree_on_size(group)
        if each.values.numel():
            each._finish(group)
        if not bool(each.counts.any()):
            raise ValueError(
                "loader: expected at least one image whose label is not ignored, got none; check the data set and drop_last"
            )
        each._warn_of_flat()


class ClassPrototypes(ImagePrototypes):
    """The mean training image of each class.

    Each image is reduced to one channel: its standardization is undone (``mean``, ``std``), then its channels are averaged, or
    reduced by ``to_channel``. Images are summed in float64, and the means stored in float32. Updates may continue after loading.

    Args:
        num_classes: the number of classes, K.
        mean: the ``mean`` of ``torchvision.transforms.Normalize`` that was applied to the images; None if it was not.
        std: the ``std`` of ``torchvision.transforms.Normalize``.
        to_channel: (N, C, *spatial) -> (N, 1, *spatial). Default: the mean over the channels.
        size: the spatial size that images are resized to; needed if their sizes differ.
        ignore_index: images with this label are ignored.

    Raises:
        ValueError: ``num_classes`` is not positive, or an option is out of its range.
        TypeError: ``to_channel`` is not callable.

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

    remedy: ClassVar[str] = "call update() or use from_loader()"

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
        super().__init__(
            num_classes, mean=mean, std=std, to_channel=to_channel, size=size, ignore_index=ignore_index
        )
        self._sums: Tensor | None = None  #: (K, 1, *spatial) float64, while streaming

    @torch.inference_mode(False)
    @torch.no_grad()
    def update(self, images: Tensor, labels: Tensor) -> None:
        """Add a batch. Nothing changes if it raises.

        Args:
            images: (N, C, *spatial), any number of channels, floating or integer.
            labels: (N,) class indices.

        Raises:
            ValueError: images are not finite or have another size than earlier ones, or labels do not fit.
            TypeError: labels are not integers.
            RuntimeError: the prototypes cannot be updated, such as ready maps of several prototypes per class.
        """
        classes = self._sum(images, labels)
        self._set_means(classes)

    def _sum(self, images: Tensor, labels: Tensor) -> Tensor:
        """Add a batch to the sums and counts, and return the classes that were in it."""
        if self._sums is None and self.values.numel():
            self._sums = self._resumed_sums()
        single, indices = self.read(images, labels)
        if not len(indices):
            return indices.to(self.counts.device)
        self._make_room(single.shape[2:])
        if self._sums is None:
            self._sums = torch.zeros(self.values.shape, dtype=torch.float64, device=self._sums_device)
        self._sums.index_add_(0, indices.to(self._sums.device), single.to(self._sums.device, torch.float64))
        indices = indices.to(self.counts.device)
        self.counts += torch.bincount(indices, minlength=self.num_classes)
        classes: Tensor = indices.unique()
        return classes

    def _resumed_sums(self) -> Tensor:
        """Return the sums that continue from the means, as after loading."""
        if self.values.shape[1] != 1:
            raise RuntimeError(
                "prototypes: expected one prototype per class to update, got several; make new prototypes"
            )
        counts = self.counts.reshape(-1, *[1] * (self.values.dim() - 1))
        return self.values.to(self._sums_device, torch.float64) * counts.to(self._sums_device)

    def _set_means(self, classes: Tensor) -> None:
        """Compute the values of some classes from the sums."""
        if not len(classes):
            return
        assert self._sums is not None
        sums = self._sums[classes.to(self._sums.device)]
        counts = self.counts[classes].to(sums.device).clamp(min=1)
        means = sums / counts.reshape(-1, *[1] * (sums.dim() - 1))
        self.values[classes] = self._values_of(means.to(self.values.device, torch.float32))

    def _values_of(self, means: Tensor) -> Tensor:
        """Return what is stored for the mean images (M, 1, *spatial) of M classes."""
        return means

    @torch.inference_mode(False)
    @torch.no_grad()
    def _add(self, images: Tensor, labels: Tensor) -> None:
        self._sum(images, labels)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _finish(self, group: ProcessGroup | None) -> None:
        if self._sums is None:  # this rank has no images
            self._sums = torch.zeros(self.values.shape, dtype=torch.float64, device=self._sums_device)
        if group is not None:
            self._sums, self.counts = (_total(each, group) for each in (self._sums, self.counts))
        self._set_means(torch.nonzero(self.counts).flatten())
        self._sums = None

    @property
    def _sums_device(self) -> torch.device:
        device = self.values.device
        return torch.device("cpu") if device.type == "mps" else device  # MPS has no float64

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if self._sums is not None:
            self._sums = self._sums.to(self._sums_device)
        return self

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._sums = None


def _total(tensor: Tensor, group: ProcessGroup) -> Tensor:
    return total_over_ranks(tensor.to(sending_device(tensor.device, group)), group).to(tensor.device)
