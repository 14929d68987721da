"""Pages that lie outside of ``docs/`` and are shown inside: links between them work here as they do in the repository."""

from __future__ import annotations

import posixpath
import re
from typing import Any

from sphinx.application import Sphinx

#: File of the repository -> page that shows it.
SHOWN = {
    "benchmarks/README.md": "docs/evidence/benchmarks.md",
    "benchmarks/study/README.md": "docs/evidence/protocol.md",
    "CHANGELOG.md": "docs/changelog.md",
    "CONTRIBUTING.md": "docs/contributing.md",
}
_LINK = re.compile(r"\]\((?P<path>[^)#:\s]+\.md)(?P<anchor>#[^)\s]*)?\)")


def _moved(text: str, origin: str, page: str) -> str:
    """A file's text as a page's: its links lead from the page, and to pages."""

    def link(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(origin), found["path"]))
        path = posixpath.relpath(SHOWN.get(target, target), posixpath.dirname(page))
        return f"]({path}{found['anchor'] or ''})"

    return _LINK.sub(link, text)


def read(app: Sphinx, name: str, content: list[str]) -> None:
    """A page's own links to files that are shown as pages."""
    content[0] = _moved(content[0], f"docs/{name}.md", f"docs/{name}.md")


def included(app: Sphinx, path: Any, name: str, content: list[str]) -> None:
    """The links of a file that a page includes."""
    page = f"docs/{name}.md"
    origin = next((file for file, shown in SHOWN.items() if shown == page), None)
    if origin is not None:
        content[0] = _moved(content[0], origin, page)


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls it."""
    app.connect("source-read", read)
    app.connect("include-read", included)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
