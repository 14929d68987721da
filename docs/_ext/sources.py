"""Sources that a text names, "Ross et al. 2017", become links to the bibliography.

In docstrings they stand as they are read in ``help()``. What more than one entry could be, or none, stays text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

BIBLIOGRAPHY = "reference/bibliography"
#: Names, each with a capital, and a year after them.
_SOURCE = re.compile(
    r"(?P<first>[A-ZÀ-Ý][\w-]+)(?P<others>(?:,\s[A-ZÀ-Ý][\w-]+)*(?:\sand\s[A-ZÀ-Ý][\w-]+|\set\sal\.)?),?\s\(?(?P<year>\d{4})\b"
)
#: Where there are no links inside.
_CLOSED = (
    nodes.literal,
    nodes.literal_block,
    nodes.reference,
    nodes.title,
    nodes.raw,
    nodes.math,
    nodes.math_block,
)


def keys_of(entries: Iterable[tuple[str, list[str], str]]) -> dict[tuple[str, int, str], str]:
    """First author, how many there are (3 for more), and year -> key of the entry, where it is the only one.

    Args:
        entries: key, last names of the authors, and year of each.
    """
    found: dict[tuple[str, int, str], list[str]] = {}
    for key, authors, year in entries:
        found.setdefault((authors[0], min(len(authors), 3), year), []).append(key)
    return {what: keys[0] for what, keys in found.items() if len(keys) == 1}


def parts(text: str, keys: dict[tuple[str, int, str], str]) -> Iterator[tuple[str, str | None]]:
    """A text in pieces, each with the key of the source that it names, or None.

    Args:
        text: of a paragraph.
        keys: from :func:`keys_of`.
    """
    end = 0
    for found in _SOURCE.finditer(text):
        others = found["others"]
        several = others.endswith("al.") or "," in others
        key = keys.get((found["first"], 3 if several else 2 if others else 1, found["year"]))
        if key is not None:
            yield text[end : found.start()], None
            yield found[0], key
            end = found.end()
    yield text[end:], None


def link(app: Sphinx, tree: nodes.document, page: str) -> None:
    """Put the links into a page."""
    if page == BIBLIOGRAPHY:
        return
    domain = app.env.domains["cite"]
    keys = keys_of(
        (entry.key, [" ".join(person.last_names) for person in entry.persons["author"]], entry.fields["year"])
        for entry in domain.bibdata.data.entries.values()
    )
    places = {citation.key: citation.citation_id for citation in domain.citations}
    for text in list(tree.findall(nodes.Text)):
        if any(isinstance(above, _CLOSED) for above in _above(text)):
            continue
        pieces = [piece for piece in parts(text.astext(), keys) if piece[0]]
        if len(pieces) == 1 and pieces[0][1] is None:
            continue
        address = app.builder.get_relative_uri(page, BIBLIOGRAPHY)
        text.parent.replace(
            text,
            [
                nodes.Text(piece)
                if key is None
                else nodes.reference("", piece, internal=True, refuri=f"{address}#{places[key]}")
                for piece, key in pieces
            ],
        )


def _above(node: nodes.Node) -> Iterator[nodes.Node]:
    while node.parent is not None:
        node = node.parent
        yield node


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls it."""
    app.setup_extension("sphinxcontrib.bibtex")
    app.connect("doctree-resolved", link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
