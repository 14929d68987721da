"""The report as a whole."""

from __future__ import annotations

import html
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import IO, Any

from ...files import written_whole
from ..store import Store, open_store
from .content import content
from .embed import digest, json_text
from .samples import gather, plan

#: In this order; they share one scope.
_SCRIPTS = ("data.js", "drawing.js", "filters.js", "gallery.js", "dialog.js", "sections.js", "main.js")
#: Before the script, so that the first page of the gallery is there before the file is read to its end.
_FIRST_BLOCKS = 4


def write_report(
    store: Store | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    progress: bool = False,
) -> Path:
    """Write a store as one HTML file that opens offline: gallery, maps by class, confusions, metrics, settings.

    The store is read once, a chunk at a time; in memory are, besides a chunk, a few numbers a sample and at most 64 MB of maps.
    Maps are in the page as relu(C)/max in 256 steps, area-resized to at most 32×32, and at most ten a sample.

    Args:
        store: what :func:`.open_store` gives, or the path of one. It may be incomplete, which the page says.
        path: the file to write. Its folder must exist; a file that is there is replaced once the new one is whole.
        title: the page's heading. None: from the store's name, without .zarr.
        progress: show a bar.

    Returns:
        The path.

    Raises:
        FileNotFoundError: there is no store.
        ValueError: it is none, one of another version, or of signals or volumes, which are not drawn.
        OSError: the file cannot be written.
        ModuleNotFoundError: zarr or Pillow is not installed.
    """
    if not isinstance(store, Store):
        store = open_store(store)
    if store.maps.ndim != 4:
        raise ValueError(
            f"store: expected maps with two spatial dimensions, got {store.maps.shape[1:]} a sample; read them with "
            "open_store(path).maps"
        )
    path = Path(path)
    title = f"Maps of {store.path.resolve().name.removesuffix('.zarr')}" if title is None else title
    with (
        written_whole(path) as temporary,
        tempfile.TemporaryFile("w+", encoding="ascii", dir=temporary.parent) as spool,
    ):
        planned = plan(store, len(store.written()))
        samples = gather(store, planned, spool, watched=_watched(progress))
        about = content(store, samples, planned)
        del samples
        spool.seek(0)
        with open(temporary, "w", encoding="utf-8", newline="\n") as page:
            for text in _pieces(title, about, spool):
                page.write(text)
    return path


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
