"""What can be told to be wrong with a run before it begins."""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from ..attribution.output import Picker, pick_output
from ..distributed import is_distributed
from .guarded import GuardedBatch

#: Of the maps of a batch: what compresses and writes them takes no more.
_MOST_BYTES = 2**31 - 1


def check_known(batch: GuardedBatch) -> None:
    """Every sample needs a label where that is what is explained; a batch without any is refused where maps are made."""
    if batch.labels is not None and bool((batch.labels < 0).any()):
        row = int((batch.labels < 0).nonzero()[0])
        raise ValueError(
            f"targets: expected a label for every sample, as targets is 'true', got {int(batch.labels[row])} for sample "
            f"{[batch.positions[each] for each in batch.readable][row]}; pass targets='predicted', or leave such samples out"
        )


def rank_of(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Which of how many processes this is."""
    if (rank is None) != (world_size is None):
        raise ValueError(f"rank, world_size: expected both or neither, got {rank} and {world_size}")
    if rank is None or world_size is None:
        if is_distributed():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if not 0 <= rank < world_size:
        raise ValueError(f"rank: expected 0 to {world_size - 1}, got {rank}")
    return rank, world_size


def check_arguments(model: object, dtype: str, size: str, thumbnails: int, max_missing: int | None) -> None:
    """Those of :func:`.explain_dataset` that stand alone."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if model.training:
        raise ValueError(
            "model: expected one in eval mode, as in training mode a map would hang on the batch it is in, got one in training "
            "mode; call model.eval()"
        )
    if dtype not in ("float16", "float32"):
        raise ValueError(f"dtype: expected 'float16' or 'float32', got {dtype!r}")
    if size not in ("layer", "input"):
        raise ValueError(f"size: expected 'layer' or 'input', got {size!r}")
    if thumbnails < 0:
        raise ValueError(f"thumbnails: expected at least 0 pixels, got {thumbnails}")
    if max_missing is not None and max_missing < 1:
        raise ValueError(f"max_missing: expected at least 1 file, or None for any number, got {max_missing}")


def check_bytes(batch_size: int, maps: tuple[int, ...], itemsize: int) -> None:
    """A batch that would take gigabytes is refused before the first one."""
    needed = batch_size * prod(maps) * itemsize
    if needed > _MOST_BYTES:
        raise ValueError(
            f"loader: expected batches whose maps take less than 2 GiB, got {needed / 2**30:.1f} GiB for {batch_size} "
            f"images with maps {maps}; pass a smaller batch size, size='layer', or fewer targets"
        )


def names_of(argument: str, names: Sequence[str] | None, count: int) -> list[str] | None:
    """One a sample, or none."""
    if names is None:
        return None
    if len(names) != count:
        raise ValueError(f"{argument}: expected {count}, one a sample, got {len(names)}")
    return list(map(str, names))


def try_model(model: nn.Module, images: Tensor, output: Picker) -> None:
    """See whether it takes the images, before anything is asked of its layers."""
    try:
        with torch.no_grad():
            found = model(images)
    except Exception as error:  # whatever a model raises
        raise ValueError(
            f"model: expected {type(model).__name__} to take images of shape (N, {', '.join(map(str, images.shape[1:]))}), got "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    pick_output(found, output)
