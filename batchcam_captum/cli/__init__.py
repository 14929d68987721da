"""The command line: ``batchcam``, also ``python -m batchcam_captum``.

A command is a module here with ``add(commands)``, which describes its arguments, and ``run(options)``; it is listed in
``_COMMANDS``. To show the help quickly, it imports what it works with inside of ``run``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .. import __version__
from . import compare, demo, diagnose, explain, report

_COMMANDS = (demo, compare, diagnose, explain, report)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: default: those of the process.

    Returns:
        The exit status: 0; 1 for an error that the message explains; 130 when interrupted, 143 when terminated in order.
        Arguments that are not understood end the process with 2.
    """
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except KeyboardInterrupt as interrupt:
        return _failed(str(interrupt) or "interrupted", getattr(interrupt, "status", 130))
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("batchcam_captum"):
            raise
        if not str(error).startswith("No module named"):  # it says what to do
            return _failed(error)
        return _failed(f"{error.name} is not installed; pip install 'batchcam-captum[{options.extra}]'")
    except (OSError, ValueError) as error:
        return _failed(error)
    return 0


def _failed(why: object, status: int = 1) -> int:
    print("batchcam:", " ".join(line.strip() for line in str(why).splitlines()), file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="batchcam", description="Differentiable, batched Grad-CAM, and training with it."
    )
    parser.add_argument("--version", action="version", version=f"batchcam-captum {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    for command in _COMMANDS:
        command.add(commands)
    return parser


class _Parser(argparse.ArgumentParser):
    """Takes positional arguments between the options too: ``compare resnet18 --layer layer4 cat.png``."""

    _intermixed = False

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """As argparse's; that of intermixed arguments calls this one for its two halves."""
        if self._intermixed:
            return super().parse_known_args(args, namespace)
        self._intermixed = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._intermixed = False
