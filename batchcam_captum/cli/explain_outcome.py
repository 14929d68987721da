"""What ``batchcam explain`` tells of a store."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from ..explain import Status, Store, open_store

_LISTED = 10


def done(path: Path, *, retry_damaged: bool = False) -> int:
    """How many samples of the store that may be there need not be computed any more."""
    try:
        store = open_store(path)
    except (OSError, ValueError):
        return 0
    status, chunk = store.status[:], store.status.chunks[0]
    chunks = (status[start : start + chunk] for start in range(0, len(status), chunk))
    again = (Status.MISSING, Status.DAMAGED) if retry_damaged else (Status.MISSING,)
    return sum(len(each) for each in chunks if not any((each == status).any() for status in again))


def tell(store: Store, output: Path, before: int, seconds: float) -> None:
    """Say what was done, what could not be, and what to do next."""
    store = open_store(store.path)  # other ranks may have finished it after this one
    status = store.status[:]
    written, damaged, missing = (
        int((status == each).sum()) for each in (Status.WRITTEN, Status.DAMAGED, Status.MISSING)
    )
    now = written + damaged - before
    pace = f", {now / seconds:,.1f} images a second" if now > 0 else ""
    earlier = f", {before:,} of them earlier" if before else ""
    print(f"Explained {written:,} of {len(store):,} images{earlier}{pace}")
    if damaged:
        print(f"Could not be read: {damaged:,}")
        problems, paths, ids = store.problems[:], store.paths[:], store.ids[:]
        places = (status == Status.DAMAGED).nonzero()[0]
        for place in places[:_LISTED]:
            print(f"  {_line(paths[place] or ids[place])}: {_line(problems[place])}")
        if damaged > _LISTED:
            print(f"  and {damaged - _LISTED:,} more")
        print("Once they are mended: the same command with --retry-damaged")
    if missing:
        print(f"Not there yet: {missing:,}; give the same command again to go on")
    where = _line(output)
    print(f"\nWritten to {where}\nTo look at it: batchcam report {shlex.quote(where)}")


def _line(text: object) -> str:
    """As one line that can be printed."""
    line = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in str(text))
    encoding = sys.stdout.encoding or "utf-8"
    return line.encode(encoding, "backslashreplace").decode(encoding)
