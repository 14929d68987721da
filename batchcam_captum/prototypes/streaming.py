"""Images of a loader, one batch at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from operator import length_hint
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

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


def batches(
    loader: Iterable[Any], device: torch.device | str | None, *, description: str, progress: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """The images and labels of a loader's batches, on the device.

    What a loader draws from torch's global generator on the CPU, such as the order of a shuffling ``DataLoader`` or random
    transforms, it draws from a copy: the global generator stays as it was, and a training that follows is not changed by it.

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

    # Around the generator, as tqdm may begin with an iterator of its own, which would draw as well.
    bar = tqdm(
        _apart(loader),
        desc=description,
        total=length_hint(loader) or None,
        unit="batch",
        disable=not progress,
        leave=False,
    )
    for batch in bar:
        if not isinstance(batch, tuple | list) or len(batch) < 2:
            raise TypeError(
                f"loader: expected batches (images, labels, …), got {type(batch).__name__}; call update(images, labels) in "
                f"a loop of your own"
            )
        yield batch[0].to(device), batch[1].to(device)


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


def _apart(items: Iterable[Any]) -> Iterator[Any]:
    """The items, drawing on with a copy of the global generator's state, which is put in for the time of each step alone."""
    own, end = torch.get_rng_state(), object()
    steps: Iterator[Any] | None = None
    while True:
        outside = torch.get_rng_state()
        torch.set_rng_state(own)
        try:
            steps = iter(items) if steps is None else steps
            item = next(steps, end)
        finally:
            own = torch.get_rng_state()
            torch.set_rng_state(outside)
        if item is end:
            return
        yield item
