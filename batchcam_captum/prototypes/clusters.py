"""Several prototypes a class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from ..batches import batches
from ..distributed import Ranks, gathered
from ..functional.images import PerChannel, ToChannel, per_channel
from .kmeans import ClassKMeans
from .stored import StoredPrototypes
from .streaming import Reading

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

#: Images of more spatial dimensions than anybody has.
_MOST_DIMENSIONS = 6


class ClusterPrototypes(StoredPrototypes):
    """Several prototypes a class, the means of the clusters of its images; a cam is compared with the nearest.

    The mean of all images of a class is a blur where the object is here in one image and there in the next. The clusters are
    found by k-means on the images, each as one channel, see :class:`ClassPrototypes`.

    Args:
        num_classes: the number of classes, K.
        per_class: how many prototypes each class has, P.
        size: the spatial size.

    Raises:
        ValueError: ``num_classes`` or ``per_class`` is not positive.

    Example:
        >>> import torch
        >>> from batchcam_captum import ClusterPrototypes
        >>> images = torch.zeros(6, 1, 8, 8)
        >>> images[:3, :, :4] = 1
        >>> images[3:, :, 4:] = 1
        >>> loader = [(images, torch.zeros(6, dtype=torch.long))]
        >>> prototypes = ClusterPrototypes.from_loader(loader, num_classes=1, per_class=2, progress=False)
        >>> prototypes.counts, prototypes.maps().shape
        (tensor([[3, 3]]), torch.Size([1, 2, 8, 8]))
    """

    means: Tensor  #: (K, P, *spatial) float32, in the images' own units; zero for an unseen class
    counts: Tensor  #: (K, P) int64, the images of each cluster; 0 for a repeated prototype, and for an unseen class

    _settings: ClassVar[tuple[str, ...]] = ("per_class", "size")
    _remedy: ClassVar[str] = "use from_loader() or from_maps()"

    def __init__(self, num_classes: int, per_class: int = 4, *, size: Sequence[int] | None = None) -> None:
        super().__init__(num_classes, per_class=per_class, size=size)

    @property
    def per_class(self) -> int:
        """How many prototypes each class has, P."""
        return self.means.shape[1]

    def _counts_shape(self, per_class: int) -> tuple[int, ...]:
        return (self.num_classes, per_class)

    @classmethod
    @torch.inference_mode(False)
    @torch.no_grad()
    def from_loader(
        cls,
        loader: Iterable[Any],
        num_classes: int,
        *,
        per_class: int = 4,
        iterations: int = 10,
        tolerance: float = 1e-4,
        seed: int = 0,
        start: Tensor | None = None,
        mean: PerChannel = None,
        std: PerChannel = None,
        to_channel: ToChannel | None = None,
        size: Sequence[int] | None = None,
        ignore_index: int = -100,
        device: torch.device | str | None = None,
        progress: bool = True,
        sync: bool | ProcessGroup = True,
    ) -> Self:
        """Find the prototypes of a whole loader by k-means, with k-means++ for a beginning.

        The loader is gone through ``per_class`` times for the beginning and at most ``iterations`` times for the means, and no
        image is kept. The centres themselves take K · P · pixels numbers of 8 bytes, three times over: pass ``size`` for large
        images of many classes. Leave random augmentation out of the loader. One that shuffles gives other clusters each time, one
        that does not gives the same for the same ``seed``.

        A class with fewer different images than P has some of its prototypes twice. In a process group each rank passes a loader
        over its share, which may be empty; after each pass one sum over the ranks brings all of them to the same centres.

        Args:
            loader: of batches that begin with images (N, C, *spatial) and labels (N,); not an iterator.
            num_classes: the number of classes, K.
            per_class: how many prototypes each class has, P.
            iterations: how many passes for the means at most, 1 or more.
            tolerance: stop earlier where the centres of no class move by more, as a sum of squares, than this share of the
                class's variance per pixel.
            seed: of the random numbers by which the beginning is chosen.
            start: (K, P, *spatial) centres to begin with, in the images' own units and of their size, in the place of k-means++.
            mean: see :class:`ClassPrototypes`.
            std: see :class:`ClassPrototypes`.
            to_channel: see :class:`ClassPrototypes`.
            size: see :class:`ClassPrototypes`.
            ignore_index: see :class:`ClassPrototypes`.
            device: where to compute, and where the result lies. Default: the CPU.
            progress: show a progress bar for each pass; in a process group its first rank does.
            sync: see :meth:`ClassPrototypes.from_loader`.

        Returns:
            The prototypes, the same on all ranks.

        Raises:
            ValueError: images or labels that do not fit, a loader that is empty (on all ranks), or an option out of its range.
            TypeError: an iterator, batches of another kind, or ``sync`` of another kind.
        """
        prototypes = cls(num_classes, per_class, size=size)
        prototypes.to(device)
        if iterations < 1:
            raise ValueError(f"iterations: expected at least 1, got {iterations}")
        if not tolerance >= 0:
            raise ValueError(f"tolerance: expected a number of at least 0, got {tolerance}")
        if isinstance(loader, Iterator):
            raise TypeError(
                f"loader: expected a loader that can be gone through several times, got {type(loader).__name__}; pass a "
                f"DataLoader, or a list of batches"
            )
        group = Ranks(sync).group
        reading = Reading(
            num_classes, per_channel("mean", mean), per_channel("std", std), to_channel, size, ignore_index
        )
        shown = progress and (group is None or group.rank() == 0)
        spatial = _spatial(loader, reading, device, group)
        where = prototypes.means.device
        where = torch.device("cpu") if where.type == "mps" else where  # MPS has no float64

        def one_pass(what: str) -> Iterator[tuple[Tensor, Tensor]]:
            for images, labels in batches(loader, device, description=f"prototypes: {what}", progress=shown):
                single, classes = reading.read(images, labels)
                if not len(classes):
                    continue
                if tuple(single.shape[2:]) != spatial:
                    raise ValueError(
                        f"images: expected the spatial size {spatial} of the images before, got {tuple(single.shape[2:])}; pass "
                        f"size= to have all of them resized"
                    )
                yield single.flatten(1).to(where, torch.float64), classes.to(where)

        pixels = int(torch.Size(spatial).numel())
        clustering = ClassKMeans(one_pass, num_classes, per_class, pixels, where, group)
        if start is None:
            clustering.seed(seed)
        else:
            expected = (num_classes, per_class, *spatial)
            if tuple(start.shape) != expected:
                raise ValueError(f"start: expected shape {expected}, got {tuple(start.shape)}")
            clustering.centres.copy_(start.detach().flatten(2))
        clustering.refine(iterations, tolerance)
        target = prototypes.means.device
        prototypes.means = clustering.centres.to(target, torch.float32).unflatten(2, spatial)
        prototypes.counts = clustering.counts.to(target).round().long()
        return prototypes

    @classmethod
    def from_maps(cls, maps: Tensor) -> Self:
        """Take ready maps as prototypes.

        Args:
            maps: (K, P, *spatial).

        Returns:
            Prototypes that count as seen once each.

        Raises:
            ValueError: another shape.
        """
        if maps.dim() < 3 or not maps.shape[1]:
            raise ValueError(f"prototypes: expected maps (K, P, *spatial), got {tuple(maps.shape)}")
        with torch.inference_mode(False):
            prototypes = cls(maps.shape[0], maps.shape[1], size=maps.shape[2:])
            prototypes.to(maps.device)
            prototypes.means.copy_(maps.detach())
            prototypes.counts.fill_(1)
        return prototypes


def _spatial(
    loader: Iterable[Any], reading: Reading, device: torch.device | str | None, group: ProcessGroup | None
) -> tuple[int, ...]:
    """The spatial size of the images, from the first batch of each rank."""
    found: tuple[int, ...] = ()
    for images, labels in batches(loader, device, description="", progress=False):
        single, classes = reading.read(images, labels)
        if len(classes):
            found = tuple(single.shape[2:])
            break
    sizes = {found}
    if group is not None:
        padded = [*found, *[0] * (_MOST_DIMENSIONS - len(found))]
        sizes = {tuple(each[1 : 1 + each[0]]) for each in gathered([len(found), *padded], group)}
    sizes.discard(())
    if not sizes:
        raise ValueError(
            "loader: expected at least one image whose label is not ignored, got none; check the data set and drop_last"
        )
    if len(sizes) > 1:
        raise ValueError(
            f"images: expected one spatial size on all ranks, got {sorted(sizes)}; pass size= to have all of them resized"
        )
    return sizes.pop()
