"""Settings as plain values, and how two differ."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

#: Characters of a long value, and of a hash, that are shown.
_SHOWN, _OF_HASHES = 57, 12
_HASH = re.compile(r"[0-9a-f]{40,}")
#: What settings are called that do not say it themselves.
_IN_WORDS = {
    "names": "ids or paths of the samples",
    "labels": "labels of the samples",
    "example.position": "where the image is that the others are told by",
    "example.sha256": "that image, as the model is given it",
    "model.sha256": "weights of the model",
}


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back, so that what is read can be compared with what would be written.

    Raises:
        TypeError: something that JSON does not know, such as a path.
        ValueError: NaN, which is never equal to itself, or infinity.
    """
    _check(dict(values), "")
    return dict(json.loads(json.dumps(dict(values), allow_nan=False)))


def _check(value: Any, name: str) -> None:
    """Say which value it is, which ``json`` does not."""
    if isinstance(value, dict):
        for key, each in value.items():
            if not isinstance(key, str | int):
                raise TypeError(
                    f"{name or 'settings'}: expected text as keys, got {key!r}; pass {str(key)!r}"
                )
            _check(each, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for place, each in enumerate(value):
            _check(each, f"{name}[{place}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(
            f"{name}: expected a number that equals itself when it is read again, got {value}; pass None or {str(value)!r}"
        )
    elif not isinstance(value, str | int | float | None):
        raise TypeError(
            f"{name}: expected text, a number, True, False, None, or lists and dicts of these, got {type(value).__name__}; pass "
            f"{str(value)!r} or the like"
        )


def differences(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Settings that differ, each as ``name = A there, B here``; those inside of others with a dotted name."""
    found: list[str] = []
    for key in sorted(there.keys() | here.keys()):
        name, one, other = prefix + key, there.get(key), here.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            found += differences(one, other, f"{name}.")
        elif one != other:
            short, shorter = _shortened(one, other)
            words = f" ({_IN_WORDS[name]})" if name in _IN_WORDS else ""
            found.append(f"{name} = {short} there, {shorter} here{words}")
    return found


def _shortened(one: Any, other: Any) -> tuple[str, str]:
    """Both in so many characters that one sees where they differ."""
    first, second = repr(one), repr(other)
    pairs = zip(first, second, strict=False)
    same = next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
    hashes = all(
        value is None or (isinstance(value, str) and _HASH.fullmatch(value)) for value in (one, other)
    )
    shown = _OF_HASHES if hashes else _SHOWN
    start = 0 if same < shown * 2 // 3 else same - shown // 3
    return _cut(first, start, shown), _cut(second, start, shown)


def _cut(text: str, start: int, shown: int) -> str:
    """Text that is little longer than what would be shown stays whole."""
    if len(text) <= shown + 3:
        return text
    return ("…" if start else "") + text[start : start + shown] + ("…" if start + shown < len(text) else "")
