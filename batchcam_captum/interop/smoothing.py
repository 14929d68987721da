"""``aug_smooth``: the mean of the maps of a picture's augmented versions, as pytorch-grad-cam takes it, without ttach."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ..optional import load

if TYPE_CHECKING:
    import numpy as np


class Augmentation(Protocol):
    """One version of an image: what an entry of ``ttach.Compose`` is."""

    def augment_image(self, image: Tensor) -> Tensor:
        """The images, (N, C, *spatial), changed."""

    def deaugment_mask(self, mask: Tensor) -> Tensor:
        """Maps of the changed images, (N, 1, *spatial), as maps of the original ones."""


@dataclass(frozen=True)
class FlipAndScale:
    """Mirrored or not, and its values multiplied by a factor.

    Args:
        flip: mirror along the fourth dimension: left and right in images (N, C, H, W), up and down in volumes (N, C, D, H, W), as
            in ttach.
        factor: of the values.
    """

    flip: bool
    factor: float

    def augment_image(self, image: Tensor) -> Tensor:
        """See :class:`Augmentation`."""
        image = image.flip(3) if self.flip else image
        return image if self.factor == 1 else image * self.factor

    def deaugment_mask(self, mask: Tensor) -> Tensor:
        """See :class:`Augmentation`."""
        return mask.flip(3) if self.flip else mask


#: pytorch-grad-cam's default: three brightnesses, each mirrored as well. Six forwards.
DEFAULT_AUGMENTATIONS = tuple(
    FlipAndScale(flip, factor) for flip in (False, True) for factor in (0.9, 1.0, 1.1)
)


def mean_over_augmentations(
    maps_of: Callable[[Tensor], np.ndarray], images: Tensor, augmentations: Iterable[Augmentation]
) -> np.ndarray:
    """The mean of the maps of the augmented images, each turned back.

    Args:
        maps_of: the maps, (N, *spatial), of images (N, C, *spatial).
        images: (N, C, *spatial).
        augmentations: an iterable of objects with ``augment_image`` and ``deaugment_mask``, such as ``ttach.Compose``.

    Returns:
        (N, *spatial), float32 in [0, 1]; not scaled again, so its maximum may be below 1.

    Raises:
        ValueError: no augmentations, or maps whose sizes differ after they are turned back.
    """
    np = load("numpy", purpose="aug_smooth")
    maps = []
    for augmentation in augmentations:
        found = torch.from_numpy(maps_of(augmentation.augment_image(images)))
        maps.append(augmentation.deaugment_mask(found.unsqueeze(1)).squeeze(1).numpy())
    shapes = sorted({one.shape for one in maps})
    if len(shapes) != 1:
        raise ValueError(
            f"tta_transforms: expected transforms whose deaugment_mask gives maps of one size, got {shapes or 'no transform'}"
        )
    return np.mean(np.float32(maps), axis=0)  # type: ignore[no-any-return]
