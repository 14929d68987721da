"""Import packages that only some functions need."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def load(module: str, *, purpose: str, extra: str = "compare", package: str | None = None) -> Any:
    """Import a module, or say what to install.

    Args:
        module: its dotted name.
        purpose: what needs it, for the error.
        extra: the extra of this package that installs it.
        package: what to install instead of an extra.

    Raises:
        ModuleNotFoundError: it is not installed; the message says what to install.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{purpose} needs {(error.name or module).partition('.')[0]}, which is not installed; "
            f"install {package or f'batchcam-captum[{extra}]'}",
            name=error.name,
        ) from error
