"""Boxes as masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..functional import ValueChecks
from ..functional.common import full_precision, no_autocast


def boxes_to_masks(
    boxes: Tensor | Sequence[Tensor],
    image_size: Sequence[int],
    size: Sequence[int] | None = None,
    *,
    checks: ValueChecks | None = None,
) -> Tensor:
    """Draw boxes as masks: the share of each pixel that lies in the union of the sample's boxes.

    The shares are exact, at edges and where boxes overlap, so a mask drawn at the size of a 7×7 cam equals the full-size mask
    averaged to that size. Boxes are clipped to the image, and a box without an area draws nothing.

    Args:
        boxes: (N, 4), one box per sample as (x1, y1, x2, y2) in pixels of the image, x to the right and y down, (0, 0) at the
            corner of the first pixel; or (N, M, 4); or a sequence of N tensors (M_i, 4) with any number of boxes, including 0.
        image_size: (height, width) of the images in pixels.
        size: (h, w) of the masks. Default: that of the images.
        checks: collects value checks. Default: they raise at once.

    Returns:
        (N, 1, h, w) in [0, 1], float32 (float64 for float64 boxes), on the boxes' device.

    Raises:
        ValueError: ``boxes`` has another shape, a size is not two positive numbers, or boxes are not finite or have their second
            corner to the left of or above the first.
        TypeError: ``boxes`` holds something other than tensors.

    Example:
        >>> import torch
        >>> from batchcam_captum.prototypes import boxes_to_masks
        >>> boxes_to_masks(torch.tensor([[1, 0, 4, 2]]), image_size=(4, 4), size=(2, 2))
        tensor([[[[0.5000, 1.0000],
                  [0.0000, 0.0000]]]])
    """
    for name, value in (("image_size", image_size), ("size", size)):
        if value is not None and (len(value) != 2 or min(value) < 1):
            raise ValueError(f"{name}: expected (height, width) in pixels, got {tuple(value)}")
    corners = _padded(boxes)
    checks = ValueChecks(synchronize=True) if checks is None else checks
    checks.require(
        corners.isfinite().all() & (corners[..., 2:] >= corners[..., :2]).all(),
        "boxes: expected finite corners (x1, y1, x2, y2) with x1 <= x2 and y1 <= y2, got others; convert boxes from "
        "(x, y, width, height)",
    )
    height, width = size = tuple(image_size if size is None else size)
    with no_autocast(corners):
        # Corners in pixels of the mask.
        x1, x2 = (corners[..., i] * (width / image_size[1]) for i in (0, 2))
        y1, y2 = (corners[..., i] * (height / image_size[0]) for i in (1, 3))
        # All edges together cut the plane into cells, each of which is inside or outside the union.
        xs, ys = (torch.cat(pair, 1).sort(1).values for pair in ((x1, x2), (y1, y2)))
        x_middle, y_middle = ((edges[:, 1:] + edges[:, :-1]) / 2 for edges in (xs, ys))
        in_x = (x_middle.unsqueeze(1) > x1.unsqueeze(2)) & (x_middle.unsqueeze(1) < x2.unsqueeze(2))
        in_y = (y_middle.unsqueeze(1) > y1.unsqueeze(2)) & (y_middle.unsqueeze(1) < y2.unsqueeze(2))
        covered = (in_y.to(xs.dtype).transpose(1, 2) @ in_x.to(xs.dtype) > 0).to(xs.dtype)
        masks = _overlaps(ys, height) @ covered @ _overlaps(xs, width).transpose(1, 2)
    return masks.clamp(0, 1).unsqueeze(1)  # rounding


def _padded(boxes: Tensor | Sequence[Tensor]) -> Tensor:
    """Return (N, M, 4), floating, padded with boxes without an area."""
    if not isinstance(boxes, Tensor):
        boxes = list(boxes)
        for each in boxes:
            if not isinstance(each, Tensor):
                raise TypeError(
                    f"boxes: expected a tensor, or a sequence of tensors, got a sequence of {type(each).__name__}; pass "
                    f"torch.as_tensor(boxes)"
                )
            if each.dim() != 2 or each.shape[1] != 4:
                raise ValueError(f"boxes: expected tensors (M, 4), one row per box, got {tuple(each.shape)}")
        if not boxes:
            return torch.zeros(0, 1, 4)
        boxes = torch.nn.utils.rnn.pad_sequence([full_precision(each) for each in boxes], batch_first=True)
    if boxes.dim() not in (2, 3) or boxes.shape[-1] != 4:
        raise ValueError(
            f"boxes: expected (N, 4), (N, M, 4) or a sequence of (M, 4), got {tuple(boxes.shape)}"
        )
    if boxes.dim() == 2:
        boxes = boxes.unsqueeze(1)
    if not boxes.shape[1]:
        boxes = boxes.new_zeros(boxes.shape[0], 1, 4)
    return full_precision(boxes)


def _overlaps(edges: Tensor, number: int) -> Tensor:
    """Return how much of each pixel lies between neighboring edges: (N, E) sorted -> (N, number, E − 1)."""
    starts = torch.arange(number, device=edges.device, dtype=edges.dtype).reshape(-1, 1)
    low, high = edges[:, None, :-1], edges[:, None, 1:]
    return (torch.minimum(high, starts + 1) - torch.maximum(low, starts)).clamp(min=0)
