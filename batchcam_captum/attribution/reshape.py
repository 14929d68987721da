"""``reshape=``: from what a layer returns to (N, C, *spatial)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

from torch import Tensor, nn

from ..functional.layout import (
    TokenGrid,
    channels_last_to_first,
    has_one_stride_per_frame,
    infer_grid,
    is_downsampled,
    tokens_to_grid,
)
from .token_models import enclosing, known_grids, token_model

ReshapeKind = Literal["auto", "tokens", "channels_last"]
#: None leaves the activations as they are; see :func:`find_reshape`.
Reshape = None | ReshapeKind | Callable[[Tensor], Tensor]

_Layout = Literal["first", "last"]
# The remedies.
_PASS = (
    'pass reshape=None where it is (N, C, *spatial), reshape="channels_last" where it is (N, *spatial, C), or a function of the '
    "tensor"
)
_PASS_GRID = "pass reshape=lambda tokens: functional.tokens_to_grid(tokens, grid, prefix)"


def check_reshape(reshape: object) -> None:
    """Check that the argument is one that :func:`find_reshape` takes.

    Raises:
        ValueError: an unknown name.
        TypeError: neither None, a name nor a callable.
    """
    if isinstance(reshape, str):
        if reshape not in get_args(ReshapeKind):
            raise ValueError(
                f"reshape: expected 'auto', 'tokens', 'channels_last', a function or None, got {reshape!r}"
            )
    elif reshape is not None and not callable(reshape):
        raise TypeError(
            f"reshape: expected 'auto', 'tokens', 'channels_last', a function or None, got {type(reshape).__name__}"
        )


def find_reshape(
    reshape: Reshape,
    activations: Tensor,
    *,
    forward_func: Callable[..., Any],
    layer: nn.Module,
    input_size: tuple[int, ...] | None,
    samples: int | None,
) -> Callable[[Tensor], Tensor]:
    """Find out how activations, and their gradients alike, come to (N, C, *spatial).

    Args:
        reshape: None, as they are. ``"tokens"``: (N, L, C), a transformer's tokens, row after row; the grid and the prefix tokens
            (class, distillation, registers), which are left out, come from what the model says (timm, torchvision, Hugging Face),
            otherwise from the input's size. ``"channels_last"``: (N, *spatial, C). ``"auto"`` tells by the input's size which of
            the three it is. Or a function of the tensor, which selects and rearranges.
        activations: what the layer returned.
        forward_func: the model.
        layer: the layer.
        input_size: the sides of the model's input, without samples and channels; None where there are none.
        samples: how many samples the input has; None where that is not known.

    Returns:
        A function of a tensor of the activations' shape. Where ``reshape`` is a function, it raises a ``ValueError`` for a result
        that is not (N, C, *spatial), or not of one shape for activations and gradients; a ``TypeError`` for no tensor.

    Raises:
        ValueError: an unknown name, activations whose layout cannot be told for sure, or rows that are not the samples.
        TypeError: a ``reshape`` of another kind.
    """
    check_reshape(reshape)
    if reshape is None:
        return _unchanged
    if callable(reshape):
        return _Checked(reshape, samples)
    if samples is not None and activations.shape[:1] != (samples,):
        raise ValueError(
            f"reshape: expected one row a sample, ({samples}, …), got {_described(activations, layer)}, as from inside "
            f"an attention over windows; choose the block around this layer, or its MLP, or pass a function of the tensor"
        )
    if reshape == "channels_last":
        return channels_last_to_first
    if reshape == "tokens" or (
        activations.dim() == 3
        and input_size is not None
        and len(input_size) > 1
        and not is_channels_first(layer)
    ):
        found = _find_grid(activations, forward_func, layer, input_size, asked_for=reshape == "tokens")
        return partial(tokens_to_grid, grid=found.grid, prefix=found.prefix)
    layout = _find_layout(activations, forward_func, layer, input_size)
    return _unchanged if layout == "first" else channels_last_to_first


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


class _Checked:
    """A function of the user's, whose results are checked: one shape for activations and gradients."""

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


def _described(activations: Tensor, layer: nn.Module) -> str:
    return f"{tuple(activations.shape)} from {type(layer).__name__}"


def _for_input(input_size: tuple[int, ...] | None) -> str:
    return (
        f"for an input of {' x '.join(map(str, input_size))}" if input_size else "for an input without sides"
    )


def _find_grid(
    activations: Tensor,
    forward_func: Callable[..., Any],
    layer: nn.Module,
    input_size: tuple[int, ...] | None,
    *,
    asked_for: bool,
) -> TokenGrid:
    where = f"{_described(activations, layer)} {_for_input(input_size)}"
    if activations.dim() != 3:
        raise ValueError(f"reshape: expected tokens (N, L, C), got {where}; {_PASS}")
    _check_order(list(enclosing(forward_func, layer)), where)
    length = activations.shape[1]
    model = token_model(forward_func, layer)
    if model is None:
        if not input_size:
            raise ValueError(
                f"reshape: expected an input with sides, or a model that says how its patches lie, got {where}; {_PASS_GRID}; or "
                f'for a sequence reshape="channels_last"'
            )
        # Where nothing in the model has its channels last, and nobody said that these are tokens, they may as well be the
        # channels of a signal, (N, C, L): that some of them were no patches would be one guess too many.
        unlikely = not asked_for and _is_channels_first_model(forward_func, layer)
        try:
            return infer_grid(length, input_size, 0 if unlikely else None)
        except ValueError as error:
            raise ValueError(f"reshape: got {where}; {error}: {_PASS_GRID}") from None
    found = known_grids(model, length, input_size)
    if len(found) == 1:
        return found[0]
    what = f"either {'; or '.join(map(str, found))}" if found else "none"
    raise ValueError(
        f"reshape: expected one grid that explains {length} tokens, got {what}: {where}, and {model}; "
        f"{_PASS_GRID}; or choose a layer that has all the patches"
    )


def _find_layout(
    activations: Tensor,
    forward_func: Callable[..., Any],
    layer: nn.Module,
    input_size: tuple[int, ...] | None,
) -> _Layout:
    """Whether the channels are the second axis or the last."""
    if activations.dim() == 2 or is_channels_first(layer):
        return "first"
    where = f"{_described(activations, layer)} {_for_input(input_size)}"
    shape = tuple(activations.shape)
    if isinstance(layer, nn.RNNBase) and activations.dim() == 3:
        if layer.batch_first:
            return "last"
        raise ValueError(
            f"reshape: expected one row a sample, got {where}, whose rows are steps, as it is not batch_first; pass a "
            f"function of the tensor"
        )
    readings = _readings(shape, input_size)
    channels_first_model = _is_channels_first_model(forward_func, layer)
    if (
        not readings
        and channels_first_model
        and is_downsampled(shape[2:], input_size or (), anisotropic=True)
    ):
        return "first"
    if not readings:
        raise ValueError(
            f"reshape: expected two axes or more that are the input's, made smaller, got {where}; {_PASS}"
        )
    around = list(enclosing(forward_func, layer))
    if readings != ["first"]:
        _check_order(around, where)
    if len(readings) == 1:
        return readings[0]
    if _channels_last(layer) or any("NHWC" in str(getattr(module, "output_fmt", "")) for module in around):
        return "last"
    if channels_first_model:
        return "first"
    raise ValueError(
        f"reshape: expected a shape that shows which axis has the channels, got {where}: either (N, C, *spatial) or "
        f"(N, *spatial, C); {_PASS}"
    )


def is_channels_first(layer: nn.Module) -> bool:
    """Layers whose channels are the second axis whatever the shape."""
    kinds = (
        nn.modules.conv._ConvNd,
        nn.modules.batchnorm._NormBase,
        nn.GroupNorm,
    )
    return isinstance(layer, kinds) or type(layer).__module__ == "torch.nn.modules.pooling"


def _readings(shape: tuple[int, ...], input_size: tuple[int, ...] | None) -> list[_Layout]:
    """What the shape may be: by one stride along all sides, and if that explains nothing, with one of its own along time."""
    if input_size is None:
        return ["first", "last"]
    for fits in (is_downsampled, has_one_stride_per_frame):
        # Networks with the channels last are padded throughout.
        first, last = fits(shape[2:], input_size), fits(shape[1:-1], input_size, padded=True)
        if first or last:
            return [*(["first"] if first else []), *(["last"] if last else [])]  # type: ignore[list-item]
    return []


def _is_channels_first_model(forward_func: Callable[..., Any], layer: nn.Module) -> bool:
    """Nobody puts the channels last without a norm that wants them there; linear layers follow any pooling."""
    around = list(enclosing(forward_func, layer))
    return len(around) > 1 and not any(_is_last_norm(module) for module in around[-1].modules())


def _check_order(around: list[nn.Module], where: str) -> None:
    """Raise where the modules around a layer keep their tokens window by window, which the shape does not always show.

    Hiera has them in the order of its mask units, torchvision's MaxViT and NesT in windows, all with one row a sample.
    """
    inside_windows = any(
        hasattr(module, "reroll")
        or hasattr(module, "partition_op")
        or (hasattr(module, "block_size") and hasattr(module, "transformer_encoder"))
        for module in around[1:]
    )
    if inside_windows:
        raise ValueError(
            f"reshape: expected places row after row, got {where}, where they come window by window; choose a layer around it, "
            f"or pass a function of the tensor that puts them in order"
        )


def _channels_last(layer: nn.Module) -> bool:
    """Layers whose channels are the last axis whatever the shape."""
    return isinstance(layer, nn.Linear) or _is_last_norm(layer)


def _is_last_norm(layer: nn.Module) -> bool:
    """A norm over the last axis; timm's and torchvision's LayerNorm2d is one over the second."""
    return isinstance(layer, nn.LayerNorm | nn.RMSNorm) and not type(layer).__name__.endswith("2d")
