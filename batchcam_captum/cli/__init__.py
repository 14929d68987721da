"""The command line: ``batchcam``, also ``python -m batchcam_captum``."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: default: those of the process.

    Returns:
        The exit status: 0; 1 for an error that the printed line explains; 2 for wrong use; 130 after an interrupt; 143 after
        SIGTERM.
    """
    try:
        from .app import app
    except ModuleNotFoundError as error:
        if error.name != "typer":
            raise
        print(
            "batchcam: the commands need typer, which is not installed; pip install 'batchcam-captum[demo]'",
            file=sys.stderr,
        )
        return 1
    try:
        app(args=arguments, prog_name="batchcam")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0
