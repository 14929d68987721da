"""Two hyphens between words are a dash; elsewhere, as in ``--size 24``, they stay."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

DASH = "\N{EN DASH}"


def between_words(app: Sphinx, tree: nodes.document) -> None:
    """In all text but code; Sphinx itself puts them between a parameter and its description."""
    for text in list(tree.findall(nodes.Text)):
        if " -- " in text and not isinstance(text.parent, nodes.literal | nodes.literal_block):
            text.parent.replace(text, nodes.Text(text.replace(" -- ", f" {DASH} ")))


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls it."""
    app.connect("doctree-read", between_words)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
