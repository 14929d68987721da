"""Which names there are: the package's, its options, and those of the libraries that the pages speak of."""

from __future__ import annotations

import argparse
import ast
import builtins
import contextlib
import inspect
import keyword
import pkgutil
import re
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import batchcam_captum
from batchcam_captum.cli import _parser
from batchcam_captum.functional import CAM_METHODS, DISTANCES
from tests.docs.pages import Page

#: Where the names of others are looked up; what of these is not installed is left out.
OTHERS = (
    *("torch", "torch.nn", "torch.nn.functional", "torch.amp", "torch.autograd", "torch.distributed.fsdp"),
    *("torch.utils.checkpoint", "numpy"),
    *("captum.attr", "pytorch_grad_cam", "pytorch_grad_cam.base_cam", "pytorch_grad_cam.sobel_cam", "torchcam.methods"),
    *("pytorch_grad_cam.utils.model_targets", "pytorch_grad_cam.utils.image", "lightning.pytorch", "lightning.pytorch.callbacks"),
    *("torch.distributed", "torchvision.models", "torchvision.datasets", "scipy.ndimage", "accelerate", "timm"),
)  # fmt: skip
#: Arguments that take a registered name.
CHOICES: dict[str, Any] = {"method": CAM_METHODS, "distance": DISTANCES}


def modules() -> Iterator[ModuleType]:
    """The package and what is public in it."""
    yield batchcam_captum
    for found in pkgutil.walk_packages(batchcam_captum.__path__, "batchcam_captum."):
        if not any(part.startswith("_") for part in found.name.split(".")):
            yield import_module(found.name)


@cache
def public() -> dict[str, Any]:
    """The package's public names, and what they are."""
    found: dict[str, Any] = {}
    for module in modules():
        found |= {name: getattr(module, name) for name in getattr(module, "__all__", ())}
        found[module.__name__.rpartition(".")[2]] = module
    return found


@cache
def members() -> frozenset[str]:
    """Attributes of the public classes, the annotated and assigned ones included."""
    found: set[str] = set()
    for value in public().values():
        if inspect.isclass(value):
            found |= set(dir(value))
            for base in value.__mro__:
                if base.__module__.startswith("batchcam_captum"):
                    found |= set(getattr(base, "__annotations__", {}))
                    found |= set(re.findall(r"self\.([a-z]\w*)\b[^=\n]* = ", inspect.getsource(base)))
    return frozenset(found)


def parameters_of(value: Any) -> set[str] | None:
    """What may be passed by name; None where that cannot be told, or is anything."""
    try:
        given = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in given):
        return None
    return {parameter.name for parameter in given}


def _methods(value: Any) -> Iterator[Callable[..., Any]]:
    yield value
    if inspect.isclass(value):
        yield from (each for name, each in inspect.getmembers(value, callable) if not name.startswith("__"))


@cache
def parameters() -> frozenset[str]:
    """Of any public function, class or method."""
    found: set[str] = set()
    for value in public().values():
        if callable(value):
            found |= {name for each in _methods(value) for name in parameters_of(each) or ()}
            if inspect.isclass(value):
                found |= set(inspect.signature(value.__init__).parameters)
    return frozenset(found)


@cache
def others() -> frozenset[str]:
    """Names of the libraries that the pages speak of, their classes' members and parameters included."""
    found = set(dir(builtins)) | {part for name in OTHERS for part in name.split(".")}
    for path in OTHERS:
        try:
            module = import_module(path)
        except ImportError:
            continue
        for name in dir(module):
            found.add(name)
            value = getattr(module, name, None)
            if inspect.isclass(value):
                found |= set(dir(value)) | (parameters_of(value) or set())
            elif callable(value):
                found |= parameters_of(value) or set()
    return frozenset(found)


@cache
def commands() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command."""
    (found,) = [each for each in _parser()._actions if isinstance(each, argparse._SubParsersAction)]
    return dict(found.choices)


@cache
def options() -> frozenset[str]:
    """Every option of every command."""
    parsers = [_parser(), *commands().values()]
    return frozenset(
        name for parser in parsers for action in parser._actions for name in action.option_strings
    )


def of_page(page: Page) -> set[str]:
    """Names that a page's own code makes or uses."""
    return {name for block in page.of("python") for name in re.findall(r"[^\W\d]\w*", block.text)}


#: An inline piece of code, and the role before it.
_INLINE = re.compile(r"(?:\{(?P<role>[\w:]+)\})?(?<!`)`(?P<text>[^`]+)`(?!`)")


def inline(page: Page) -> Iterator[tuple[int, str, str]]:
    """Line, role (empty where there is none) and text of what stands in backticks."""
    prose = "\n".join(page.prose)
    for found in _INLINE.finditer(prose):
        line = prose.count("\n", 0, found.start()) + 1
        yield line, found["role"] or "", " ".join(found["text"].split())


def parsed(text: str) -> ast.AST | None:
    """An inline piece of code: an expression, a statement, arguments or a decorator; None where it is no Python."""
    text = text.replace("…", "...").replace("=)", "=0)").lstrip(".")
    for form in ("f({})", "{}", "{} pass", "f({}0)"):
        with contextlib.suppress(SyntaxError):
            return ast.parse(form.format(text))
    return None


def unknown(text: str, known: set[str]) -> list[str]:
    """What in an inline piece of code there is not.

    Args:
        text: the piece.
        known: the page's own names.
    """
    if keyword.iskeyword(text):
        return []
    tree = parsed(text)
    if tree is None:
        return [text]
    everything = known | set(public()) | members() | parameters() | others()
    everything |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    missing = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            name = node.id if isinstance(node, ast.Name) else node.attr
            if name not in everything:
                missing.append(name)
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            allowed = parameters_of(public()[name]) if name in public() else None
            expected = everything if allowed is None else allowed
            unexpected = (each.arg for each in node.keywords if each.arg and each.arg not in expected)
            missing += [f"{name}({parameter}=…)" for parameter in unexpected]
        elif isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant) and node.arg in CHOICES:
            chosen = node.value.value
            if isinstance(chosen, str) and chosen not in CHOICES[node.arg] and chosen not in known:
                missing.append(f"{node.arg}={chosen!r}")
    return missing


def imported(target: str) -> Any:
    """What a reference's target is: a full dotted name, of a member too, or ``text <name>``.

    Raises:
        AttributeError: there is no such thing.
    """
    path = target.partition("<")[2].rstrip(">") or target.lstrip("~")
    value: Any = batchcam_captum
    first, *rest = path.split(".")
    if first != "batchcam_captum":
        raise AttributeError(path)
    for place, part in enumerate(rest, 1):
        with contextlib.suppress(ImportError):
            import_module(".".join((first, *rest[:place])))
        value = getattr(value, part)
    return value
