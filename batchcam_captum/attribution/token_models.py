"""What vision transformers say of their tokens: patch size, strides of the stages, prefix tokens. By duck typing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import nn

from ..functional.layout import MAX_PREFIX, TokenGrid

Sides = tuple[int, ...]


class TokenModel(NamedTuple):
    """What a model knows of its tokens."""

    name: str  #: of its class
    #: Pixels a token of each stage, finest first; one number holds for both sides of an image, but never for those of a video.
    strides: list[Sides]
    prefix: int | None  #: how many tokens are no patches, None where it does not say
    own_grid: Sides | None  #: of the input size that it was made for; None where it takes any

    def __str__(self) -> str:
        said = []
        if self.strides:
            said.append(f"strides {', '.join('x'.join(map(str, stride)) for stride in self.strides)}")
        if self.own_grid:
            said.append(f"a grid of {'x'.join(map(str, self.own_grid))}")
        if self.prefix is not None:
            said.append(f"{self.prefix} prefix tokens")
        return f"{self.name} has {' and '.join(said)}"


def enclosing(forward_func: Callable[..., Any], layer: nn.Module) -> Iterator[nn.Module]:
    """Yield the layer, and the modules of the model around it, from the inside out; the layer alone where it is not found."""
    root = forward_func if isinstance(forward_func, nn.Module) else getattr(forward_func, "__self__", None)
    path = ""
    if isinstance(root, nn.Module):
        path = next((name for name, module in root.named_modules() if module is layer), "")
    yield layer
    if path and isinstance(root, nn.Module):
        names = path.split(".")
        for depth in range(len(names) - 1, -1, -1):
            yield root.get_submodule(".".join(names[:depth]))


def token_model(forward_func: Callable[..., Any], layer: nn.Module) -> TokenModel | None:
    """Ask the modules around a layer for what they know of tokens; the innermost that knows answers."""
    for module in enclosing(forward_func, layer):
        known = _knowledge(module)
        if known is not None:
            return known
    return None


def known_grids(model: TokenModel, length: int, input_size: Sequence[int] | None) -> list[TokenGrid]:
    """The grids with which a model explains the number of its tokens, in most cases one.

    Args:
        model: what it says.
        length: how many tokens.
        input_size: the input's sides, where they are known.
    """
    found: list[TokenGrid] = []
    for position, stride in enumerate(model.strides if input_size else []):
        # Only the first stage may have prefix tokens that nobody told of; later stages would explain nearly any number.
        if model.prefix is None and position and found:
            break
        for rounded in (math.floor, math.ceil):
            grid = tuple(rounded(size / step) for size, step in _each(input_size or (), stride))
            if grid and _explains(model, length, grid, position == 0):
                found.append(TokenGrid(grid, length - math.prod(grid)))
    if not found and model.own_grid and _explains(model, length, model.own_grid, True):
        found.append(TokenGrid(model.own_grid, length - math.prod(model.own_grid)))
    return list(dict.fromkeys(found))


def _explains(model: TokenModel, length: int, grid: Sides, first_stage: bool) -> bool:
    places = math.prod(grid)
    if model.prefix is not None:  # or none of them yet: some models add them late
        return places > 0 and length - places in (0, model.prefix)
    return places > 0 and 0 <= length - places <= (MAX_PREFIX if first_stage else 0)


def _each(sizes: Sequence[int], stride: Sides) -> list[tuple[int, int]]:
    """Pairs of a side and its stride; none where the numbers of sides differ."""
    if len(stride) == 1 and len(sizes) < 3:
        stride = stride * len(sizes)
    return list(zip(sizes, stride, strict=True)) if len(stride) == len(sizes) else []


def _sides(value: object) -> Sides | None:
    """A positive number, or several, as a tuple; None for anything else."""
    values = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    fits = all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in values)
    return tuple(int(side) for side in values) if values and fits else None


def _knowledge(module: nn.Module) -> TokenModel | None:
    pooled = _pooled_by_attention(module)
    if pooled:
        return TokenModel(type(module).__name__, pooled, 1, None)
    embedding = getattr(module, "patch_embed", None)
    config = getattr(module, "config", None)
    own_grid = None
    prefix = getattr(module, "num_prefix_tokens", None)
    if isinstance(embedding, nn.Module):  # timm
        projection = getattr(embedding, "proj", None)
        # Patches may overlap: what counts is the stride, not the patch.
        stride = projection.stride if isinstance(projection, nn.Conv2d | nn.Conv3d) else None
        patch = _sides(stride or getattr(embedding, "patch_size", None))
        if not getattr(module, "dynamic_img_size", False):
            own_grid = _sides(getattr(embedding, "grid_size", None))
    elif isinstance(getattr(module, "class_token", None), nn.Parameter):  # torchvision
        patch, prefix = _sides(getattr(module, "patch_size", None)), 1
        own_grid = _divided(_sides(getattr(module, "image_size", None)), patch)
    else:  # Hugging Face; its classes of one family differ in their prefix tokens
        patch = _sides(getattr(config, "patch_size", None))
        own_grid = _divided(_sides(getattr(config, "image_size", None)), patch)
        if (
            getattr(config, "tubelet_size", None) is not None
        ):  # a video, whose input may have its axes in any order
            patch, own_grid = None, _video_grid(config, own_grid)
    reductions = _reductions(getattr(module, "feature_info", None))
    if patch is None and own_grid is None and not reductions:
        return None
    strides = [] if patch is None else [patch]
    if patch is None or len(set(patch)) == 1:
        strides += [(stride,) for stride in reductions]
    if patch is not None and not reductions:
        strides += [tuple(side * 2**stage for side in patch) for stage in range(1, 5)]
    if not isinstance(prefix, int) or isinstance(prefix, bool):
        prefix = None
    return TokenModel(type(module).__name__, strides, prefix, own_grid)


def _pooled_by_attention(module: nn.Module) -> list[Sides]:
    """The strides of torchvision's MViT, time first: of its patches, then of every block that pools its queries."""
    projection = getattr(module, "conv_proj", None)
    blocks = getattr(module, "blocks", None)
    if not isinstance(projection, nn.Conv3d) or not isinstance(blocks, nn.ModuleList):
        return []
    stride: Sides = tuple(projection.stride)
    strides = [stride]
    for block in blocks:
        pool = getattr(getattr(getattr(block, "attn", None), "pool_q", None), "pool", None)
        if isinstance(pool, nn.Conv3d):
            stride = tuple(side * step for side, step in zip(stride, pool.stride, strict=True))
            strides.append(stride)
    return list(dict.fromkeys(strides))


def _video_grid(config: Any, frame: Sides | None) -> Sides | None:
    """(t, h, w) of a Hugging Face video model: its tubelets span some frames, or some frames and pixels."""
    tubelet, frames = _sides(config.tubelet_size), _sides(getattr(config, "num_frames", None))
    if tubelet is None or frames is None:
        return None
    if len(tubelet) == 3:
        frame = _divided(_sides(getattr(config, "image_size", None)), tubelet[1:])
    return None if frame is None else (frames[0] // tubelet[0], *frame)


def _divided(size: Sides | None, patch: Sides | None) -> Sides | None:
    if size is None or patch is None:
        return None
    if len(size) == 1:  # images are square unless two sides are given
        size = size * 2
    return tuple(side // step for side, step in _each(size, patch)) or None


def _reductions(feature_info: object) -> list[int]:
    """The strides of the stages of a timm model."""
    if not isinstance(feature_info, list):
        return []
    strides = {entry.get("reduction") for entry in feature_info if isinstance(entry, dict)}
    return sorted(stride for stride in strides if isinstance(stride, int))
