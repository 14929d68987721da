"""Images of a loader, one batch at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..batches import batches
from ..distributed import Ranks
from ..functional import ValueChecks, class_weights, resize, to_one_channel
from ..functional.images import PerChannel, ToChannel

#: How far an image may leave [0, 1] by rounding, such as that of a half type or of undoing a standardisation.
_ROUNDING = 0.01

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from .class_prototypes import ClassPrototypes


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


def take_together(
    several: Sequence[ClassPrototypes],
    loader: Iterable[Any],
    device: torch.device | str | None,
    *,
    progress: bool,
    sync: bool | ProcessGroup,
) -> None:
    """Fill prototypes of several kinds in one pass over a loader; see :meth:`~batchcam_captum.ClassPrototypes.from_loader`.

    Args:
        several: new prototypes.
        loader: of batches that begin with images (N, C, *spatial) and labels (N,).
        device: where to add up, and where the result lies. None: the CPU.
        progress: show a progress bar; in a process group its first rank does.
        sync: over which ranks to add up.

    Raises:
        ValueError: images or labels that do not fit, or an empty loader (on all ranks).
        TypeError: batches, or ``sync``, of another kind.
    """
    for each in several:
        each.to(device)
    group = Ranks(sync).group
    shown = progress and (group is None or group.rank() == 0)
    empty = True
    for images, labels in batches(loader, device, description="prototypes", progress=shown):
        for each in several:
            each._take_batch(images, labels)
        empty = False
    for each in several:
        if group is not None:
            each.reduce(group)
        if not bool(each.counts.any()):
            what = "batch" if empty else "image whose label is not ignored"
            raise ValueError(
                f"loader: expected at least one {what}, got none; check the data set and drop_last"
            )
        each._taken(in_common=group is not None)
