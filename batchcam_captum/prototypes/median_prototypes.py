"""Class prototypes that a few odd images do not change: the median training image of each class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from ..functional.images import PerChannel, ToChannel
from ..warn import warn_user
from .class_prototypes import ClassPrototypes, total_of_ranks
from .histograms import count_values, empty_histograms, number_of_images, quantiles
from .streaming import require_unit_interval, take_together

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class MedianPrototypes(ClassPrototypes):
    r"""The median training image of each class: at each pixel, the value in the middle of those that the class's images have.

    What is lit in one place in fewer than half of a class's images is not in their median, whereas it is in their mean: a decoy
    in a random corner lights each corner in a quarter of the images. What more than half of them have in one place is in the
    median, a shortcut in a fixed place among it. Where a class's objects lie in different places the median is dark; a higher
    ``quantile`` shows what fewer images have in common: at quantile q, what more than 1 − q of them light.

    The values are counted in one histogram for each pixel and class, so that images stream through constant memory and the ranks'
    counts add up exactly. Its bins lie at :math:`b / (B - 1)`, b = 0 … B − 1, and a value counts in the nearest. With the default
    of 256 bins the median of 8-bit images in one channel is therefore exact, as numpy's is: the mean of the two values in the
    middle of an even number. Other values, such as those of channels that are averaged or of images that are resized, are off by
    half a step at most, 1 / (2 (B − 1)) = 0.002.

    **Memory.** The histograms take 4·K·bins·pixels bytes on the device of the prototypes: 8 MB for ten classes of 28×28 pixels,
    0.5 GB for ten of 224×224, and as much again where updates go on after loading or after :meth:`reduce`. They are part of
    ``state_dict()``, so that updating may go on after loading, until :meth:`drop_histogram` frees them; :meth:`from_loader` does
    so by itself. More than :attr:`most_bytes` is refused. Each :meth:`update` takes the medians of its classes anew, which costs
    work in proportion to the histograms of these classes; :meth:`from_loader` does it once.

    Args:
        num_classes: the number of classes, K.
        bins: B, at least 2.
        quantile: 0.5 is the median; between two values it interpolates linearly, as numpy does.
        mean: see :class:`ClassPrototypes`.
        std: see :class:`ClassPrototypes`.
        to_channel: see :class:`ClassPrototypes`; to values in [0, 1].
        size: see :class:`ClassPrototypes`; images are resized before they are counted.
        ignore_index: see :class:`ClassPrototypes`.

    Raises:
        ValueError: an option out of its range, or see :class:`ClassPrototypes`.

    Example:
        >>> import torch
        >>> from batchcam_captum import MedianPrototypes
        >>> images = torch.zeros(4, 1, 8, 8)
        >>> images[:, :, 3:5, 3:5] = 0.5  # what they have in common
        >>> images[0, :, :2, :2] = 1.0  # and a decoy in one of them
        >>> prototypes = MedianPrototypes(num_classes=1)
        >>> prototypes.update(images, torch.zeros(4, dtype=torch.long))
        >>> prototypes.maps().sum(), prototypes.maps()[0, 0, 0, 0]
        (tensor(4.), tensor(0.))
    """

    means: Tensor  #: (K, 1, *spatial) float32 in [0, 1], the medians; zero for an unseen class
    counts: Tensor  #: (K,) int64, how many images each median was taken over; 0 = no prototype yet
    histogram: Tensor  #: (K, bins, *spatial) int32, how many images; (K, bins) before the first, (K, 0) once it is dropped

    #: Histograms that take more bytes than this are refused. May be set, on the class or on an object.
    most_bytes: int = 4 * 2**30

    _settings: ClassVar[tuple[str, ...]] = (*ClassPrototypes._settings, "bins", "quantile")
    _shaped_by_state: ClassVar[tuple[str, ...]] = (*ClassPrototypes._shaped_by_state, "histogram")

    def __init__(
        self,
        num_classes: int,
        *,
        bins: int = 256,
        quantile: float = 0.5,
        mean: PerChannel = None,
        std: PerChannel = None,
        to_channel: ToChannel | None = None,
        size: Sequence[int] | None = None,
        ignore_index: int = -100,
    ) -> None:
        super().__init__(
            num_classes, mean=mean, std=std, to_channel=to_channel, size=size, ignore_index=ignore_index
        )
        if not isinstance(bins, int) or bins < 2:
            raise ValueError(f"bins: expected a number of at least 2, as 256 for 8-bit images, got {bins!r}")
        if not 0 <= quantile <= 1:
            raise ValueError(f"quantile: expected a number from 0 to 1, 0.5 for the median, got {quantile}")
        self.bins = bins
        self.quantile = quantile
        with torch.inference_mode(False):
            self.register_buffer("histogram", torch.zeros(num_classes, bins, dtype=torch.int32))
        self._known: Tensor | None = None  #: the part of the histogram that all ranks have in common
        self._all_known = False  #: whether that is all of it
        self._keeps_histogram = False  #: after a loader

    @classmethod
    def from_loader(
        cls,
        loader: Iterable[Any],
        num_classes: int,
        *,
        bins: int = 256,
        quantile: float = 0.5,
        mean: PerChannel = None,
        std: PerChannel = None,
        to_channel: ToChannel | None = None,
        size: Sequence[int] | None = None,
        ignore_index: int = -100,
        device: torch.device | str | None = None,
        progress: bool = True,
        sync: bool | ProcessGroup = True,
        keep_histogram: bool = False,
    ) -> Self:
        """Take the medians of a whole loader, see :meth:`ClassPrototypes.from_loader`.

        Args:
            loader: of batches that begin with images (N, C, *spatial) and labels (N,).
            num_classes: the number of classes, K.
            bins: see the class.
            quantile: see the class.
            mean: see the class.
            std: see the class.
            to_channel: see the class.
            size: see the class.
            ignore_index: see the class.
            device: see :meth:`ClassPrototypes.from_loader`.
            progress: see :meth:`ClassPrototypes.from_loader`.
            sync: see :meth:`ClassPrototypes.from_loader`.
            keep_histogram: keep what :meth:`update` and :meth:`reduce` need to go on afterwards. Default: the memory is freed.

        Returns:
            The prototypes, the same on all ranks.

        Raises:
            ValueError: see :meth:`ClassPrototypes.from_loader` and :meth:`update`.
            TypeError: see :meth:`ClassPrototypes.from_loader`.

        Warns:
            UserWarning: classes whose median is the same everywhere, so that their maps are all zero.
        """
        prototypes = cls(
            num_classes,
            bins=bins,
            quantile=quantile,
            mean=mean,
            std=std,
            to_channel=to_channel,
            size=size,
            ignore_index=ignore_index,
        )
        prototypes._keeps_histogram = keep_histogram
        take_together([prototypes], loader, device, progress=progress, sync=sync)
        return prototypes

    def _taken(self, *, in_common: bool) -> None:
        super()._taken(in_common=in_common)
        self._settle(torch.nonzero(self.counts).flatten())
        if not self._keeps_histogram:
            self.drop_histogram()
        self._warn_of_flat()

    @classmethod
    def from_maps(cls, maps: Tensor) -> Self:
        """Take ready maps as prototypes.

        Args:
            maps: (K, 1, *spatial).

        Returns:
            Prototypes that count as seen once each, and cannot be updated with images.

        Raises:
            ValueError: another shape.
        """
        prototypes = super().from_maps(maps)
        prototypes.drop_histogram()
        prototypes._all_known = True
        return prototypes

    def update(self, images: Tensor, labels: Tensor) -> None:
        """Count a batch, and take the medians of its classes anew. Nothing changes if it raises.

        Args:
            images: (N, C, *spatial), any channel count, in [0, 1] once their standardisation is undone.
            labels: (N,) class indices.

        Raises:
            ValueError: images out of [0, 1], of another size than before, or not finite, labels that do not fit, or histograms
                of more than :attr:`most_bytes`.
            TypeError: labels that are no integers.
            RuntimeError: the histograms were dropped, or there never were any.
        """
        self._settle(self._count(images, labels))

    @torch.inference_mode(False)
    def drop_histogram(self) -> None:
        """Free the histograms, here and in ``state_dict()``. The medians stay; :meth:`update` is refused from now on."""
        self.histogram = self.histogram.new_zeros(self.num_classes, 0)
        self._known = None

    def get_extra_state(self) -> dict[str, Any]:
        """The quantile, without which the maps may be any."""
        return {"quantile": self.quantile}

    def set_extra_state(self, state: Any) -> None:
        """Take over the quantile by which the maps that are loaded were made."""
        self.quantile = state["quantile"]

    def _take_batch(self, images: Tensor, labels: Tensor) -> None:
        self._count(images, labels)  # the medians are taken after the last one

    @torch.inference_mode(False)
    @torch.no_grad()
    def _count(self, images: Tensor, labels: Tensor) -> Tensor:
        """Add a batch to the histograms, and return which classes were in it."""
        single, indices = self._read(images, labels)
        if not len(indices):  # an empty batch, or one that is ignored
            return indices
        self._fit(tuple(single.shape[2:]))
        if self._all_known:
            self._known, self._all_known = self.histogram.clone(), False
        self.histogram = self.histogram.contiguous()  # .to(memory_format=…) may have changed it
        count_values(self.histogram, single, indices)
        self.counts += torch.bincount(indices, minlength=self.num_classes).to(self.counts.device)
        present: Tensor = indices.unique()
        return present

    def _read(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self._is_dropped:
            raise RuntimeError(
                "prototypes: expected histograms of the images so far, got none, as of ready maps and after from_loader(); pass "
                "keep_histogram=True to from_loader, or make new prototypes and update() them with all images"
            )
        single, indices = super()._read(images, labels)
        require_unit_interval(single)
        return single, indices

    def _fit(self, size: tuple[int, ...]) -> None:
        if self.histogram.dim() == 2:
            shape = (self.num_classes, self.bins, size)
            self.histogram = empty_histograms(*shape, self.most_bytes, self.means.device)
        super()._fit(size)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _settle(self, classes: Tensor) -> None:
        """Take the medians of these classes, all of which have images, from their histograms."""
        self.means[classes.to(self.means.device)] = quantiles(self.histogram, classes, self.quantile)

    @property
    def _is_dropped(self) -> bool:
        return not self.histogram.shape[1]

    def _alike_on_all_ranks(self) -> list[tuple[str, int, str]]:
        remedy = "pass the same bins=, and drop the histograms on all ranks or on none"
        return [*super()._alike_on_all_ranks(), ("one number of bins", self.histogram.shape[1], remedy)]

    def _number_in_common(self) -> int:
        if self._all_known:
            return int(self.counts.sum())
        return 0 if self._known is None else int(number_of_images(self._known).sum())

    def _add_up(self, group: ProcessGroup) -> None:
        if self._is_dropped and self._all_known:
            return
        if self._is_dropped:
            raise RuntimeError(
                "reduce: expected the histograms of the images so far, got none; pass keep_histogram=True to from_loader"
            )
        if self.histogram.dim() == 2:  # this rank has seen nothing
            self._fit(tuple(self.means.shape[2:]))
        known = self.histogram if self._all_known else self._known
        total = total_of_ranks(self.histogram if known is None else self.histogram - known, group)
        self.histogram = total if known is None else total + known
        self._drop_sums(in_common=True)
        self.counts.copy_(number_of_images(self.histogram))
        self._settle(torch.nonzero(self.counts).flatten())

    def _drop_sums(self, *, in_common: bool) -> None:
        self._known, self._all_known = None, in_common

    @torch.inference_mode(False)
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = self.histogram
        super()._apply(fn, recurse)
        if self.histogram.dtype != torch.int32:  # .type(): the device may change, the counts may not
            self.histogram = before.to(self.histogram.device)
        if self._known is not None:
            self._known = self._known.to(self.histogram.device)
        return self

    @torch.inference_mode(False)
    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, *rest: Any
    ) -> None:
        histogram, medians = (state_dict.get(f"{prefix}{name}") for name in ("histogram", "means"))
        if (
            histogram is not None
            and medians is not None
            and histogram.shape[2:] not in ((), medians.shape[2:])
        ):
            rest[-1].append(
                f"prototypes: expected histograms and medians of one spatial size, got {tuple(histogram.shape)} and "
                f"{tuple(medians.shape)}; the state is damaged"
            )
            return
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *rest)
        self.histogram = self.histogram.int()  # load_state_dict(assign=True) takes what it is given
        self.bins = self.histogram.shape[1] or self.bins

    def _warn_of_flat(self) -> None:
        """Warn of classes whose median tells nothing. Waits for the device."""
        flat = self.means.flatten(1)
        classes = torch.nonzero(self.seen & (flat.amax(1) == flat.amin(1))).flatten().tolist()
        if classes:
            warn_user(
                f"MedianPrototypes: expected a median image that shows something in every class, got one that is the same "
                f"everywhere in classes {classes[:10]}, whose images have nothing in one place; raise quantile=, now "
                f"{self.quantile}, or take ClassPrototypes",
            )
