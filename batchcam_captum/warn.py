"""Warnings that point to the user's line."""

from __future__ import annotations

import sys
import warnings

# Frames of these packages may lie in between: torch's module calls and decorators, Captum's NoiseTunnel.
_INSIDE = (__name__.partition(".")[0], "contextlib", "torch", "captum")


def warn_user(message: str) -> None:
    """Issue a ``UserWarning`` at the line of the user's code that led here.

    Args:
        message: its text.
    """
    level = 1
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _INSIDE:
        frame = frame.f_back
        level += 1
    warnings.warn(message, UserWarning, stacklevel=level)
