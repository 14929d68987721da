"""Packages that only some of the functions here need."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def load(module: str, *, extra: str = "compare", purpose: str) -> Any:
    """Import a module that the core does without.

    Args:
        module: its dotted name.
        extra: of this package's installation that brings it.
        purpose: what needs it, for the error.

    Raises:
        ModuleNotFoundError: it is not installed; names the extra.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{purpose} needs {error.name or module}, which is not installed; install batchcam-captum[{extra}]",
            name=error.name,
        ) from error
