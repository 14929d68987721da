"""Commands that end in order when they are told to."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a scheduler sends it before it kills; all that takes care of an interrupt takes care of it, too."""

    word = "terminated"
    status = 128 + signal.SIGTERM  #: as a shell tells it


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Let SIGTERM raise :class:`Terminated` in the main thread, so that the body cleans up and what ran beside it ends.

    Where SIGTERM has another handler already, or is ignored, and in other threads, nothing is changed. An error of the body that
    comes after it is taken for its consequence, as processes that read images get the same signal and end.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    came = False

    def stop(*_: object) -> None:
        nonlocal came
        if not came:  # a second one does not disturb the cleaning up
            came = True
            raise Terminated

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except Exception as error:
        if came:
            raise Terminated from error
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
