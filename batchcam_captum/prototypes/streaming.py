"""Images of a loader, one batch at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..functional import ValueChecks, class_weights, resize, to_one_channel
from ..functional.images import PerChannel, ToChannel

#: How far an image may leave [0, 1] by rounding, such as that of a half type or of undoing a standardisation.
_ROUNDING = 0.01


class Reading(NamedTuple):
    """How images become maps with one channel, see :class:`~batchcam_captum.ClassPrototypes`."""

    num_classes: int
    mean: PerChannel = None
    std: PerChannel = None
    to_channel: ToChannel | None = None
    size: Sequence[int] | None = None
    ignore_index: int = -100

    def read(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The images that are not ignored.

        Args:
            images: (N, C, *spatial), any channel count, floating or integer.
            labels: (N,) class indices.

        Returns:
            (M, 1, *spatial) floating, and (M,) int64. Waits for the device.

        Raises:
            ValueError: images that are not finite, or labels that do not fit.
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
        assert belongs.indices is not None
        return single[belongs.counted], belongs.indices[belongs.counted]


def require_unit_interval(single: Tensor, why: str = "") -> None:
    """Raise where images leave [0, 1] by more than rounding. Waits for the device.

    Args:
        single: (N, 1, *spatial), what :meth:`Reading.read` returns.
        why: what the values are for, for the error's text.

    Raises:
        ValueError: they do.
    """
    if not single.numel():
        return
    low, high = single.min(), single.max()
    ValueChecks(synchronize=True).require(
        (low >= -_ROUNDING) & (high <= 1 + _ROUNDING),
        f"images: expected values from 0 to 1{why}, got others; pass mean= and std= if the images are standardised, divide those "
        f"of 0 to 255 by 255, or bring them there with to_channel=",
        lambda: f"from {float(low):.3g} to {float(high):.3g}",
    )


def batches(
    loader: Iterable[Any], device: torch.device | str | None, *, description: str, progress: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """The images and labels of a loader's batches, on the device.

    Args:
        loader: of batches that begin with images (N, C, *spatial) and labels (N,).
        device: where to put them; None leaves them.
        description: of the progress bar.
        progress: show it.

    Yields:
        Images and labels.

    Raises:
        TypeError: batches of another kind.
    """
    from tqdm.auto import tqdm

    for batch in tqdm(loader, desc=description, unit="batch", disable=not progress, leave=False):
        if not isinstance(batch, tuple | list) or len(batch) < 2:
            raise TypeError(
                f"loader: expected batches (images, labels, …), got {type(batch).__name__}; call update(images, labels) in "
                f"a loop of your own"
            )
        yield batch[0].to(device), batch[1].to(device)
