"""Load weights from a file into a model: all of them, or none."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..optional import load
from ..warn import warn_user

#: The keys under which training programs save the weights; averaged ones last.
_KEYS = (
    *("state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params"),
    *("state_dict_ema", "model_ema", "ema"),
)
_LISTED = 10  # names in an error


class MisfitError(ValueError):
    """The weights have other names, shapes or types than the model's.

    Attributes:
        classes: K of the weights if only the head differs from the model's; otherwise None.
    """

    def __init__(self, message: str, classes: int | None = None) -> None:
        super().__init__(message)
        self.classes = classes


def load_checkpoint(model: nn.Module, path: str | Path) -> None:
    """Load a file of weights into a model.

    The file holds a state dict, or a dict with one under a usual key (``state_dict``, ``model``, ...; averaged weights, such as
    ``ema``, are tried last), as ``torch.save`` or safetensors wrote it. A prefix that all names share and the model's do not, as
    ``module.`` or ``model.``, is taken off, with a warning. Other pickled objects than tensors and plain containers are
    never loaded, because they may run code.

    Args:
        model: it stays as it is unless all weights fit.
        path: the file; ``.safetensors`` is read by that package.

    Raises:
        ValueError: the file is no checkpoint, or does not fit the model, with the first ten names that are missing, unexpected
            or of another shape or type.
        OSError: the file is missing or cannot be opened.
        ModuleNotFoundError: safetensors is not installed.
    """
    path = Path(path)
    content = read_checkpoint(path)
    expected = model.state_dict()
    misfits = []
    for prefix, state in _candidates(content):
        problems = _problems(expected, state)
        if not problems:
            if prefix:
                warn_user(f"checkpoint: took the prefix {prefix!r} off the names in {path}")
            unsaved = {name: expected[name] for name in expected.keys() - state.keys()}
            model.load_state_dict({**unsaved, **state})
            return
        misfits.append((problems, state))
    if not misfits:
        keys = f" with the keys {_first(list(map(str, content)))}" if isinstance(content, dict) else ""
        raise ValueError(
            f"checkpoint: expected a state dict in {path}, alone or under {_first(list(_KEYS[:3]))}, ..., got "
            f"{type(content).__name__}{keys}; save model.state_dict()"
        )
    problems, state = min(misfits, key=lambda misfit: len(misfit[0]))
    classes = _classes(expected, state)
    hint = f"; a model of {classes} classes would fit" if classes else ""
    raise MisfitError(
        f"checkpoint: {path} does not fit {type(model).__name__}: {_first(problems)}{hint}; nothing was loaded",
        classes,
    )


def read_checkpoint(path: Path) -> Any:
    """Return what a file of weights contains: tensors in plain containers.

    Raises:
        ValueError: the file is damaged, something else, or contains other objects.
        OSError: the file is missing or cannot be opened.
        ModuleNotFoundError: safetensors is not installed.
    """
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise OSError(
            f"checkpoint: expected a file that can be read, got {path} ({error.strerror or error})"
        ) from error
    if empty:
        raise ValueError(f"checkpoint: expected a file of weights, got {path}, which is empty")
    try:
        if path.suffix == ".safetensors":
            return load("safetensors.torch", purpose=f"checkpoint: {path}", package="safetensors").load_file(
                path
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what is refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # a damaged file raises anything: KeyError, EOFError, RuntimeError, ...
        refused = re.search(r"GLOBAL (\S+) was not an allowed", str(error))
        if refused or "TorchScript" in str(error):
            kind = refused[1] if refused else "a TorchScript archive"
            raise ValueError(
                f"checkpoint: expected only tensors in {path}, got {kind}; pickled objects may run code and are not loaded: save "
                "model.state_dict() alone"
            ) from error
        raise ValueError(
            f"checkpoint: expected a file of torch.save or safetensors, got {path}, which is damaged or something else "
            f"({type(error).__name__})"
        ) from error


def _candidates(content: object) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what may be the state dict, the likeliest first, and the prefix that was taken off its names."""
    for state in _state_dicts(content):
        yield "", state
        # torch.compile renames modules, also inside the model; AveragedModel counts beside its module.
        state = {
            name.replace("_orig_mod.", ""): value for name, value in state.items() if name != "n_averaged"
        }
        prefix = ""
        while state:
            yield prefix, state
            heads = {name.partition(".")[0] for name in state}
            if len(heads) > 1 or any("." not in name for name in state):
                break
            head = heads.pop() + "."
            prefix += head
            state = {name.removeprefix(head): value for name, value in state.items()}


def _state_dicts(content: object, depth: int = 0) -> Iterator[dict[str, Any]]:
    if not isinstance(content, Mapping):
        return
    if depth < 3:
        for key in _KEYS:
            yield from _state_dicts(content.get(key), depth + 1)
    if any(isinstance(value, Tensor) for value in content.values()):
        yield {str(name): value for name, value in content.items()}


def _problems(expected: Mapping[str, Any], state: Mapping[str, Any]) -> list[str]:
    """Return how a state dict differs from what a model expects."""
    # PyTorch before 0.4.1 did not save how many batches a BatchNorm has seen, and no output depends on it.
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    others = [
        f"{name} expected {_describe(value)}, got {_describe(state[name])}"
        for name, value in expected.items()
        if name in state
        and isinstance(value, Tensor)
        and not is_lazy(value)
        and not _fits(value, state[name])
    ]
    unexpected = [name for name in state if name not in expected]
    return [*(f"{name} missing" for name in missing), *(f"{name} unexpected" for name in unexpected), *others]


def _classes(expected: Mapping[str, Any], state: Mapping[str, Any]) -> int | None:
    """Return K of the weights, if nothing but the first dimension of one layer's weight and bias differs."""
    if expected.keys() != state.keys():
        return None
    pairs = [(old, state[name]) for name, old in expected.items() if not _fits(old, state[name])]
    heads = [
        len(new)
        for old, new in pairs
        if isinstance(new, Tensor) and old.dim() and old.shape[1:] == new.shape[1:]
    ]
    return heads[0] if 0 < len(heads) == len(pairs) <= 2 and len(set(heads)) == 1 else None


def _fits(expected: Tensor, given: object) -> bool:
    """Return True if ``expected.copy_(given)`` works and keeps the values."""
    return (
        isinstance(given, Tensor)
        and given.shape == expected.shape
        and given.layout == expected.layout
        and given.device.type != "meta"
        and given.is_quantized == expected.is_quantized
        and torch.can_cast(given.dtype, expected.dtype)
    )


def _describe(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    kind = "" if value.layout == torch.strided else f" {value.layout}"
    place = " on meta" if value.device.type == "meta" else ""
    return f"{tuple(value.shape)} {value.dtype}{kind}{place}".replace("torch.", "")


def _first(names: list[str]) -> str:
    more = f", … and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
