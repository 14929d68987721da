"""What a comparison is at: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: After so many seconds without a line of progress the next step has one, whatever it is.
_SILENT = 10.0


@contextmanager
def steps_shown(steps: int, shown: bool) -> Iterator[Callable[[str], None]]:
    """A progress bar, or lines where it could not move; what it gives is called with what comes next."""
    from tqdm.auto import tqdm

    lines = shown and not sys.stderr.isatty()
    last = time.monotonic()
    with tqdm(total=steps, desc="compare", disable=not shown or lines, leave=False) as bar:

        def tick(text: str) -> None:
            nonlocal last
            bar.set_postfix_str(text, refresh=False)
            bar.update()
            now = time.monotonic()
            if lines and (text.startswith(("time", "memory")) or now - last > _SILENT):
                print(f"compare: {text}", file=sys.stderr, flush=True)
                last = now

        yield tick
