"""The directive ``diagram``: a drawing of ``docs/diagrams`` as part of the page, so that it takes the page's colours."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

FOLDER = Path(__file__).parents[1] / "diagrams"


class Diagram(SphinxDirective):
    """``{diagram} NAME`` with the caption as its content, and what it shows, for who cannot see it, as ``:alt:``."""

    required_arguments = 1
    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {"alt": str}

    def run(self) -> list[nodes.Node]:
        """The drawing and its caption."""
        path = FOLDER / f"{self.arguments[0]}.svg"
        self.env.note_dependency(str(path))
        drawing = path.read_text(encoding="utf-8").replace(
            "<svg ", f'<svg role="img" aria-label="{escape(self.options["alt"])}" ', 1
        )
        caption = nodes.container(classes=["caption"])
        self.state.nested_parse(self.content, self.content_offset, caption)
        return [nodes.container("", nodes.raw("", drawing, format="html"), caption, classes=["diagram"])]


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls it."""
    app.add_directive("diagram", Diagram)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
