"""Images as they are shown, and how that was done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...functional.images import PerChannel, undo_standardization
from ...functional.overlay import gray_or_color

Images = Tensor | Sequence[Tensor]


@dataclass(frozen=True)
class Pictures:
    """Images as Matplotlib takes them."""

    pixels: list[Tensor]  #: N of (H, W, 3) float32 in [0, 1], on the CPU; white where an image is not finite
    problems: list[str]  #: N, empty where there is none
    how: str  #: what was done, for the figure; empty where nothing was

    @property
    def aspect(self) -> float:
        """Width by height of the middle one."""
        shapes = sorted(picture.shape[1] / picture.shape[0] for picture in self.pixels)
        return shapes[len(shapes) // 2]


@torch.no_grad()
def pictures(images: Images, mean: PerChannel = None, std: PerChannel = None) -> Pictures:
    """Images as they are shown.

    Args:
        images: (N, C, H, W), or N of (C, H, W) or (H, W) that may have different sizes. In colour where C is 3, as the mean of
            the channels otherwise. Integers are from 0 to 255.
        mean: undone before, see :func:`~batchcam_captum.functional.images.undo_standardization`.
        std: likewise.

    Returns:
        The pictures. Images in [0, 1] stay as they are. With ``mean`` or ``std`` they are clipped to [0, 1]; without, where one
        of them is outside of [0, 1], each is brought from its own smallest and largest value to 0 and 1.

    Raises:
        ValueError: no images, or some that are none.
    """
    found = [_floating(image) for image in images]
    if not found:
        raise ValueError("images: expected at least one, got none")
    problems = ["" if bool(image.isfinite().all()) else "image not finite" for image in found]
    undone = mean is not None or std is not None
    if undone:
        found = [undo_standardization(image[None], mean, std)[0] for image in found]
    shown = [image for image, problem in zip(found, problems, strict=True) if not problem]
    # Half types and resizing leave values a little outside.
    stretched = not undone and any(bool((image < -1e-3).any() or (image > 1 + 1e-3).any()) for image in shown)
    how = "standardisation undone" if undone else "each from its smallest to its largest value" * stretched
    return Pictures(
        [
            torch.ones(*image.shape[1:], 3) if problem else _picture(image, stretched)
            for image, problem in zip(found, problems, strict=True)
        ],
        problems,
        how,
    )


def _floating(image: Tensor) -> Tensor:
    """(C, H, W) float32 on the CPU."""
    if not isinstance(image, Tensor) or image.dim() not in (2, 3) or image.numel() == 0:
        got = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(
            f"images: expected tensors (N, C, H, W), or N of (C, H, W) or (H, W), got one of {got}; "
            "make tensors of other things, and add what is missing with images.unsqueeze(0)"
        )
    image = image.detach().cpu()
    if not image.is_floating_point():
        image = image.float() / (1 if image.dtype is torch.bool else 255)
    return image.float() if image.dim() == 3 else image.float()[None]


def _picture(image: Tensor, stretched: bool) -> Tensor:
    if stretched:
        shown = gray_or_color(image[None])[0]
    else:
        single = image if len(image) == 3 else image.mean(0, keepdim=True)
        shown = single.clamp(0, 1).expand(3, -1, -1)
    return shown.movedim(0, -1)
