"""Compute the maps, scores, thumbnails and metrics of a batch on the model's device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attribution import BatchGradCam
from ..functional import energy_in_mask, normalize, pointing_game, resize
from ..functional.images import undo_standardization
from .samples import Batch
from .targets import ClassChoice, predicted

#: Size of the stored maps: that of the layer, or that of the images.
MapSize = Literal["layer", "input"]
#: Below this float16 keeps fewer than three digits.
_FEW_DIGITS = 6e-5


@dataclass(frozen=True)
class Thumbnails:
    """Small pictures of the images, for reports.

    Args:
        size: The longer side in pixels; a smaller image keeps its size.
        mean: The ``mean`` of ``Normalize`` that the images went through: one number, or one per channel.
        std: Its ``std``.

    Raises:
        ValueError: If the size is below 1.
    """

    size: int = 64
    mean: float | tuple[float, ...] | None = None
    std: float | tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(
                f"size: expected at least 1 pixel, got {self.size}; pass thumbnails=None for none"
            )

    def __call__(self, images: Tensor) -> Tensor:
        """Return small pictures of standardized images: (N, C, H, W) -> (N, height, width, 3) uint8."""
        scale = min(1.0, self.size / max(images.shape[2:]))
        size = [max(1, round(side * scale)) for side in images.shape[2:]]
        # Everything but the last step is linear, and costs less once the images are small.
        small = F.interpolate(images.detach().float(), size, mode="area")
        plain = undo_standardization(small, self.mean, self.std)
        if plain.shape[1] != 3:
            plain = plain.mean(1, keepdim=True)
        low, high = plain.flatten(1).aminmax(dim=1)
        outside = (low < -0.01) | (high > 1.01)
        plain = torch.where(outside.view(-1, 1, 1, 1), normalize(plain, "minmax"), plain).clamp(0, 1)
        pixels = (plain.nan_to_num() * 255).round().byte()
        return pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous()


@dataclass(frozen=True)
class Explainer:
    """Explain batches.

    Args:
        grad_cam: Of one layer.
        choice: Which classes.
        dtype: Of the stored maps.
        size: Of the stored maps.
        thumbnails: The pictures to keep; None for none.
        device: Where batches go.
    """

    grad_cam: BatchGradCam
    choice: ClassChoice
    dtype: torch.dtype
    size: MapSize
    thumbnails: Thumbnails | None
    device: torch.device

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Return array name -> (N, …) on the device, for the samples that could be read; nothing if there are none.

        Raises:
            ValueError: If scores, labels or masks do not fit, or if float16 cannot hold the maps.
            TypeError: If the model returns no tensor.
        """
        if batch.images is None:
            return {}
        if self.choice.kind == "true" and batch.labels is not None and bool((batch.labels < 0).any()):
            row = int((batch.labels < 0).nonzero()[0])
            raise ValueError(
                f"targets: expected a label for every sample, as targets is 'true', got {int(batch.labels[row])} for sample "
                f"{batch.positions[batch.readable[row]]}; pass targets='predicted', or leave such samples out"
            )
        images = images_for(self.grad_cam.forward_func, batch.images, self.device)
        labels = None if batch.labels is None else batch.labels.to(self.device, non_blocking=True)
        cams, scores, targets = self.choice.maps(self.grad_cam, images, labels)
        stored = cams if self.size == "layer" else resize(cams, images.shape[2:])
        found = {
            "targets": targets.int(),
            "scores": scores.float(),
            "predictions": predicted(scores).int(),
            "confidences": scores.float().softmax(1).amax(1),
            "maps": stored.to(self.dtype),
        }
        if labels is not None:
            found["labels"] = labels.clamp(min=-1).int()
        if batch.masks is not None:
            found |= _metrics(cams, batch.masks.to(self.device, non_blocking=True))
        if self.dtype == torch.float16:
            peaks = cams.abs().flatten(1).amax(1)
            few = (peaks > 0) & (peaks < _FEW_DIGITS)
            found["lossy"] = few.int() + 2 * (peaks > torch.finfo(torch.float16).max).int()
        if self.thumbnails is not None and images.dim() == 4:
            found["thumbnails"] = self.thumbnails(images)
        return found


def images_for(model: nn.Module, images: Tensor, device: torch.device) -> Tensor:
    """Return images on the device, in the model's floating-point type; a model that takes integers divides by 255 itself."""
    first = next(model.parameters(), None)
    floating = images.is_floating_point() and first is not None and first.is_floating_point()
    return images.to(device, first.dtype if floating and first is not None else None, non_blocking=True)


def _metrics(cams: Tensor, masks: Tensor) -> dict[str, Tensor]:
    samples, maps = cams.shape[:2]
    single = cams.flatten(0, 1).unsqueeze(1)
    repeated = masks.repeat_interleave(maps, 0)
    finite = single.isfinite().flatten(1).all(1)  # a map of NaN has no metric, and does not end the run
    single = single.nan_to_num()
    found = {
        "energy_in_mask": energy_in_mask(single, repeated),
        "pointing_game": pointing_game(single, repeated),
    }
    return {
        name: values.float().masked_fill(~finite, float("nan")).view(samples, maps)
        for name, values in found.items()
    }
