"""Layouts other than (N, C, *spatial): tokens on a grid, and channels that come last."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

#: The largest number of class, distillation and register tokens before the patches.
MAX_PREFIX = 9


class TokenGrid(NamedTuple):
    """The places of tokens in an image."""

    grid: tuple[int, ...]  #: patches along each side
    prefix: int  #: tokens before them

    def __str__(self) -> str:
        return f"{' x '.join(map(str, self.grid))} places after {self.prefix} prefix tokens"


def tokens_to_grid(tokens: Tensor, grid: Sequence[int], prefix: int = 0) -> Tensor:
    """Arrange the tokens of a transformer on their grid: (N, L, C) -> (N, C, *grid).

    Args:
        tokens: (N, L, C), row by row, after the prefix tokens.
        grid: the number of patches along each side; any number of dimensions.
        prefix: the number of tokens that come first (class, distillation, registers); they have no place and are left out.

    Returns:
        (N, C, *grid), a view.

    Raises:
        ValueError: the tokens are not (N, L, C), or L is not the number of places and prefix tokens.

    Example:
        >>> import torch
        >>> tokens_to_grid(torch.arange(7.0).reshape(1, 7, 1), (2, 3), prefix=1)
        tensor([[[[1., 2., 3.],
                  [4., 5., 6.]]]])
    """
    grid = tuple(grid)
    if prefix < 0 or tokens.dim() != 3 or tokens.shape[1] != prefix + math.prod(grid):
        raise ValueError(
            f"tokens: expected (N, L, C) with L = {prefix + math.prod(grid)}, that is {TokenGrid(grid, prefix)}, "
            f"got {tuple(tokens.shape)}; pass the grid of these tokens, and the number of tokens before the patches as prefix="
        )
    grid_of_tokens: Tensor = tokens[:, prefix:].transpose(1, 2).unflatten(2, grid)
    return grid_of_tokens


def channels_last_to_first(tensor: Tensor) -> Tensor:
    """Move the channels to the front.

    Args:
        tensor: (N, *spatial, C), or tokens (N, L, C).

    Returns:
        (N, C, *spatial), or (N, C, L): a view.

    Raises:
        ValueError: there is no spatial dimension.
    """
    if tensor.dim() < 3:
        raise ValueError(
            f"channels_last_to_first: expected (N, *spatial, C), got {tuple(tensor.shape)}; a tensor without places needs no "
            f"reshape"
        )
    return tensor.movedim(-1, 1)


def grid_candidates(length: int, input_size: Sequence[int], prefix: int | None = None) -> list[TokenGrid]:
    """Return every grid of square patches that explains the number of tokens.

    Only if no patch size divides the sides of the input without a remainder, the last patch of a side may be cut off. A single
    patch for the whole input is left out.

    Args:
        length: the number of tokens, prefix tokens included.
        input_size: the sides of the input in pixels.
        prefix: the number of prefix tokens; None tries 0 to 9.
    """
    even: list[TokenGrid] = []
    cut: list[TokenGrid] = []
    least = length - (MAX_PREFIX if prefix is None else prefix)
    most = length if prefix is None else least
    for side in range(1, min(input_size, default=0) + 1):
        grid = tuple(size // side for size in input_size)
        places = math.prod(grid)
        if places < max(least, 2):
            break
        if places <= most:
            candidates = cut if any(size % side for size in input_size) else even
            candidate = TokenGrid(grid, length - places)
            if candidate not in candidates:
                candidates.append(candidate)
    return even or cut


def infer_grid(length: int, input_size: Sequence[int], prefix: int | None = None) -> TokenGrid:
    """Find the grid of the tokens of a transformer from the size of the input: square patches, 0 to 9 prefix tokens.

    Args:
        length: L of the tokens (N, L, C).
        input_size: the sides of the input, one or two.
        prefix: the number of prefix tokens (class, distillation, registers), if it is known.

    Returns:
        The grid, and the number of prefix tokens.

    Raises:
        ValueError: no grid fits, several do, or there are three sides: the patches of a video are seldom cubes, so the number
            of tokens does not determine their grid.

    Example:
        >>> infer_grid(197, (224, 224))
        TokenGrid(grid=(14, 14), prefix=1)
        >>> infer_grid(25, (64, 96))
        TokenGrid(grid=(4, 6), prefix=1)
    """
    if len(input_size) > 2:
        raise ValueError(
            f"tokens: expected an input of one or two sides, got {' x '.join(map(str, input_size))} for {length} tokens; "
            f"patches of a video or volume need not have one size along all sides; give their grid, "
            f"tokens_to_grid(tokens, grid, prefix)"
        )
    candidates = grid_candidates(length, input_size, prefix)
    if len(candidates) == 1:
        return candidates[0]
    assumed = f"0 to {MAX_PREFIX}" if prefix is None else str(prefix)
    found = "; or ".join(map(str, candidates)) if candidates else "no grid"
    raise ValueError(
        f"tokens: expected one grid of square patches and {assumed} prefix tokens that gives {length} tokens for an input of "
        f"{' x '.join(map(str, input_size))}, got {found}; give the grid, tokens_to_grid(tokens, grid, prefix)"
    )


def is_downsampled(
    spatial: Sequence[int], input_size: Sequence[int], *, padded: bool = False, anisotropic: bool = False
) -> bool:
    """Return True if these may be the sides of an image of this size after layers of one stride.

    The sides may be rounded either way. Unless all layers are padded, they may also be one larger (even kernels), or up to half
    of them may be cut off (no padding), the same amount from each.

    Args:
        spatial: the sides of a map.
        input_size: the sides of the input.
        padded: accept rounding alone.
        anisotropic: also accept one stride per axis, each a power of two times a common one, with rounding alone.
    """
    if len(spatial) != len(input_size) or not spatial or min(*spatial, *input_size) < 1:
        return False
    if any(_fits(spatial, input_size, stride, padded) for stride in range(1, max(input_size) + 1)):
        return True
    return anisotropic and any(
        all(
            any(abs(size / (stride << more) - side) < 1 for more in range(max(size.bit_length(), 1)))
            for size, side in zip(input_size, spatial, strict=True)
        )
        for stride in range(1, max(input_size) + 1)
    )


def has_one_stride_per_frame(
    spatial: Sequence[int], input_size: Sequence[int], *, padded: bool = False
) -> bool:
    """Return True if these may be the sides of a video, the time axis first, whose frames are downsampled by one stride.

    Args:
        spatial: the sides of a map.
        input_size: the sides of the input.
        padded: accept rounding alone.
    """
    return (
        len(spatial) == len(input_size) == 3
        and is_downsampled(spatial[:1], input_size[:1], padded=padded)
        and is_downsampled(spatial[1:], input_size[1:], padded=padded)
    )


def _fits(spatial: Sequence[int], input_size: Sequence[int], stride: int, padded: bool) -> bool:
    missing = [size / stride - side for size, side in zip(input_size, spatial, strict=True)]
    if max(missing) - min(missing) >= 1:
        return False
    if padded:
        return max(map(abs, missing)) < 1
    cut_off = max(lost / (size / stride) for lost, size in zip(missing, input_size, strict=True))
    return min(missing) >= -1 and (cut_off <= 0.5 or max(missing) <= 1)
