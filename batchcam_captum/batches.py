"""Batches of images and labels from a data loader: the loop over a data set that the rest of the package shares."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import length_hint
from typing import Any

import torch
from torch import Tensor


def batches(
    loader: Iterable[Any],
    device: torch.device | str | None = None,
    *,
    description: str = "batches",
    progress: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over a loader, move each batch to the device, and leave torch's global random state unchanged.

    A shuffling ``DataLoader`` and random transforms draw from a copy of the global CPU generator, so a later training run does
    not depend on whether the data set was read before.

    Args:
        loader: batches that begin with images (N, C, *spatial) and labels (N,).
        device: where the batches go; None leaves them where they are.
        description: label of the progress bar.
        progress: show a progress bar.

    Yields:
        Images and labels of one batch.

    Raises:
        TypeError: a batch is not a tuple or list that begins with two tensors.
    """
    from tqdm.auto import tqdm

    # tqdm wraps the isolated iterator: it may create an iterator of its own, and creating one draws random numbers.
    bar = tqdm(
        _with_own_random_state(loader),
        desc=description,
        total=length_hint(loader) or None,
        unit="batch",
        disable=not progress,
        leave=False,
    )
    for batch in bar:
        if not isinstance(batch, tuple | list) or len(batch) < 2:
            raise TypeError(
                f"loader: expected batches (images, labels, ...), got {type(batch).__name__}; wrap the loader in a generator "
                "that yields (images, labels)"
            )
        yield batch[0].to(device), batch[1].to(device)


def _with_own_random_state(items: Iterable[Any]) -> Iterator[Any]:
    """Iterate with a private copy of the global CPU generator's state, which is swapped in only while an item is made."""
    own, end = torch.get_rng_state(), object()
    iterator: Iterator[Any] | None = None
    while True:
        outside = torch.get_rng_state()
        torch.set_rng_state(own)
        try:
            iterator = iter(items) if iterator is None else iterator
            item = next(iterator, end)
        finally:
            own = torch.get_rng_state()
            torch.set_rng_state(outside)
        if item is end:
            return
        yield item
