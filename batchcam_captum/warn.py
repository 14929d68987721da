"""Warnings that point at the user's line."""

from __future__ import annotations

import sys
import warnings

# Between the user's line and here there may be torch's module calls and decorators, and Captum's NoiseTunnel.
_INSIDE = (__name__.partition(".")[0], "contextlib", "torch", "captum")


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
