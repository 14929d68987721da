"""``reshape=``: from what a layer returns to (N, C, *spatial)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, get_args

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from ..functional.layout import (
    MAX_PREFIX,
    TokenGrid,
    channels_last_to_first,
    has_one_stride_per_frame,
    infer_grid,
    is_downsampled,
    tokens_to_grid,
)
from .layers import module_names

ReshapeKind = Literal["auto", "tokens", "channels_last"]
#: None leaves the activations as they are; see :func:`find_reshape`.
Reshape = None | ReshapeKind | Callable[[Tensor], Tensor]

#: Parameters that are prepended to the patches' tokens, in timm, torchvision and Hugging Face's models.
_PREFIX_TOKENS = (
    "cls_token", "class_token", "class_embedding", "dist_token", "distillation_token", "reg_token", "register_tokens",
)  # fmt: skip
Sides = tuple[int, ...]
_CHANNELS_FIRST = (_ConvNd, _NormBase, nn.GroupNorm)
# The remedies.
_PASS = 'pass reshape=None for (N, C, *spatial), reshape="channels_last" for (N, *spatial, C), or a function of the tensor'
_PASS_GRID = "pass reshape=lambda tokens: functional.tokens_to_grid(tokens, grid, prefix)"


def check_reshape(reshape: object) -> None:
    """Check that the argument is one that :func:`find_reshape` takes.

    Raises:
        ValueError: an unknown name.
        TypeError: neither None, a name nor a callable.
    """
    if reshape is None or callable(reshape) or reshape in get_args(ReshapeKind):
        return
    kind = repr(reshape) if isinstance(reshape, str) else type(reshape).__name__
    message = f"reshape: expected 'auto', 'tokens', 'channels_last', a function or None, got {kind}"
    raise ValueError(message) if isinstance(reshape, str) else TypeError(message)


def find_reshape(
    reshape: Reshape,
    activations: Tensor,
    *,
    forward_func: Callable[..., Any],
    layer: nn.Module,
    input_size: Sides | None,
    samples: int | None,
) -> Callable[[Tensor], Tensor]:
    """Find the function that brings activations, and their gradients, to (N, C, *spatial).

    Args:
        reshape: None leaves them as they are. ``"tokens"``: (N, L, C), a transformer's tokens, row after row; the grid comes
            from the input's size and the model's patches, and prefix tokens (class, distillation, registers) are left out.
            ``"channels_last"``: (N, *spatial, C). ``"auto"`` tells by the input's size which of the three it is. Or a function
            of the tensor.
        activations: what the layer returned.
        forward_func: the model.
        layer: the layer.
        input_size: the spatial sizes of the model's input, empty if it has none; None if they are unknown.
        samples: the number of samples of the input; None if it is unknown.

    Returns:
        A function of a tensor of the activations' shape. If ``reshape`` is a function, the returned one checks its results: a
        ``ValueError`` unless they are (N, C, *spatial), of one shape for activations and gradients; a ``TypeError`` for what is
        no tensor.

    Raises:
        ValueError: an unknown name, activations whose layout is not certain, or rows that are not the samples.
        TypeError: a ``reshape`` of a wrong type.
    """
    check_reshape(reshape)
    if reshape is None:
        return _unchanged
    if callable(reshape):
        return _Checked(reshape, samples)
    where = f"{tuple(activations.shape)} from {type(layer).__name__} {_for_input(input_size)}"
    if samples is not None and activations.shape[:1] != (samples,):
        raise ValueError(
            f"reshape: expected one row per sample, ({samples}, …), got {where}, as from an attention over windows; choose the "
            f"block around this layer, or its MLP, or pass a function of the tensor"
        )
    if reshape == "channels_last":
        return channels_last_to_first
    around = list(enclosing(forward_func, layer))
    is_sequence = activations.dim() == 3 and not is_channels_first(layer)
    if is_sequence and input_size is None:
        raise ValueError(
            f"reshape: expected an input of known size, got {where}; pass the input to the model as its first positional "
            f"argument, or {_PASS_GRID}"
        )
    if reshape == "tokens" or (is_sequence and input_size is not None and len(input_size) > 1):
        if activations.dim() != 3:
            raise ValueError(f"reshape: expected tokens (N, L, C), got {where}; {_PASS}")
        _check_order(around, where)
        found = _token_grid(activations.shape[1], around, input_size, where, certain=reshape == "tokens")
        return partial(tokens_to_grid, grid=found.grid, prefix=found.prefix)
    if _is_channels_last(activations, around, input_size, where):
        return channels_last_to_first
    return _unchanged


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


def _for_input(input_size: Sides | None) -> str:
    if input_size is None:
        return "for an input of unknown size"
    return (
        f"for an input of {' x '.join(map(str, input_size))}" if input_size else "for an input without sides"
    )


class _Checked:
    """A user's function whose results are checked: one shape for activations and gradients."""

    def __init__(self, reshape: Callable[[Tensor], Tensor], samples: int | None) -> None:
        self.reshape = reshape
        self.samples = samples
        self.shape: tuple[int, ...] | None = None

    def __call__(self, tensor: Tensor) -> Tensor:
        result: Any = self.reshape(tensor)
        if not isinstance(result, Tensor):
            raise TypeError(f"reshape: expected a tensor from the function, got {type(result).__name__}")
        shape = tuple(result.shape)
        if len(shape) < 2 or self.samples not in (None, shape[0]):
            rows = "N" if self.samples is None else self.samples
            raise ValueError(
                f"reshape: expected ({rows}, C, *spatial) from the function, got {shape} for {tuple(tensor.shape)}; keep the "
                f"samples first, then the channels"
            )
        if self.shape is not None and shape != self.shape:
            raise ValueError(
                f"reshape: expected one shape for activations and gradients, got {self.shape} and {shape}; select and rearrange "
                f"by the tensor's shape alone"
            )
        self.shape = shape
        return result


def enclosing(forward_func: Callable[..., Any], layer: nn.Module) -> Iterator[nn.Module]:
    """Yield the layer and the modules around it, from the inside out; the layer alone if the model does not hold it."""
    root = forward_func if isinstance(forward_func, nn.Module) else getattr(forward_func, "__self__", None)
    path = module_names(root).get(layer, "") if isinstance(root, nn.Module) else ""
    yield layer
    names = path.split(".") if path else []
    for depth in range(len(names) - 1, -1, -1):
        yield root.get_submodule(".".join(names[:depth]))  # type: ignore[union-attr]


def _token_grid(
    length: int, around: list[nn.Module], input_size: Sides | None, where: str, *, certain: bool
) -> TokenGrid:
    """Return how the tokens lie: the model's first convolution makes the patches, and later stages halve their number per side.

    Args:
        length: how many tokens.
        around: the layer and the modules around it.
        input_size: of the model's input.
        where: what was found where, for the error.
        certain: the activations are known to be tokens.
    """
    if not input_size:
        raise ValueError(f"reshape: expected an input with sides, got {where}; {_PASS_GRID}")
    has_patches = False
    for module in reversed(around):  # a model of several encoders has the right convolution further in
        patches = _patch_embedding(module, len(input_size))
        found = [] if patches is None else _grids(length, input_size, patches, _prefix_tokens(module))
        if len(found) == 1:
            return found[0]
        has_patches = has_patches or patches is not None
    if has_patches:
        raise ValueError(
            f"reshape: expected a grid of the model's patches that explains {length} tokens, got {where}; {_PASS_GRID}, or "
            f"choose a layer that has all the patches"
        )
    try:
        # If nothing says that these are tokens, they may be the channels of a signal: then no prefix is assumed.
        return infer_grid(length, input_size, None if certain or not _is_plain_cnn(around) else 0)
    except ValueError as error:
        raise ValueError(f"reshape: got {where}; {error}: {_PASS_GRID}") from None


def _patch_embedding(module: nn.Module, dims: int) -> _ConvNd | None:
    """Return a model's first convolution, if it has as many sides as the input."""
    first = next((each for each in module.modules() if isinstance(each, _ConvNd)), None)
    return first if first is not None and len(first.stride) == dims else None


def _prefix_tokens(module: nn.Module) -> int | None:
    """Return how many tokens a model prepends to the patches; None if no parameter tells."""
    tokens = [value for name, value in module.named_parameters() if name.split(".")[-1] in _PREFIX_TOKENS]
    return sum(value.shape[-2] if value.dim() > 1 else 1 for value in tokens) or None


def _grids(length: int, input_size: Sides, patches: _ConvNd, prefix: int | None) -> list[TokenGrid]:
    """Return the grids that explain a number of tokens, in most cases one; of a video only the frames become smaller."""
    sides = list(zip(input_size, patches.stride, patches.kernel_size, strict=True))
    grids = {tuple((size - kernel) // stride + 1 for size, stride, kernel in sides): 0}  # without padding
    for stage in range(max(input_size).bit_length()):
        scales = [2**stage if len(sides) - axis <= 2 else 1 for axis in range(len(sides))]
        for rounded in (math.floor, math.ceil):
            steps = zip(sides, scales, strict=True)
            grids.setdefault(
                tuple(rounded(size / (stride * scale)) for (size, stride, _), scale in steps), stage
            )
    found = []
    for grid, stage in grids.items():
        rest = length - math.prod(grid)
        # An unknown prefix is assumed at the first stage only: later ones would explain nearly any number. Some models add their
        # class token late.
        allowed = [0, prefix] if prefix is not None else range(1 if stage else MAX_PREFIX + 1)
        if rest in allowed and math.prod(grid) > 1:
            found.append(TokenGrid(grid, rest))
    return found


def _is_channels_last(
    activations: Tensor, around: list[nn.Module], input_size: Sides | None, where: str
) -> bool:
    """Return True for (N, *spatial, C), False for (N, C, *spatial)."""
    layer, shape = around[0], tuple(activations.shape)
    if activations.dim() == 2 or is_channels_first(layer):
        return False
    if isinstance(layer, nn.RNNBase):
        if layer.batch_first:
            return True
        raise ValueError(
            f"reshape: expected one row per sample, got {where}, whose rows are steps, as it is not batch_first; pass a function "
            f"of the tensor"
        )
    first, last = _readings(shape, input_size)
    is_plain = _is_plain_cnn(around)
    if is_plain and not (first or last):
        first = is_downsampled(shape[2:], input_size or (), anisotropic=True)
    if not (first or last):
        raise ValueError(
            f"reshape: expected two axes or more that are the input's, made smaller, got {where}; {_PASS}"
        )
    if last:
        _check_order(around, where)
    if first and last:
        last = isinstance(layer, nn.Linear) or _is_last_norm(layer)
        if not last and not is_plain:
            raise ValueError(
                f"reshape: expected a shape that shows which axis has the channels, got {where}: either (N, C, *spatial) or "
                f"(N, *spatial, C); {_PASS}"
            )
    return last


def _readings(shape: tuple[int, ...], input_size: Sides | None) -> tuple[bool, bool]:
    """Return whether a shape may be (N, C, *spatial), and whether (N, *spatial, C)."""
    if input_size is None:
        return True, True
    for fits in (is_downsampled, has_one_stride_per_frame):
        # Networks with the channels last are padded throughout.
        first, last = fits(shape[2:], input_size), fits(shape[1:-1], input_size, padded=True)
        if first or last:
            return first, last
    return False, False


def is_channels_first(layer: nn.Module) -> bool:
    """Return True for layers whose channels are the second axis, whatever the shape."""
    return isinstance(layer, _CHANNELS_FIRST) or type(layer).__module__ == "torch.nn.modules.pooling"


def _is_plain_cnn(around: list[nn.Module]) -> bool:
    """Return True if nothing in the model wants the channels last; linear layers follow any pooling."""
    return len(around) > 1 and not any(_is_last_norm(module) for module in around[-1].modules())


def _is_last_norm(layer: nn.Module) -> bool:
    """Return True for a norm over the last axis; LayerNorm2d of timm and torchvision is one over the second."""
    return isinstance(layer, nn.LayerNorm | nn.RMSNorm) and not type(layer).__name__.endswith("2d")


def _check_order(around: list[nn.Module], where: str) -> None:
    """Raise if the tokens come window by window, which their shape does not show: in Hiera, torchvision's MaxViT and NesT."""
    for module in around[1:]:
        in_blocks = hasattr(module, "block_size") and hasattr(module, "transformer_encoder")
        if hasattr(module, "reroll") or hasattr(module, "partition_op") or in_blocks:
            raise ValueError(
                f"reshape: expected places row after row, got {where}, where they come window by window; choose a layer around "
                f"it, or pass a function of the tensor that puts them in order"
            )
