"""Prototypes that are computed from a sample of the images of each class: medians and clusters."""

from __future__ import annotations

import heapq
import random
from collections import defaultdict
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, distributed

from ..distributed import gathered, sending_device
from ..optional import load
from .class_prototypes import ImagePrototypes

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

#: The largest number of values that torch.quantile accepts in earlier versions.
_MOST_FOR_QUANTILE = 2**24


class SampledPrototypes(ImagePrototypes):
    """Prototypes that are computed from a random sample of the images of each class.

    A subclass implements :meth:`summarize`; that is all a new kind needs. Prototypes are made by :meth:`from_loader`, which holds
    at most K · ``images_per_class`` images of one channel in memory, 4 bytes per pixel.

    Args:
        num_classes: the number of classes, K.
        per_class: the number of prototypes of each class, P.
        images_per_class: the largest number of images of each class in the sample.
        seed: seed of the sample.
        **options: ``mean``, ``std``, ``to_channel``, ``size`` and ``ignore_index``, as for :class:`ClassPrototypes`.

    Raises:
        ValueError: an option is out of its range.

    Example:
        >>> import torch
        >>> from batchcam_captum.prototypes import SampledPrototypes
        >>> class BrightestPrototypes(SampledPrototypes):
        ...     def summarize(self, images):
        ...         return images.amax(0, keepdim=True)
        >>> loader = [(torch.rand(8, 1, 6, 6), torch.arange(8) % 2)]
        >>> BrightestPrototypes.from_loader(loader, num_classes=2, progress=False).maps().shape
        torch.Size([2, 1, 6, 6])
    """

    settings: ClassVar[tuple[str, ...]] = (*ImagePrototypes.settings, "images_per_class", "seed")

    def __init__(
        self,
        num_classes: int,
        *,
        per_class: int = 1,
        images_per_class: int = 500,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(num_classes, per_class=per_class, **options)
        if images_per_class < 1:
            raise ValueError(f"images_per_class: expected at least 1, got {images_per_class}")
        self.images_per_class = images_per_class
        self.seed = seed
        self._random: random.Random | None = None
        #: For each class a heap of (-key, image): the images with the smallest random keys are a uniform sample.
        self._sample: defaultdict[int, list[tuple[float, Tensor]]] = defaultdict(list)

    def summarize(self, images: Tensor) -> Tensor:
        """Compute the prototypes of one class from a sample of its images.

        Args:
            images: (n, *spatial), float32, n ≥ 1.

        Returns:
            (P, *spatial).
        """
        raise NotImplementedError(f"{type(self).__name__} has to implement summarize()")

    @torch.inference_mode(False)
    @torch.no_grad()
    def _add(self, images: Tensor, labels: Tensor) -> None:
        single, indices = self.read(images, labels)
        if not len(indices):
            return
        self._make_room(single.shape[2:])
        if self._random is None:
            rank = (
                distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
            )
            self._random = random.Random(f"{self.seed} {rank}")
        for image, label in zip(single.to(self.values.device, torch.float32), indices.tolist(), strict=True):
            heap, key = self._sample[label], -self._random.random()
            if len(heap) < self.images_per_class:
                heapq.heappush(heap, (key, image[0].clone()))
            elif key > heap[0][0]:
                heapq.heapreplace(heap, (key, image[0].clone()))

    @torch.inference_mode(False)
    @torch.no_grad()
    def _finish(self, group: ProcessGroup | None) -> None:
        largest = [len(self._sample[label]) for label in range(self.num_classes)]
        if group is not None:
            largest = [max(each) for each in zip(*gathered(largest, group), strict=True)]
        for label, number in enumerate(largest):
            if not number:
                continue
            heap = self._sample.pop(label, [])
            images = torch.stack([image for _, image in heap]) if heap else self.values[label, :0]
            if group is not None:
                keys = torch.tensor([-key for key, _ in heap], dtype=torch.float32, device=images.device)
                keys, images = _gather_sample(keys, images, number, group)
                images = images[keys.argsort(stable=True)[: self.images_per_class]]
            self.values[label] = self.summarize(images)
            self.counts[label] = len(images)
        self._sample.clear()
        if group is not None:  # the same to the last bit, whatever the machines' arithmetic
            sent = self.values.to(sending_device(self.values.device, group))
            distributed.broadcast(sent, group_src=0, group=group)
            self.values = sent.to(self.values.device)


def _gather_sample(keys: Tensor, images: Tensor, number: int, group: ProcessGroup) -> tuple[Tensor, Tensor]:
    """Return the keys and images of all ranks, each of which has at most ``number`` of them."""
    pixels = images.shape[1:].numel()
    rows = torch.full(
        (number, 1 + pixels), 2.0, device=keys.device
    )  # keys are below 1, those of the padding are 2
    rows[: len(keys), 0] = keys
    rows[: len(keys), 1:] = images.reshape(-1, pixels)
    rows = rows.to(sending_device(rows.device, group))
    every = [torch.empty_like(rows) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(every, rows, group=group)
    found = torch.cat(every).to(keys.device)
    found = found[found[:, 0] <= 1]
    return found[:, 0], found[:, 1:].unflatten(1, images.shape[1:])


class MedianPrototypes(SampledPrototypes):
    r"""The median training image of each class: at each pixel, the median of the values that the class's images have there.

    What fewer than half of a class's images show in one place is absent from their median, but not from their mean: a decoy in a
    random corner lights each corner in a quarter of the images. A shortcut that more than half of them show in the same place is
    in the median. If a class's objects lie in different places, the median is dark; a higher ``quantile`` shows what fewer images
    have in common: at quantile q, what more than a share 1 − q of them light.

    The median is taken over a random sample of the images; set ``images_per_class`` to the size of the largest class for all.

    Args:
        num_classes: the number of classes, K.
        quantile: in [0, 1]; 0.5 is the median. Between two values it interpolates linearly, as NumPy does.
        images_per_class: the largest number of images of each class in the sample.
        seed: seed of the sample.
        **options: ``mean``, ``std``, ``to_channel``, ``size`` and ``ignore_index``, as for :class:`ClassPrototypes`.

    Raises:
        ValueError: an option is out of its range.

    Example:
        >>> import torch
        >>> from batchcam_captum import MedianPrototypes
        >>> images = torch.zeros(4, 1, 8, 8)
        >>> images[:, :, 3:5, 3:5] = 0.5  # what they have in common
        >>> images[0, :, :2, :2] = 1.0  # and a decoy in one of them
        >>> loader = [(images, torch.zeros(4, dtype=torch.long))]
        >>> prototypes = MedianPrototypes.from_loader(loader, num_classes=1, progress=False)
        >>> prototypes.maps().sum(), prototypes.maps()[0, 0, 0, 0]
        (tensor(4.), tensor(0.))
    """

    settings: ClassVar[tuple[str, ...]] = (*SampledPrototypes.settings, "quantile")
    remedy_for_flat: ClassVar[str | None] = "raise quantile=, or use ClassPrototypes"

    def __init__(self, num_classes: int, *, quantile: float = 0.5, **options: Any) -> None:
        super().__init__(num_classes, **options)
        if not 0 <= quantile <= 1:
            raise ValueError(f"quantile: expected a number from 0 to 1, 0.5 for the median, got {quantile}")
        self.quantile = quantile

    def summarize(self, images: Tensor) -> Tensor:
        """Return the quantile at each pixel, (1, *spatial)."""
        parts = images.flatten(1).split(max(1, _MOST_FOR_QUANTILE // len(images)), dim=1)
        return torch.cat([part.quantile(self.quantile, dim=0) for part in parts]).reshape(
            1, *images.shape[1:]
        )


class ClusterPrototypes(SampledPrototypes):
    """Several prototypes per class, the centers of the clusters of its images; a cam is compared with the nearest.

    The mean of all images of a class is a blur if the object lies here in one image and there in the next. The clusters are found
    by scikit-learn's k-means on a random sample of the images. A class with fewer distinct images than P repeats some prototypes.

    Requires scikit-learn: ``pip install 'batchcam-captum[clusters]'``.

    Args:
        num_classes: the number of classes, K.
        per_class: the number of prototypes of each class, P.
        images_per_class: the largest number of images of each class in the sample.
        seed: seed of the sample and of k-means.
        **options: ``mean``, ``std``, ``to_channel``, ``size`` and ``ignore_index``, as for :class:`ClassPrototypes`.

    Raises:
        ValueError: an option is out of its range.
        ModuleNotFoundError: :meth:`from_loader` is called without scikit-learn.

    Example:
        >>> import torch
        >>> from batchcam_captum import ClusterPrototypes
        >>> images = torch.zeros(6, 1, 8, 8)
        >>> images[:3, :, :4] = 1
        >>> images[3:, :, 4:] = 1
        >>> loader = [(images, torch.zeros(6, dtype=torch.long))]
        >>> prototypes = ClusterPrototypes.from_loader(loader, num_classes=1, per_class=2, progress=False)
        >>> prototypes.counts, prototypes.maps().shape
        (tensor([6]), torch.Size([1, 2, 8, 8]))
    """

    settings: ClassVar[tuple[str, ...]] = (*SampledPrototypes.settings, "per_class")

    def __init__(self, num_classes: int, per_class: int = 4, **options: Any) -> None:
        super().__init__(num_classes, per_class=per_class, **options)

    @property
    def per_class(self) -> int:
        """The number of prototypes of each class, P."""
        return self.values.shape[1]

    def summarize(self, images: Tensor) -> Tensor:
        """Return the centers of the clusters, (P, *spatial)."""
        cluster = load("sklearn.cluster", purpose="ClusterPrototypes", extra="clusters")
        rows = images.flatten(1).cpu()
        clusters = min(self.per_class, len(rows.unique(dim=0)))
        found = cluster.KMeans(clusters, n_init=10, random_state=self.seed).fit(rows.numpy())
        centers = torch.from_numpy(found.cluster_centers_).to(images)
        return centers[torch.arange(self.per_class) % clusters].reshape(-1, *images.shape[1:])
