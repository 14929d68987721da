"""The report as a whole."""

from __future__ import annotations

import errno
import html
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import IO, Any

from ...files import written_whole
from ..store import Store, open_store
from .content import content
from .embed import digest, json_text
from .pictures import PAGE, fit
from .samples import Plan, gather, plan

#: In this order; they share one scope.
_SCRIPTS = ("data.js", "drawing.js", "filters.js", "gallery.js", "dialog.js", "sections.js", "main.js")
#: Before the script, so that the first page of the gallery is there before the file is read to its end.
_FIRST_BLOCKS = 4
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


def write_report(
    store: Store | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    pictures: int | None = None,
    progress: bool = False,
) -> Path:
    """Write a store as one HTML file that opens offline: gallery, maps by class, confusions, metrics, settings.

    The store is read once, a chunk at a time; in memory are, besides a chunk, a few numbers a sample and at most 64 MB of maps.
    Maps are in the page as relu(C)/max in 256 steps, area-resized to at most 32×32, and at most ten a sample. Pictures are as
    large as the store's thumbnails, or smaller, so that a page of 10,000 samples stays below 60 MB whatever the thumbnails are;
    one of more samples stays below it as far as pictures of 32 pixels allow.

    Args:
        store: what :func:`.open_store` gives, or the path of one. It may be incomplete, which the page says.
        path: the file to write. Its folder must exist; a file that is there is replaced once the new one is whole.
        title: the page's heading. None: from the store's name, without .zarr.
        pictures: pixels of the longer side of the pictures at most, those of the store's thumbnails if these have fewer; the page
            may become large then, which a warning estimates. 0: no pictures. None: as above.
        progress: show a bar.

    Returns:
        The path.

    Raises:
        FileNotFoundError: there is no store.
        ValueError: it is none, one of another version, or of signals or volumes, which are not drawn; a negative ``pictures``.
        OSError: the file cannot be written, or the disk is full; what was there before is as it was.
        ModuleNotFoundError: zarr or Pillow is not installed.
    """
    if not isinstance(store, Store):
        store = open_store(store)
    if store.maps.ndim != 4:
        raise ValueError(
            f"store: expected maps with two spatial dimensions, got {store.maps.shape[1:]} a sample; read them with "
            "open_store(path).maps"
        )
    if pictures is not None and pictures < 0:
        raise ValueError(f"pictures: expected at least 0 pixels, got {pictures}")
    path = Path(path)
    title = f"Maps of {store.path.resolve().name.removesuffix('.zarr')}" if title is None else title
    with (
        written_whole(path) as temporary,
        room_for(path),
        tempfile.TemporaryFile("w+", encoding="ascii", dir=temporary.parent) as spool,
    ):
        planned = _planned(store, pictures)
        samples = gather(store, planned, spool, watched=_watched(progress))
        about = content(store, samples, planned)
        del samples
        spool.seek(0)
        with open(temporary, "w", encoding="utf-8", newline="\n") as page:
            for text in _pieces(title, about, spool):
                page.write(text)
    return path


def _planned(store: Store, asked: int | None) -> Plan:
    rows = store.written()
    planned = plan(store, len(rows))
    found = fit(store, rows, asked, planned.bytes_a_sample(len(store.metrics)))
    if asked is None and found.page < found.whole:
        assert found.size is not None
        assert store.thumbnails is not None
        stored = max(store.thumbnails.shape[1:3])
        warnings.warn(
            f"pictures have {max(found.size)} of the store's {stored} pixels, to keep the page below {PAGE / 1e6:.0f} MB; with "
            f"pictures={stored} (--pictures {stored}) it would have about {found.whole / 1e6:,.0f} MB",
            stacklevel=3,
        )
    elif asked is not None and found.page > PAGE:
        warnings.warn(
            f"the page will have about {found.page / 1e6:,.0f} MB and open slowly; pass fewer pictures=… (--pictures) for a "
            "smaller one",
            stacklevel=3,
        )
    return replace(planned, picture=found.size)


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Name the page where the body runs out of room; other errors, such as of the store's files, stay as they are.

    Raises:
        OSError: the disk, a quota or a file is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise OSError(
            f"{path}: expected room for the report, and for its pictures and maps once more while it is written, got: "
            f"{error.strerror}; free some, or choose another place"
        ) from error


def _watched(progress: bool) -> Callable[[range], Iterable[int]]:
    from tqdm.auto import tqdm

    return partial(tqdm, desc="report", unit="chunk", leave=False, disable=not progress)


def _pieces(title: str, about: dict[str, Any], spool: IO[str]) -> Iterator[str]:
    """The page, part by part; what is put into the template is not looked at again."""
    style = _resource("style.css")
    script = '(() => {\n"use strict";\n' + "\n".join(_resource(name) for name in _SCRIPTS) + "})();\n"
    policy = (
        f"default-src 'none'; img-src data: blob:; style-src {digest(style)}; script-src {digest(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    blocks = _blocks(spool)
    for index, part in enumerate(re.split(r"\{\{(\w+)\}\}", _resource("template.html"))):
        if index % 2 == 0:
            yield part
        elif part == "title":
            yield html.escape(title)
        elif part == "policy":
            yield html.escape(policy, quote=True).replace("&#x27;", "'")
        elif part == "style":
            yield style
        elif part == "script":
            yield script
        elif part == "data":
            yield json_text(about)
        elif part == "first":
            yield from islice(blocks, _FIRST_BLOCKS)
        else:
            assert part == "rest", part
            yield from blocks


def _blocks(spool: IO[str]) -> Iterator[str]:
    for number, sheet in enumerate(spool):
        maps = next(spool)
        yield f'<script type="text/plain" id="block-{number}">{sheet}{maps.rstrip()}</script>\n'


def _resource(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
