"""Warnings that point at the user's line."""

from __future__ import annotations

import sys
import warnings

_INSIDE = (__name__.partition(".")[0], "contextlib")


def warn_user(message: str) -> None:
    """Warn with the place in the user's code that led here, however many frames of this package lie between.

    Args:
        message: the text of a ``UserWarning``.
    """
    level = 1
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _INSIDE:
        frame = frame.f_back
        level += 1
    warnings.warn(message, UserWarning, stacklevel=level)
