"""Class prototypes: the mean training image of each class."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..files import written_whole
from ..functional import ValueChecks, class_sums, class_weights, normalize, resize, to_one_channel
from ..functional.images import PerChannel, ToChannel, per_channel
from .base import Prototypes

_FORMAT = 1


class ClassPrototypes(Prototypes):
    """The mean training image of each class, and how many images it was taken over.

    Each image is reduced to one channel: its standardisation is undone (``mean``, ``std``), then its channels are averaged, or
    whatever ``to_channel`` does. Sums are float64 while streaming; the means are stored in float32 as buffers, travel with
    ``state_dict()`` and ``.to(device)``, and are never cast to a half type. Updating may go on after loading.

    Args:
        num_classes: K.
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
        super().__init__(num_classes)
        self.mean = per_channel("mean", mean)
        self.std = per_channel("std", std)
        self.to_channel = to_channel
        self.size = None if size is None else tuple(size)
        self.ignore_index = ignore_index
        spatial = (0,) if self.size is None else self.size
        with torch.inference_mode(False):  # or a training step could not use them
            self.register_buffer("means", torch.zeros(num_classes, 1, *spatial))
            self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.long))
        self._sums: Tensor | None = None
        self._cached_for: tuple[Tensor, int] | None = None
        self._cache: dict[tuple[int, ...], Tensor] = {}

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
    ) -> Self:
        """Take the prototypes of a whole loader.

        Leave random augmentation out of the loader: the prototype is the mean of what the model is shown.

        Args:
            loader: of batches that begin with images (N, C, *spatial) and labels (N,).
            num_classes: K.
            mean: see the class.
            std: see the class.
            to_channel: see the class.
            size: see the class.
            ignore_index: see the class.
            device: where to add up, and where the result lies. Default: the CPU.
            progress: show a progress bar.

        Returns:
            The prototypes.

        Raises:
            ValueError: images or labels that do not fit, or an empty loader.
            TypeError: batches of another kind.
        """
        from tqdm.auto import tqdm

        prototypes = cls(
            num_classes, mean=mean, std=std, to_channel=to_channel, size=size, ignore_index=ignore_index
        )
        prototypes.to(device)
        batches = 0
        for batch in tqdm(loader, desc="prototypes", unit="batch", disable=not progress, leave=False):
            if not isinstance(batch, tuple | list) or len(batch) < 2:
                raise TypeError(
                    f"loader: expected batches (images, labels, …), got {type(batch).__name__}; call update(images, labels) in "
                    f"a loop of your own"
                )
            prototypes.update(batch[0].to(device), batch[1].to(device))
            batches += 1
        if not batches:
            raise ValueError(
                "loader: expected at least one batch, got none; check the data set and drop_last"
            )
        return prototypes

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
        if not bool(belongs.counted.any()):  # an empty batch, or one that is ignored
            return
        spatial = tuple(self.means.shape[2:])
        if not self.means.numel():
            self.means = self.means.new_zeros(self.num_classes, 1, *single.shape[2:])
        elif tuple(single.shape[2:]) != spatial:
            raise ValueError(
                f"images: expected the spatial size {spatial} of the images before, got {tuple(single.shape[2:])}; pass size= "
                f"to have all of them resized"
            )
        if self._sums is None:
            sums_device = (
                "cpu" if self.means.device.type == "mps" else self.means.device
            )  # MPS has no float64
            by_class = self.counts.reshape(-1, *[1] * (self.means.dim() - 1))
            self._sums = self.means.to(sums_device, torch.float64) * by_class.to(sums_device)
        device = self._sums.device
        assert belongs.indices is not None
        present, position = torch.unique(belongs.indices[belongs.counted].to(device), return_inverse=True)
        rows = single[belongs.counted].to(device, torch.float64)
        # Only the classes of this batch are touched, so that a thousand classes cost no more than the images do.
        counts = torch.bincount(position, minlength=len(present))
        self._sums[present] += class_sums(rows, nn.functional.one_hot(position, len(present)))
        self.counts[present.to(self.counts.device)] += counts.to(self.counts.device)
        totals = self.counts[present.to(self.counts.device)].to(device).reshape(-1, *[1] * (rows.dim() - 1))
        self.means[present.to(self.means.device)] = (self._sums[present] / totals).to(
            self.means.device, torch.float32
        )

    @property
    def seen(self) -> Tensor:
        """(K,) booleans: which classes have a prototype."""
        return self.counts > 0

    @property
    def unseen(self) -> list[int]:
        """The classes without a prototype. Waits for the device."""
        return torch.nonzero(~self.seen).flatten().tolist()

    def maps(self, size: Sequence[int] | None = None) -> Tensor:
        """The prototypes as maps in [0, 1]: (K, 1, *size).

        Args:
            size: the spatial size of the cams to compare with; the prototypes are resized by area and divided by their maxima.
                Default: their own size.

        Returns:
            Each mean image after min–max. An unseen class, like a flat mean image, is all zero.

        Raises:
            RuntimeError: no image has been seen.
            ValueError: ``size`` has another number of dimensions than the prototypes.
        """
        if not self.means.numel():
            raise RuntimeError(
                "prototypes: expected prototypes of some images, got none; call update() or use from_loader()"
            )
        size = tuple(self.means.shape[2:] if size is None else size)
        if torch.compiler.is_compiling():  # where nothing tells whether the means have changed
            return self._made(size)
        source, version = self._cached_for or (None, 0)
        if source is not self.means or version != self.means._version:
            self._cached_for, self._cache = (self.means, self.means._version), {}
        if size not in self._cache:
            # The cache must serve a training step even if a validation under inference_mode has filled it.
            with torch.inference_mode(False):
                self._cache[size] = self._made(size)
        return self._cache[size]

    @torch.no_grad()
    def _made(self, size: tuple[int, ...]) -> Tensor:
        return normalize(resize(normalize(self.means, "minmax"), size), "max")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write means, counts and settings to a file, whole or not at all.

        Args:
            path: a file that :meth:`load` reads. ``to_channel`` is code and is not saved.

        Raises:
            OSError: the folder is missing or cannot be written to.
        """
        settings = {name: getattr(self, name) for name in ("mean", "std", "size", "ignore_index")}
        content = {
            "format": _FORMAT,
            "num_classes": self.num_classes,
            "settings": settings,
            "state": {name: value.cpu() for name, value in self.state_dict().items()},
        }
        with written_whole(path) as temporary:
            torch.save(content, temporary)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, to_channel: ToChannel | None = None) -> Self:
        """Read what :meth:`save` wrote.

        Args:
            path: the file.
            to_channel: needed only to go on updating prototypes that were made with one.

        Returns:
            The prototypes, on the CPU.

        Raises:
            OSError: the file is missing or cannot be read.
            ValueError: the file holds something else.
        """
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            if content["format"] != _FORMAT:
                raise ValueError(f"format {content['format']}")
            prototypes = cls(content["num_classes"], to_channel=to_channel, **content["settings"])
            prototypes.load_state_dict(content["state"])
        except OSError:
            raise
        except Exception as error:
            raise ValueError(
                f"{path}: expected prototypes written by ClassPrototypes.save, got something else ({error})"
            ) from error
        return prototypes

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"num_classes={self.num_classes}, size={tuple(self.means.shape[2:])}, images={int(self.counts.sum())}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = self.means
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if (
            self.means.dtype != torch.float32
        ):  # .half(), .double(): the device may change, the precision may not
            self.means = before.to(self.means.device)
        self._forget()
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, *rest: Any
    ) -> None:
        means = state_dict.get(f"{prefix}means")
        if means is not None:
            if means.shape[0] != self.num_classes:
                error_messages = rest[-1]
                error_messages.append(
                    f"prototypes: expected {self.num_classes} classes, got a state of {means.shape[0]}; the number of classes "
                    f"has to be that of the model"
                )
                return
            if means.shape != self.means.shape:
                self.means = self.means.new_zeros(means.shape)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *rest)
        self.means = self.means.float()  # load_state_dict(assign=True) takes what it is given
        self._forget()

    def _forget(self) -> None:
        """Drop what is derived from the means."""
        self._sums, self._cached_for, self._cache = None, None, {}
