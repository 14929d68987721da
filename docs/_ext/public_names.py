"""References find what they mean: by an object's public name, wherever it is defined, and by the short names of annotations.

In a signature what is not public stays text. A reference in a text that leads nowhere is reported, as any other; so is one to
what can be imported and is not public, as no page describes it. Of a class's bases the public ones are shown.
"""

from __future__ import annotations

import enum
import re
import sys
import typing
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import import_module
from inspect import isclass, ismodule, isroutine
from typing import Any

from docutils import nodes
from sphinx.addnodes import desc_signature, pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer

PACKAGE = "batchcam_captum"
#: Where public names are documented; of one that is in several, the first.
HOMES = (
    *("functional", "attribution", "losses", "prototypes", "training", "training.lightning"),
    *(
        "evaluation.metrics",
        "evaluation.faithfulness",
        "evaluation",
        "explain",
        "interop",
        "datasets",
        "loading",
    ),
)
#: As annotations and other packages' ``__module__`` have them -> as their own documentation has them.
ALIASES = {
    "Tensor": "torch.Tensor",
    "nn.Module": "torch.nn.Module",
    "ProcessGroup": "torch.distributed.ProcessGroup",
    "torch.nn.modules.module.Module": "torch.nn.Module",
    "torch.utils.data.dataset.Dataset": "torch.utils.data.Dataset",
    "torch.utils.data.dataloader.DataLoader": "torch.utils.data.DataLoader",
    "Dataset": "torch.utils.data.Dataset",
    "torch._C.Generator": "torch.Generator",
    "torchmetrics.metric.Metric": "torchmetrics.Metric",
    "captum.attr._core.layer.grad_cam.LayerGradCam": "captum.attr.LayerGradCam",
    "captum.attr._core.guided_grad_cam.GuidedGradCam": "captum.attr.GuidedGradCam",
    "lightning.pytorch.callbacks.callback.Callback": "lightning.pytorch.callbacks.Callback",
    "LightningModule": "lightning.pytorch.core.LightningModule",
    "Trainer": "lightning.pytorch.trainer.trainer.Trainer",
    "np.ndarray": "numpy.ndarray",
    "Figure": "matplotlib.figure.Figure",
    "compute_convergence_delta": "captum.attr.Attribution.compute_convergence_delta",
}
#: Before a name, and none after it.
_STAR = re.compile(r"(?<![\w*`\\])\*(?=[a-z_]+[^\w*])")


@cache
def public_names() -> dict[int, str]:
    """The id of each public object -> its documented name."""
    found: dict[int, str] = {}
    for home in HOMES:
        module = import_module(f"{PACKAGE}.{home}")
        for name in module.__all__:
            value = getattr(module, name)
            if hasattr(value, "__module__") or callable(value):
                found.setdefault(id(value), f"{module.__name__}.{name}")
    return found


def at_home(module: str, name: str) -> bool:
    """Whether a module's page is the one that describes a name of it."""
    value = getattr(import_module(module), name)
    return public_names().get(id(value), f"{module}.{name}") == f"{module}.{name}"


def data_of(module: str) -> list[tuple[str, list[str]]]:
    """A package's public names that are neither classes nor functions, each with the comment that describes it."""
    package = import_module(module)
    found = []
    for name in package.__all__:
        value = getattr(package, name)
        other = not (isclass(value) or isroutine(value) or ismodule(value))
        if other and name != "__version__" and at_home(module, name):
            found.append((name, _comment(name, value)))
    return found


def _comment(name: str, value: object) -> list[str]:
    """The lines after ``#:`` where a name is defined."""
    for path, module in sorted(sys.modules.items()):
        if path.startswith(PACKAGE) and vars(module).get(name) is value:
            comments = ModuleAnalyzer.for_module(path).find_attr_docs()
            if ("", name) in comments:
                return [_kept(line) for line in comments["", name]]
    return []


def _anywhere(name: str) -> bool:
    """Whether some module of the package has this name."""
    return any(
        path.startswith(PACKAGE) and name in vars(module) for path, module in list(sys.modules.items())
    )


def _imported(target: str) -> tuple[Any, str]:
    """The module-level object that a dotted name begins with, and what is left of the name.

    Raises:
        LookupError: there is none.
    """
    parts = target.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            value = import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for place, part in enumerate(parts[length:]):
            if not hasattr(value, part) and part not in getattr(value, "__annotations__", {}):
                raise LookupError(target)
            if place == 0:
                value = getattr(value, part)
        return value, ".".join(parts[length + 1 :])
    raise LookupError(target)


def _candidates(node: pending_xref) -> list[str]:
    """Full names that a reference's target may stand for."""
    target = node["reftarget"].lstrip(".")
    module = node.get("py:module")
    found = [target] if target.startswith(f"{PACKAGE}.") else []
    if module and module.startswith(PACKAGE):
        parts = module.split(".")
        found += [".".join((*parts[:length], target)) for length in range(len(parts), 0, -1)]
    return found + [f"{PACKAGE}.{home}.{target}" for home in HOMES]


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.Element) -> Any:
    """What a reference that Sphinx did not find leads to; None where there is nothing."""
    if node.get("refdomain") != "py":
        return None
    written_out = contnode if node.get("of_signature") else None
    target = ALIASES.get(node["reftarget"])
    if target is not None:
        node["reftarget"] = target
        from sphinx.ext.intersphinx import missing_reference

        return missing_reference(app, env, node, contnode)
    for name in _candidates(node):
        try:
            value, rest = _imported(name)
        except LookupError:
            continue
        public = public_names().get(id(value))
        if public is None:
            return written_out
        domain = env.domains["py"]
        full = f"{public}.{rest}" if rest else public
        found = domain.resolve_xref(env, node["refdoc"], app.builder, "obj", full, node, contnode)
        return written_out if found is None and rest else found
    return written_out if _anywhere(node["reftarget"]) else None


def as_defined(app: Sphinx, tree: nodes.document) -> None:
    """A signature's short names mean what they mean in the module that defines the object, also where others are called alike."""
    for signature in tree.findall(desc_signature):
        for node in signature.findall(pending_xref):
            node["of_signature"] = True
        try:
            owner, _ = _imported(f"{signature['module']}.{signature['fullname']}")
        except (KeyError, LookupError):
            continue
        names = vars(sys.modules.get(getattr(owner, "__module__", None) or "", sys))
        for node in signature.findall(pending_xref):
            public = public_names().get(id(names.get(node["reftarget"], object)))
            if public is not None:
                node["reftarget"] = public


def _kept(line: str) -> str:
    """``(N, C, *spatial)`` is a shape and no emphasis, and ``|x|`` a norm and no substitution."""
    parts = line.split("``")
    parts[::2] = [_STAR.sub(r"\\*", part).replace("|", "\\|") for part in parts[::2]]
    return "``".join(parts)


def keep_signs(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """What reStructuredText would take for markup, in every docstring. In a formula a ``|`` after a backslash is another sign."""
    formula: int | None = None  # how far in the directive stands
    for place, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if formula is not None and line.strip() and indent <= formula:
            formula = None
        if line.lstrip().startswith(".. math::"):
            formula = indent
        if formula is None:
            lines[place] = _kept(line)


def public_bases(app: Sphinx, name: str, obj: type, options: Any, bases: list[Any]) -> None:
    """In the place of a base that is not public the nearest ones that are."""
    bases[:] = list(dict.fromkeys(_public(bases))) or [object]


def _public(bases: Iterable[Any]) -> Iterator[Any]:
    for base in bases:
        plain = typing.get_origin(base) or base
        if plain in (object, typing.Generic):
            continue
        if plain.__module__.startswith(f"{PACKAGE}.") and id(plain) not in public_names():
            yield from _public(vars(plain).get("__orig_bases__", plain.__bases__))
        else:
            yield base


def made_by_nobody(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, arguments: str | None, returned: str | None
) -> tuple[str, None] | None:
    """No arguments where users make no objects: of a protocol, and of an enumeration."""
    if what == "class" and (getattr(obj, "_is_protocol", False) or issubclass(obj, enum.Enum)):
        return "", None
    return None


def keep_first_words(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """``(N,) int32: the class …`` of an attribute is a sentence; napoleon takes what stands before the colon for a type."""
    kind = next((line for line in lines if line.startswith(":type: ")), None)
    if what in ("attribute", "data", "property") and kind is not None:
        lines.remove(kind)
        lines[0] = f"{kind.removeprefix(':type: ')}: {lines[0]}"


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls it."""
    app.setup_extension("sphinx.ext.napoleon")
    app.connect("autodoc-process-bases", public_bases)
    app.connect("autodoc-process-signature", made_by_nobody)
    app.connect("doctree-read", as_defined)
    app.connect("missing-reference", resolve, priority=400)
    app.connect("autodoc-process-docstring", keep_signs, priority=400)
    app.connect("autodoc-process-docstring", keep_first_words, priority=600)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
