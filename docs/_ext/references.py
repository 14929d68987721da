"""Resolve references that Sphinx does not find: public names that are defined elsewhere, and names of other projects."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

#: Name in another project -> its address, from ``external.txt``: a build needs no network.
EXTERNAL = dict(
    line.split() for line in (Path(__file__).with_name("external.txt")).read_text("utf-8").splitlines()
)


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.Element) -> Any:
    """Return a link to the only documented name that ends as the target does; types in signatures may stay text."""
    if node.get("refdomain") != "py":
        return None
    domain = env.domains.python_domain
    parts = node["reftarget"].lstrip(".").split(".")
    for start in range(len(parts)):
        if start and parts[start - 1][0].isupper():
            break  # a member is looked for with its class
        name = ".".join(parts[start:])
        found = domain.find_obj(env, "", "", name, None, searchmode=1)
        members = () if "." in name else ("method", "attribute", "property")
        found = [each for each in found if not each[1].aliased and each[1].objtype not in members]
        if len(found) == 1:
            full, entry = found[0]
            return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, full)
        others = [full for full in EXTERNAL if f".{full}".endswith(f".{name}")]
        if len(others) == 1:
            return nodes.reference("", "", contnode, refuri=EXTERNAL[others[0]], internal=False)
    return None if "refexplicit" in node else contnode


def escaped(lines: list[str]) -> list[str]:
    """Escape ``|x|`` and ``(N, *size)`` outside of literals and formulas: no substitution, and no emphasis, is meant."""
    found = []
    formula = None  # indentation of the formula that a line is part of
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if line.lstrip().startswith(".. math::"):
            formula = indent
        elif line.strip() and formula is not None and indent <= formula:
            formula = None
        parts = re.split(r"(``.*?``|:math:`.*?`)", line)
        parts[::2] = [re.sub(r"\||(?<![\w*])\*(?=[a-z_]+[^\w*])", r"\\\g<0>", part) for part in parts[::2]]
        found.append(line if formula is not None else "".join(parts))
    return found


def before_napoleon(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Escape the docstring."""
    lines[:] = escaped(lines)


def after_napoleon(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Put back what napoleon took for the type of an attribute: ``(N,) int32: the class of each sample``."""
    types = [line for line in lines if line.startswith(":type: ")]
    if types and what in ("attribute", "data", "property"):
        lines.remove(types[0])
        lines[0] = f"{types[0].removeprefix(':type: ')}: {lines[0]}"


def public_bases(app: Sphinx, name: str, obj: type, options: Any, bases: list[Any]) -> None:
    """Show the nearest base that has a page instead of one that has none."""

    def public(base: Any) -> bool:
        package = ".".join(base.__module__.split(".")[:2])
        return not package.startswith("batchcam_captum.") or base.__name__ in import_module(package).__all__

    if not all(map(public, bases)):
        bases[:] = [next(filter(public, obj.__mro__[1:]))]


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the handlers."""
    app.setup_extension("sphinx.ext.napoleon")
    app.connect("missing-reference", resolve)
    app.connect("autodoc-process-bases", public_bases)
    app.connect("autodoc-process-docstring", before_napoleon, priority=400)
    app.connect("autodoc-process-docstring", after_napoleon, priority=600)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
