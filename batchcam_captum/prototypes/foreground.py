"""Where the objects of a class are, by a rule."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ..functional import ValueChecks, resize
from ..functional.images import PerChannel, ToChannel
from ..warn import warn_user
from .class_prototypes import ClassPrototypes
from .streaming import require_unit_interval, take_together

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


class ForegroundPrototypes(ClassPrototypes):
    """The foreground of each class: the pixels that are lit in many of its training images, and their neighbours.

    A pixel of an image is lit where its value, with the standardisation undone and the channels averaged, is above ``lit``; the
    value has to be in [0, 1], with a dark background. A pixel belongs to the foreground of a class where more than ``share`` of
    the class's images are lit there, or at most ``dilate`` pixels away along each side. No annotation is needed. The rule is this
    project's own, and its defaults are for digits in the middle of a dark image, where few other images would light the place of
    a decoy: what is lit in the same place in most images of a class, shortcuts among them, is foreground.

    The rule is part of ``state_dict()``, as the means say nothing without it: what is loaded brings its own.

    Args:
        num_classes: the number of classes, K.
        lit: the value above which a pixel is lit, in [0, 1).
        share: of a class's images, in [0, 1).
        dilate: by how many pixels of the images a foreground grows on all sides.
        mean: see :class:`ClassPrototypes`.
        std: see :class:`ClassPrototypes`.
        to_channel: see :class:`ClassPrototypes`; to values in [0, 1], such as 1 − x where objects are dark.
        size: see :class:`ClassPrototypes`; images are resized before it is asked which pixels are lit.
        ignore_index: see :class:`ClassPrototypes`.

    Raises:
        ValueError: an option out of its range, or see :class:`ClassPrototypes`.

    Example:
        >>> import torch
        >>> from batchcam_captum import ForegroundPrototypes
        >>> images = torch.zeros(4, 1, 8, 8)
        >>> images[:, :, 3:5, 3:5] = 0.9
        >>> foreground = ForegroundPrototypes(num_classes=2, dilate=1)
        >>> foreground.update(images, torch.tensor([0, 1, 1, 0]))
        >>> foreground.maps()[0, 0].sum(), foreground.maps((4, 4))[0, 0, 1]
        (tensor(16.), tensor([0., 1., 1., 0.]))
    """

    means: Tensor  #: (K, 1, *spatial) float32, the share of a class's images in which a pixel is lit
    counts: Tensor  #: (K,) int64, how many images there were; 0 = no prototype yet

    _settings: ClassVar[tuple[str, ...]] = (*ClassPrototypes._settings, "lit", "share", "dilate")

    def __init__(
        self,
        num_classes: int,
        *,
        lit: float = 0.3,
        share: float = 0.35,
        dilate: int = 2,
        mean: PerChannel = None,
        std: PerChannel = None,
        to_channel: ToChannel | None = None,
        size: Sequence[int] | None = None,
        ignore_index: int = -100,
    ) -> None:
        super().__init__(
            num_classes, mean=mean, std=std, to_channel=to_channel, size=size, ignore_index=ignore_index
        )
        for name, value in (("lit", lit), ("share", share)):
            if not 0 <= value < 1:
                raise ValueError(f"{name}: expected a number of at least 0 and below 1, got {value}")
        if not isinstance(dilate, int) or dilate < 0:
            raise ValueError(f"dilate: expected a number of pixels, 0 or more, got {dilate!r}")
        self.lit = lit
        self.share = share
        self.dilate = dilate
        self._ready = False  #: whether the means are foregrounds already, to be taken as they are

    @classmethod
    def from_loader(
        cls,
        loader: Iterable[Any],
        num_classes: int,
        *,
        lit: float = 0.3,
        share: float = 0.35,
        dilate: int = 2,
        mean: PerChannel = None,
        std: PerChannel = None,
        to_channel: ToChannel | None = None,
        size: Sequence[int] | None = None,
        ignore_index: int = -100,
        device: torch.device | str | None = None,
        progress: bool = True,
        sync: bool | ProcessGroup = True,
    ) -> Self:
        """Take the foregrounds of a whole loader, see :meth:`ClassPrototypes.from_loader`.

        Args:
            loader: of batches that begin with images (N, C, *spatial) and labels (N,).
            num_classes: the number of classes, K.
            lit: see the class.
            share: see the class.
            dilate: see the class.
            mean: see the class.
            std: see the class.
            to_channel: see the class.
            size: see the class.
            ignore_index: see the class.
            device: see :meth:`ClassPrototypes.from_loader`.
            progress: see :meth:`ClassPrototypes.from_loader`.
            sync: see :meth:`ClassPrototypes.from_loader`.

        Returns:
            The prototypes, the same on all ranks.

        Raises:
            ValueError: see :meth:`ClassPrototypes.from_loader`; or images out of [0, 1].
            TypeError: see :meth:`ClassPrototypes.from_loader`.

        Warns:
            UserWarning: classes without any foreground, or without anything else.
        """
        prototypes = cls(
            num_classes,
            lit=lit,
            share=share,
            dilate=dilate,
            mean=mean,
            std=std,
            to_channel=to_channel,
            size=size,
            ignore_index=ignore_index,
        )
        take_together([prototypes], loader, device, progress=progress, sync=sync)
        return prototypes

    def _taken(self, *, in_common: bool) -> None:
        super()._taken(in_common=in_common)
        self._warn_of_useless()

    @classmethod
    def from_maps(cls, maps: Tensor) -> Self:
        """Take ready foregrounds as they are: no share, no dilation, nothing stretched.

        Args:
            maps: how much each place is foreground, (K, 1, *spatial) in [0, 1], or booleans; or several a class,
                (K, P, *spatial).

        Returns:
            Prototypes that count as seen once each, and cannot be updated with images.

        Raises:
            ValueError: another shape, or values out of [0, 1].
        """
        if maps.dim() < 3 or not maps.shape[1]:
            raise ValueError(
                f"prototypes: expected maps (K, 1, *spatial), or (K, P, *spatial), got {tuple(maps.shape)}"
            )
        ValueChecks(synchronize=True).require(
            (maps >= 0) & (maps <= 1),
            "prototypes: expected foregrounds from 0 to 1, or booleans, got others, or NaN; divide them by their maximum",
        )
        with torch.inference_mode(False):
            prototypes = cls(maps.shape[0], size=maps.shape[2:])
            prototypes.to(maps.device)
            prototypes.means = maps.detach().to(torch.float32, copy=True)
            prototypes.counts.fill_(1)
        prototypes._ready = True
        return prototypes

    def foregrounds(self) -> Tensor:
        """(K, 1, *spatial) booleans at the images' size; false for an unseen class. Of ready maps, where they are above a half.

        Raises:
            RuntimeError: no image has been seen.
        """
        return self.maps() > (0.5 if self._ready else 0)

    def get_extra_state(self) -> dict[str, Any]:
        """The rule, without which the means say nothing."""
        return {"lit": self.lit, "share": self.share, "dilate": self.dilate, "ready": self._ready}

    def set_extra_state(self, state: Any) -> None:
        """Take over the rule by which the means that are loaded were made."""
        self.lit, self.share, self.dilate = state["lit"], state["share"], state["dilate"]
        self._ready = state["ready"]

    def _warn_of_useless(self) -> None:
        """Warn of classes whose foreground tells nothing: it is empty, or it is everything. Waits for the device."""
        if not self.means.numel():
            return
        flat = self.foregrounds().flatten(1)
        for found, what, remedy in (
            (~flat.any(1), "some foreground", "lower lit= or share="),
            (flat.all(1), "some background", "raise lit= or share=, or lower dilate="),
        ):
            classes = torch.nonzero(found & self.seen).flatten().tolist()
            if classes:
                got = "none" if what == "some foreground" else "foreground everywhere"
                warn_user(
                    f"ForegroundPrototypes: expected {what} in every class, got {got} in classes {classes[:10]}; {remedy}, "
                    f"now lit={self.lit}, share={self.share}, dilate={self.dilate}",
                )

    @torch.no_grad()
    def _made(self, size: tuple[int, ...]) -> Tensor:
        """Not divided by the maximum: where pixels are merged, that would make foreground of what is background by half."""
        if self._ready:
            return resize(self.means, size)
        lit = (self.means > self.share).to(self.means.dtype)
        if self.dilate:
            dims = lit.dim() - 2
            if dims not in _POOLS:
                raise ValueError(f"dilate: expected images with 1 to 3 spatial dimensions, got {dims}")
            lit = _POOLS[dims](lit, 2 * self.dilate + 1, stride=1, padding=self.dilate)
        return resize(lit, size)

    def maps(self, size: Sequence[int] | None = None) -> Tensor:
        """The foregrounds as maps in [0, 1]: (K, 1, *size).

        Args:
            size: the spatial size of the cams to compare with. Default: that of the images.

        Returns:
            1 in the foreground and 0 outside; where several pixels fall into a new one, the share that is foreground. All zero
            for an unseen class.

        Raises:
            RuntimeError: no image has been seen.
            ValueError: ``size`` has another number of dimensions than the prototypes.
        """
        return super().maps(size)

    def _read(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Which pixels are lit, as numbers."""
        if self._ready:
            raise RuntimeError(
                "prototypes: expected foregrounds that are taken from images, got ready maps; make new prototypes for the images"
            )
        single, indices = super()._read(images, labels)
        require_unit_interval(single, ", of which those above lit= are foreground")
        return (single > self.lit).to(single.dtype), indices
