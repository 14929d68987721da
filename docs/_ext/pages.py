"""Files outside of ``docs/`` that are shown inside, with links that work as in the repository; the link that edits a page."""

from __future__ import annotations

import inspect
import posixpath
import re
from importlib import import_module
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

#: File of the repository -> page that shows it.
SHOWN = {
    "benchmarks/README.md": "docs/evidence/benchmarks.md",
    "benchmarks/study/README.md": "docs/evidence/protocol.md",
    "CHANGELOG.md": "docs/changelog.md",
    "CONTRIBUTING.md": "docs/contributing.md",
    "SECURITY.md": "docs/security.md",
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
    origin = posixpath.normpath(posixpath.join("docs", str(path).replace("\\", "/")))
    if origin in SHOWN:
        content[0] = _moved(content[0], origin, SHOWN[origin])


def source_of(page: str, suffix: str) -> str | None:
    """The file, from the root of the repository, that somebody who wants to change a page has to edit; None: there is none."""
    here = Path(__file__).parents[2]
    folder, _, name = page.rpartition("/")
    if folder == "auto_examples":
        candidate = f"docs/gallery/{'README.rst' if name == 'index' else f'{name}.py'}"
    elif folder == "reference/api":
        candidate = _defined_in(name, here)
    else:
        written = f"docs/{page}{suffix}"
        candidate = next((file for file, shown in SHOWN.items() if shown == written), written)
    return candidate if (here / candidate).is_file() else None


def _defined_in(name: str, root: Path) -> str:
    """The file of a public name, or of a module."""
    module, _, rest = name.rpartition(".")
    try:
        value = import_module(name)
    except ImportError:
        value = getattr(import_module(module), rest)
    found = inspect.getsourcefile(inspect.unwrap(value))  # beneath decorators such as torch.no_grad()
    return str(Path(found or "").relative_to(root))


def edit_link(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
    """The address under which the page can be edited, for the theme."""
    source = source_of(page, context.get("page_source_suffix") or "")
    if source is None:
        context["page_source_suffix"] = ""  # the theme then shows no link
    else:
        context["theme_source_edit_link"] = f"{app.config.source_address}/edit/main/{source}"


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls it."""
    app.add_config_value("source_address", "", "html", str)
    app.connect("source-read", read)
    app.connect("include-read", included)
    app.connect("html-page-context", edit_link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
