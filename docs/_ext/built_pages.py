"""Warns of what is wrong in pages that are built; `make docs` makes errors of warnings.

Links from page to page, or to a place in a page, that lead nowhere; and lists that count by letters, which nobody writes here: a
sentence that begins with an initial, as "K.", became one.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from sphinx.application import Sphinx
from sphinx.util.logging import getLogger

log = getLogger(__name__)
#: The classes of lists that count by letters or Roman numbers.
_LETTERS = {"loweralpha", "upperalpha", "lowerroman", "upperroman"}


class _Page(HTMLParser):
    """What can be linked to in a page, what it links to, and how many of its lists count by letters."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.places: set[str] = set()
        self.links: list[str] = []
        self.lists_of_letters = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A place has an id; links, pictures and scripts have an address; an ordered list has its kind for a class."""
        for name, value in attrs:
            if name == "id" or (tag == "a" and name == "name"):
                self.places.add(value or "")
            elif name in ("href", "src") and value:
                self.links.append(value)
            elif tag == "ol" and name == "class" and {*(value or "").split()} & _LETTERS:
                self.lists_of_letters += 1


def wrong(folder: Path, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """What is wrong in some pages of a folder, each with its page.

    Args:
        folder: where the pages are.
        names: of the pages, without ``.html``.
    """
    pages = {
        f"{name}.html": _Page((folder / f"{name}.html").read_text(encoding="utf-8")) for name in sorted(names)
    }
    for name, page in pages.items():
        if page.lists_of_letters:
            yield (
                name,
                f"{page.lists_of_letters} lists count by letters; begin the sentences with another word",
            )
        for link in dict.fromkeys(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            path = (
                posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(parts.path)))
                if parts.path
                else name
            )
            place = unquote(parts.fragment)
            if not (folder / path).is_file() or (place and path in pages and place not in pages[path].places):
                yield name, f"nothing is at the link {link}"


def report(app: Sphinx, exception: Exception | None) -> None:
    """A warning for each, when a whole build is done."""
    if exception is None and app.builder.name == "html":
        for page, what in wrong(Path(app.outdir), app.env.found_docs):
            log.warning("%s: %s", page, what, type="built_pages")


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls it."""
    app.connect("build-finished", report)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
