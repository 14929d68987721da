"""Kinds of arguments that commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def several(kind: Callable[[str], T]) -> Callable[[str], list[T]]:
    """A ``type=`` that takes values with commas between; with ``nargs="+"`` spaces separate them too, see :func:`joined`."""

    def values(text: str) -> list[T]:
        try:
            return [kind(part.strip()) for part in text.split(",") if part.strip()]
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return values


def joined(lists: Iterable[list[T]] | None) -> list[T] | None:
    """The values of an option of :func:`several` as one list; None where it was not given."""
    return None if lists is None else [value for values in lists for value in values]
