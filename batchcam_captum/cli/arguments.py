"""Kinds of arguments that commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def several(kind: Callable[[str], T]) -> Callable[[str], list[T]]:
    """A ``type=`` that takes values with commas between, for ``action="extend"``.

    Not with spaces: an option that goes on over them takes the images that follow it, too.
    """

    def values(text: str) -> list[T]:
        try:
            return [kind(part.strip()) for part in text.split(",") if part.strip()]
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{error}; put commas between values") from None

    return values
