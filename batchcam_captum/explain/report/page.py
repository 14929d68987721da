"""The report as a whole."""

from __future__ import annotations

import os
from pathlib import Path

from ..store import Store


def write_report(
    store: Store | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    progress: bool = False,
) -> Path:
    """Write a store as one HTML file that opens offline, and return its path.

    Args:
        store: what :func:`.open_store` gives, or the path of one.
        path: the file to write. Its folder must exist; a file that is there is replaced.
        title: the page's heading. None: from the store's name.
        progress: show a bar.
    """
    raise NotImplementedError
