"""Where the objects of each class usually are."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ..functional import ValueChecks, resize
from .class_prototypes import ClassPrototypes

_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
#: How far rounding may take an image out of [0, 1], such as that of a half type or of undoing a standardization.
_ROUNDING = 0.01


class ForegroundPrototypes(ClassPrototypes):
    """The foreground of each class: the pixels that are lit in many of its training images, and their neighbors.

    A pixel of an image is lit if its value is above ``lit``, after the standardization is undone and the channels are averaged;
    images must then be in [0, 1] with a dark background. A pixel belongs to the foreground of a class if more than ``share`` of
    the class's images are lit there, or at most ``dilate`` pixels away along each side. No annotation is needed.

    The rule is this project's own. Its defaults suit digits in the middle of a dark image, where few other images would light the
    place of a decoy. What is lit in the same place in most images of a class, shortcuts included, is foreground.

    Args:
        num_classes: the number of classes, K.
        lit: the value above which a pixel is lit, in [0, 1).
        share: the share of a class's images above which a pixel is foreground, in [0, 1).
        dilate: the number of pixels of the images by which a foreground grows on all sides.
        **options: ``mean``, ``std``, ``to_channel``, ``size`` and ``ignore_index``, as for :class:`ClassPrototypes`.
            ``to_channel`` returns values in [0, 1], such as 1 − x for dark objects; ``size`` applies before pixels are lit.

    Raises:
        ValueError: an option is out of its range.
        TypeError: ``to_channel`` is not callable.

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

    settings: ClassVar[tuple[str, ...]] = (*ClassPrototypes.settings, "lit", "share", "dilate")
    remedy_for_flat: ClassVar[str | None] = (
        "if all is background, lower lit= or share=; if all is foreground, raise them or lower dilate="
    )

    def __init__(
        self, num_classes: int, *, lit: float = 0.3, share: float = 0.35, dilate: int = 2, **options: Any
    ) -> None:
        super().__init__(num_classes, **options)
        for name, value in (("lit", lit), ("share", share)):
            if not 0 <= value < 1:
                raise ValueError(f"{name}: expected a number of at least 0 and below 1, got {value}")
        if not isinstance(dilate, int) or dilate < 0:
            raise ValueError(f"dilate: expected a number of pixels, 0 or more, got {dilate!r}")
        self.lit = lit
        self.share = share
        self.dilate = dilate

    @classmethod
    def from_maps(cls, maps: Tensor) -> Self:
        """Use given foregrounds, such as annotated ones, as they are.

        Args:
            maps: how much each place is foreground, in [0, 1] or booleans: (K, 1, *spatial), or several per class,
                (K, P, *spatial).

        Returns:
            Prototypes with a count of 1 for every class, which cannot be updated with images.

        Raises:
            ValueError: ``maps`` has another shape, or values outside [0, 1].
        """
        ValueChecks(synchronize=True).require(
            (maps >= 0) & (maps <= 1),
            "prototypes: expected foregrounds from 0 to 1, or booleans, got others, or NaN; divide them by their maximum",
        )
        return super().from_maps(maps)

    def foregrounds(self) -> Tensor:
        """Return the foregrounds as booleans (K, P, *spatial): where they are above one half.

        Raises:
            RuntimeError: there are no prototypes yet.
        """
        return self.maps() > 0.5

    @torch.no_grad()
    def _make_maps(self, size: tuple[int, ...]) -> Tensor:
        """Return the share of each place that is foreground. A maximum below 1 stays: half a pixel is not all foreground."""
        return resize(self.values, size).clone()

    def read(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Check a batch, and return which pixels are lit, as numbers, instead of the images.

        Raises:
            ValueError: images are not in [0, 1], or do not fit otherwise.
        """
        single, indices = super().read(images, labels)
        ValueChecks(synchronize=True).require(
            (single >= -_ROUNDING) & (single <= 1 + _ROUNDING),
            "images: expected values from 0 to 1, of which those above lit= are foreground, got others; pass mean= and std= if "
            "the images are standardized, divide those of 0 to 255 by 255, or convert them with to_channel=",
        )
        return (single > self.lit).to(single.dtype), indices

    def _values_of(self, means: Tensor) -> Tensor:
        """Return the foregrounds, from the share of images in which each pixel is lit."""
        dims = means.dim() - 2
        if dims not in _POOLS:
            raise ValueError(f"images: expected 1 to 3 spatial dimensions for foregrounds, got {dims}")
        lit = (means > self.share).to(means.dtype)
        return _POOLS[dims](lit, 2 * self.dilate + 1, stride=1, padding=self.dilate)

    def _resumed_sums(self) -> Tensor:
        raise RuntimeError(
            "prototypes: expected foregrounds that are still being computed by update(), got finished ones, as of from_loader(), "
            "from_maps() or load(); make new prototypes from all images"
        )
