"""Weights from a file into a model: all of them, or none."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..optional import load

#: Where training programs put the weights, in the order in which they are tried; averaged ones last.
_HOMES = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "module",
    "weights",
    "params",
    "state_dict_ema",
    "model_ema",
    "ema",
)
#: What wrappers put before the names: DataParallel and DistributedDataParallel, torch.compile, Lightning.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
_LISTED = 10


class MisfitError(ValueError):
    """Weights of other names or shapes than the model's.

    Attributes:
        classes: how many a model would have that they fit, where nothing else differs.
    """

    def __init__(self, message: str, classes: int | None = None) -> None:
        super().__init__(message)
        self.classes = classes


def load_checkpoint(model: nn.Module, path: str | Path) -> None:
    """Load a file of weights into a model.

    The file holds a ``state_dict``, by itself or under one of the usual keys (``state_dict``, ``model``, …; the averaged weights
    of ``ema`` come last), as ``torch.save`` or safetensors wrote it. The prefixes of wrappers (``module.``, ``_orig_mod.``,
    ``model.``, …) are taken off where that makes it fit. Pickled objects other than tensors and plain containers are never
    loaded, as they may run code.

    Args:
        model: it must have the names and shapes of the file. Nothing changes in it where they differ.
        path: the file; ``.safetensors`` is read with that package.

    Raises:
        ValueError: no checkpoint, or one that does not fit: missing and unexpected keys and other shapes, the first ten of each.
        OSError: the file is missing or cannot be opened.
        ModuleNotFoundError: safetensors is not installed.
    """
    path = Path(path)
    content = _read(path)
    expected = model.state_dict()
    best: _Misfit | None = None
    for state in _variants(content):
        misfit = _Misfit.of(expected, state)
        if not misfit.count:
            model.load_state_dict(
                {**{name: expected[name] for name in expected.keys() - state.keys()}, **state}
            )
            return
        if best is None or misfit.count < best.count:
            best = misfit
    if best is None:
        keys = (
            f" with the keys {_first(list(map(str, content)))}"
            if isinstance(content, Mapping) and content
            else ""
        )
        raise ValueError(
            f"checkpoint: expected a state_dict in {path}, by itself or under {_first(list(_HOMES[:3]))}, …, got "
            f"{_article(type(content).__name__)}{keys}; save model.state_dict()"
        )
    raise MisfitError(
        f"checkpoint: {path} does not fit {type(model).__name__}: {best}; nothing was loaded", best.classes()
    )


def _read(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise OSError(
            f"checkpoint: expected a file that can be read, got {path} ({error.strerror or error})"
        ) from error
    if empty:
        raise ValueError(f"checkpoint: expected a file of weights, got {path}, which is empty")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises anything: KeyError, EOFError, RuntimeError, …
        text = str(error)
        kind = re.search(r"GLOBAL (\S+) was not an allowed", text)
        if kind or "TorchScript" in text:
            what = kind[1] if kind else "a TorchScript archive"
            raise ValueError(
                f"checkpoint: expected tensors alone in {path}, got {what} too; pickled objects may run code and are not "
                f"loaded (weights_only=True): save model.state_dict() by itself"
            ) from error
        reason = (
            "not a pickle of weights"
            if isinstance(error, UnpicklingError)
            else f"{type(error).__name__}: {text}"
        )
        raise ValueError(
            f"checkpoint: expected a file that torch.save wrote, got {path}, which is damaged or something else "
            f"({reason.partition('. ')[0]})"
        ) from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    module = load("safetensors.torch", purpose=f"checkpoint: {path}", package="safetensors")
    try:
        return module.load_file(path)  # type: ignore[no-any-return]
    except Exception as error:  # SafetensorError is no OSError
        raise ValueError(
            f"checkpoint: expected a file of safetensors, got {path}, which is damaged or something else ({error})"
        ) from error


def _variants(content: object) -> Iterator[dict[str, Any]]:
    """What may be the ``state_dict``, the likelier first; each with fewer and fewer prefixes."""
    for state in _state_dicts(content):
        waiting, seen = [state], []
        while waiting:
            now = waiting.pop(0)
            if now.keys() in seen:
                continue
            seen.append(now.keys())
            yield now
            if any("_orig_mod." in name for name in now):  # also inside: single blocks may have been compiled
                waiting.append({name.replace("_orig_mod.", ""): value for name, value in now.items()})
            # AveragedModel counts beside its module.
            named = {name: value for name, value in now.items() if name != "n_averaged"}
            waiting += [
                {name.removeprefix(prefix): value for name, value in named.items()}
                for prefix in _PREFIXES
                if named and all(name.startswith(prefix) for name in named)
            ]


def _state_dicts(content: object, depth: int = 0) -> Iterator[dict[str, Any]]:
    if not isinstance(content, Mapping):
        return
    if depth < 3:
        for home in _HOMES:
            yield from _state_dicts(content.get(home), depth + 1)
    if any(isinstance(value, Tensor) for value in content.values()):
        yield {str(name): value for name, value in content.items()}


@dataclass(frozen=True)
class _Misfit:
    """How a state_dict differs from what a model expects."""

    total: int
    missing: list[str]
    unexpected: list[str]
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...] | str]]

    @classmethod
    def of(cls, expected: Mapping[str, Any], state: Mapping[str, Any]) -> _Misfit:
        # PyTorch before 0.4.1 did not save how many batches a BatchNorm has seen, and nothing depends on it.
        missing = [
            name for name in expected if name not in state and not name.endswith("num_batches_tracked")
        ]
        shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...] | str]] = {}
        for name, value in expected.items():
            if name in state and isinstance(value, Tensor) and not is_lazy(value):
                other = state[name]
                if not isinstance(other, Tensor):
                    shapes[name] = (tuple(value.shape), f"a {type(other).__name__}")
                elif value.shape != other.shape:
                    shapes[name] = (tuple(value.shape), tuple(other.shape))
        return cls(len(expected), missing, [name for name in state if name not in expected], shapes)

    @property
    def count(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.shapes)

    def __str__(self) -> str:
        parts = []
        if self.missing:
            parts.append(f"missing {len(self.missing)} of {self.total} keys: {_first(self.missing)}")
        if self.unexpected:
            parts.append(f"unexpected keys, {len(self.unexpected)}: {_first(self.unexpected)}")
        if self.shapes:
            listed = [f"{name} expected {old}, got {new}" for name, (old, new) in self.shapes.items()]
            parts.append(f"other shapes, {len(self.shapes)}: {_first(listed)}")
        classes = self.classes()
        if classes is not None:
            parts.append(f"a model of {classes} classes would fit")
        return "; ".join(parts)

    def classes(self) -> int | None:
        """The number of classes of the file, where nothing but the first dimension of one layer differs."""
        if self.missing or self.unexpected:
            return None
        pairs = list(self.shapes.values())
        if len(pairs) > 2 or any(isinstance(new, str) or not old or old[1:] != new[1:] for old, new in pairs):
            return None
        counts = {new[0] for _, new in pairs}
        count = counts.pop() if len(counts) == 1 else None
        return count if isinstance(count, int) else None


def _first(names: list[str]) -> str:
    more = f", … and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _article(kind: str) -> str:
    return f"{'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}"
