"""What :func:`compare` is given: checked, and put where it is to be."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...loading import check_device


def placed(model: nn.Module, device: str | torch.device | None, dtype: torch.dtype | None) -> nn.Module:
    """The model, or a copy of it where it is to be on another device or of another dtype."""
    anchor = anchor_of(model)
    # A tensor knows its index, which "cuda" leaves open.
    wanted = anchor.device if device is None else torch.empty(0, device=check_device(device)).device
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype: expected a floating one, got {dtype}")
    if wanted == anchor.device and dtype in (None, anchor.dtype):
        return model
    try:
        return copy.deepcopy(model).to(wanted, dtype or anchor.dtype)
    except Exception as error:
        raise ValueError(
            f"model: expected one that can be copied to {wanted}, {dtype or anchor.dtype}, got: {error}; bring it there before, "
            "and leave device and dtype out"
        ) from error


def anchor_of(model: nn.Module) -> Tensor:
    """A floating parameter or buffer of the model, for device and dtype."""
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    for tensor in tensors:
        if tensor.is_floating_point():
            return tensor
    return torch.empty(0)


def check_images(images: Any) -> None:
    """Raise unless they are at least one image, floating, (N, C, *spatial)."""
    if not isinstance(images, Tensor):
        raise TypeError(f"images: expected a tensor (N, C, *spatial), got {type(images).__name__}")
    if images.dim() < 3 or not len(images) or not images.is_floating_point():
        raise ValueError(
            f"images: expected at least one, floating, (N, C, *spatial), got {tuple(images.shape)} {images.dtype}"
        )


def checked_names(what: str, names: Sequence[str], known: Sequence[str]) -> list[str]:
    """The names, each once, or a ``ValueError`` that says which there are."""
    if isinstance(names, str):
        names = [names]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(
            f"{what}: expected some of {', '.join(map(repr, known))}, got {', '.join(map(repr, unknown)) or 'none'}"
        )
    return list(dict.fromkeys(names))


def checked_sizes(sizes: Sequence[int]) -> list[int]:
    """Batch sizes in ascending order, each once, or a ``ValueError``."""
    if any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes):
        raise ValueError(f"batch_sizes: expected integers of at least 1, got {list(sizes)}")
    return sorted(set(sizes))


def checked_targets(targets: Sequence[int] | Tensor, samples: int, classes: int) -> list[int]:
    """One class for each sample, or a ``ValueError``."""
    found: Any = targets.tolist() if isinstance(targets, Tensor) else list(targets)
    if (
        not isinstance(found, list)
        or len(found) != samples
        or not all(isinstance(target, int) and 0 <= target < classes for target in found)
    ):
        raise ValueError(
            f"targets: expected {samples} classes from 0 to {classes - 1}, one for each image, got {found}"
        )
    return found
