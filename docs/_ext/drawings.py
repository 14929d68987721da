"""Drawings that are part of the page: SVG diagrams, which take its colors, and formulas in MathML, which need no script."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

DIAGRAMS = Path(__file__).parents[1] / "diagrams"


class Diagram(SphinxDirective):
    """Show ``docs/diagrams/NAME.svg`` with a caption: ``{diagram} NAME``, with the alternative text as ``:alt:``."""

    required_arguments = 1
    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {"alt": str}

    def run(self) -> list[nodes.Node]:
        """Return the drawing and its caption."""
        path = DIAGRAMS / f"{self.arguments[0]}.svg"
        self.env.note_dependency(str(path))
        label = f'<svg role="img" aria-label="{escape(self.options["alt"])}" '
        drawing = nodes.raw("", path.read_text("utf-8").replace("<svg ", label, 1), format="html")
        caption = nodes.container(classes=["caption"])
        self.state.nested_parse(self.content, self.content_offset, caption)
        return [nodes.container("", drawing, caption, classes=["diagram"])]


def inline(writer: Any, node: nodes.math) -> None:
    """Write a formula in a sentence."""
    writer.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def block(writer: Any, node: nodes.math_block) -> None:
    """Write a formula on a line of its own."""
    writer.body.append(
        f"{writer.starttag(node, 'div', CLASS='math')}{tex2mathml(node.astext(), as_block=True)}</div>"
    )
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive and the renderer."""
    app.add_directive("diagram", Diagram)
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
