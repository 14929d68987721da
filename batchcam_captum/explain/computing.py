"""What is computed of a batch, on the device of the model."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attribution import BatchGradCam
from ..functional import energy_in_mask, normalize, pointing_game, resize
from ..functional.images import PerChannel, undo_standardization
from .targets import ClassChoice, predicted

#: Where the maps are kept: as the layer has them, or as large as the images.
MapSize = Literal["layer", "input"]
#: Below this float16 keeps fewer than three digits.
_FINE = 6e-5
#: Bytes of maps that are resized at a time.
_AT_ONCE = 64 * 2**20


@dataclass(frozen=True)
class Computing:
    """Maps, scores, predictions, thumbnails and metrics of batches.

    Args:
        grad_cam: of one layer.
        choice: which classes.
        dtype: of the maps.
        size: of the maps.
        thumbnail: pixels of the longer side, at most; 0: none.
        mean: the ``mean`` of ``Normalize`` that the images went through, for the thumbnails.
        std: its ``std``.
    """

    grad_cam: BatchGradCam
    choice: ClassChoice
    dtype: torch.dtype
    size: MapSize
    thumbnail: int
    mean: PerChannel
    std: PerChannel

    def __call__(self, images: Tensor, labels: Tensor | None, masks: Tensor | None) -> dict[str, Tensor]:
        """Array name -> (N, …), on the device.

        Args:
            images: (N, C, *spatial).
            labels: (N,); negative ones are not known.
            masks: (N, 1, *spatial); where the object is.

        Raises:
            ValueError: scores, labels or masks that do not fit, or maps that float16 cannot hold.
            TypeError: see :meth:`.ClassChoice.maps`.
        """
        cams, scores, targets = self.choice.maps(self.grad_cam, images, labels)
        found = {
            "targets": targets.int(),
            "scores": scores.float(),
            "predictions": predicted(scores).int(),
            "confidences": scores.float().softmax(1).amax(1),
        }
        if labels is not None:
            found["labels"] = labels.clamp(min=-1).int()
        if masks is not None:
            found |= self._metrics(cams, masks)
        if self.dtype == torch.float16:
            found["lossy"] = self._lossy(cams)
        found["maps"] = self._kept(cams, tuple(images.shape[2:]))
        if self.thumbnail and images.dim() == 4:
            found["thumbnails"] = self.thumbnails(images)
        return found

    def _kept(self, cams: Tensor, size: tuple[int, ...]) -> Tensor:
        """In the store's size and dtype; a few samples at a time, as all at once would take the memory several times."""
        if self.size == "layer":
            return cams.to(self.dtype)
        kept = cams.new_empty((*cams.shape[:2], *size), dtype=self.dtype)
        step = max(1, _AT_ONCE // (4 * prod(kept.shape[1:])))
        for part, into in zip(cams.split(step), kept.split(step), strict=True):
            into.copy_(resize(part, size))
        return kept

    def _lossy(self, cams: Tensor) -> Tensor:
        """(N,): 2 where float16 overflows, 1 where it keeps few digits, 0 otherwise."""
        peaks = cams.abs().flatten(1).amax(1)
        few = (peaks > 0) & (peaks < _FINE)
        return few.int() + 2 * (peaks > torch.finfo(torch.float16).max).int()

    def _metrics(self, cams: Tensor, masks: Tensor) -> dict[str, Tensor]:
        samples, maps = cams.shape[:2]
        single = cams.flatten(0, 1).unsqueeze(1)
        own = masks.to(cams.device).repeat_interleave(maps, 0)
        bad = ~single.isfinite().flatten(1).all(1)  # a cam of NaN is stored as such, and its metrics are NaN
        single = single.masked_fill(bad.view(-1, *[1] * (single.dim() - 1)), 0)
        found = {
            "energy_in_mask": energy_in_mask(single, own).masked_fill(bad, torch.nan),
            "pointing_game": pointing_game(single, own).masked_fill(bad, torch.nan),
        }
        return {name: values.float().view(samples, maps) for name, values in found.items()}

    def thumbnails(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, height, width, 3) uint8."""
        # All but the last step is linear: it costs less once the images are small.
        small = F.interpolate(
            images.detach().float(), thumbnail_size(images.shape[2:], self.thumbnail), mode="area"
        )
        plain = undo_standardization(small, self.mean, self.std)
        if plain.shape[1] != 3:
            plain = plain.mean(1, keepdim=True)
        low, high = plain.flatten(1).aminmax(dim=1)
        outside = (low < -0.01) | (high > 1.01)
        plain = torch.where(outside.view(-1, 1, 1, 1), normalize(plain, "minmax"), plain).clamp(0, 1)
        plain = plain.nan_to_num()  # which no byte can be
        return (plain * 255).round().byte().expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous()


def thumbnail_size(size: tuple[int, ...], longest: int) -> tuple[int, int]:
    """(height, width) of a thumbnail; never larger than the image."""
    height, width = size
    scale = min(1.0, longest / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))
