"""Models that return more than scores: dictionaries, tuples, objects with fields. Which part holds the scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

#: None, the output is the scores; a key or a field's name; a position; or a function of the output.
Picker = None | str | int | Callable[[Any], Tensor]


def check_picker(picker: Picker) -> None:
    """Check the type of a picker, before there is an output.

    Raises:
        TypeError: the type is none of those of :data:`Picker`.
    """
    if isinstance(picker, bool) or not (picker is None or isinstance(picker, str | int) or callable(picker)):
        raise TypeError(
            f"output: expected None, a name, a position or a function, got {type(picker).__name__}"
        )


def pick_output(output: Any, picker: Picker = None) -> Tensor:
    """Find the scores in what the model returned.

    Works for dictionaries (torchvision's segmentation models return ``{"out": …}``), tuples and named tuples (Inception in train
    mode), dataclasses, and the outputs of Hugging Face's models. A name leaves a tensor as it is: Inception in eval mode returns
    the scores themselves.

    Args:
        output: what the model returned.
        picker: None, if that is the scores; a key or a field's name, such as ``"logits"``; a position; or a function of the
            output that returns the scores.

    Returns:
        The scores, with their graph.

    Raises:
        TypeError: what is found is no tensor, or a picker of a wrong type.
        ValueError: there is no such part.

    Example:
        >>> import torch
        >>> output = {"out": torch.rand(2, 21, 4, 4), "aux": torch.rand(2, 21, 4, 4)}
        >>> pick_output(output, "out").shape
        torch.Size([2, 21, 4, 4])
    """
    check_picker(picker)
    if isinstance(picker, str):
        found = _by_name(output, picker)
    elif isinstance(picker, int):
        found = _by_position(output, picker)
    else:
        found = output if picker is None else picker(output)
    if isinstance(found, Tensor):
        return found
    if picker is None:
        raise TypeError(
            f"forward_func: expected a tensor of scores, got {_kind(output)}; wrap the model in a function that returns the "
            f"scores alone{_suggestion(output)}"
        )
    which = f"output={picker!r}" if isinstance(picker, str | int) else "output"
    raise TypeError(f"{which}: expected a tensor of scores, got {_kind(found)}; {_described(output)}")


def _by_name(output: Any, name: str) -> Any:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping) and name in output:
        return output[name]
    # A mapping's methods, such as keys(), are none of its parts.
    if not hasattr(output, name) or (isinstance(output, Mapping) and callable(getattr(output, name))):
        raise ValueError(f"output: expected the name of a part, got {name!r}; {_described(output)}")
    return getattr(output, name)


def _by_position(output: Any, position: int) -> Any:
    if isinstance(output, Tensor):
        raise ValueError(
            f"output: expected a model that returns several things, got position {position} and a tensor "
            f"{tuple(output.shape)}; leave it out"
        )
    try:
        return output[position]
    except (IndexError, KeyError, TypeError):
        raise ValueError(f"output: expected a position, got {position}; {_described(output)}") from None


def _suggestion(output: Any) -> str:
    tensors = [key for key, value in _parts(output) if isinstance(value, Tensor)]
    if not tensors:
        return ""
    best = next((name for name in ("logits", "scores", "out") if name in tensors), tensors[0])
    return f", or say where they are, as in output={best!r}: {_described(output)}"


def _described(output: Any) -> str:
    """Return the parts of an output in words, with the shapes of tensors."""
    parts = _parts(output)
    if not parts:
        return f"the model returned {_kind(output)}"
    named = [f"{key!r} {_kind(value)}" for key, value in parts[:12]]
    more = f" and {len(parts) - 12} more" if len(parts) > 12 else ""
    return f"the model returned {type(output).__name__} with {', '.join(named)}{more}"


def _parts(output: Any) -> list[tuple[Any, Any]]:
    """Return the parts of an output by key, field or position."""
    if isinstance(output, Tensor):
        return []
    if isinstance(output, Mapping):
        return list(output.items())
    if isinstance(output, list | tuple):
        return list(zip(getattr(output, "_fields", range(len(output))), output, strict=True))
    if is_dataclass(output):
        return [(field.name, getattr(output, field.name)) for field in fields(output)]
    return list(vars(output).items()) if hasattr(output, "__dict__") else []


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    return "None" if value is None else type(value).__name__
