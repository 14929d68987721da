"""The commands, and how each of them ends. To show the help quickly, a command imports what it works with when it runs."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .. import __version__
from .compare import compare
from .demo import demo
from .diagnose import diagnose
from .explain import explain
from .options import remark
from .report import report

#: The extra of the installation that brings what a command needs.
_EXTRAS = {
    "compare": "compare",
    "demo": "demo",
    "diagnose": "demo",
    "explain": "explain",
    "report": "explain",
}


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a scheduler sends it before it kills."""


class _Commands(TyperGroup):
    """Turns errors into one line and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that the arguments name."""
        try:
            with sigterm_raises():
                return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            word, status = ("terminated", 143) if isinstance(stop, Terminated) else ("interrupted", 130)
            raise _failure("; ".join([word, *map(str, stop.args)]), status) from stop
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("batchcam_captum"):
                raise
            if not str(error).startswith("No module named"):  # it says what to do
                raise _failure(error) from error
            extra = _EXTRAS[ctx.invoked_subcommand]
            raise _failure(
                f"{error.name} is not installed; pip install 'batchcam-captum[{extra}]'"
            ) from error
        except OSError as error:
            if error.filename is None or error.strerror is None:
                raise _failure(error) from error
            raise _failure(f"{error.filename}: {error.strerror}") from error
        except ValueError as error:
            raise _failure(error) from error


def _failure(reason: object, status: int = 1) -> typer.Exit:
    remark(" ".join(str(reason).split()))
    return typer.Exit(status)


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Let SIGTERM raise :class:`Terminated` in the main thread, so that the body can clean up.

    A handler that somebody else has set stays. An error that follows the signal is taken for its consequence: the processes that
    read images get the same signal and end.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    received = False

    def stop(*_: object) -> None:
        nonlocal received
        if not received:  # a second signal does not disturb the cleanup
            received = True
            raise Terminated

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except Exception as error:
        if received:
            raise Terminated(*error.args) from error
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"batchcam-captum {__version__}")
        raise typer.Exit


app = typer.Typer(cls=_Commands, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.callback()
def batchcam(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Differentiable, batched Grad-CAM, and training with it."""


for command in (demo, compare, diagnose, explain, report):
    app.command()(command)
