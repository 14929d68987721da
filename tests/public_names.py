"""What users may rely on, one line a name: the public packages' names with their signatures, and the command line's options.

``python -m tests.public_names`` writes it anew to ``public_names.txt``.
"""

from __future__ import annotations

import argparse
import enum
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

PACKAGE = "batchcam_captum"
FILE = Path(__file__).with_suffix(".txt")
INDEX = Path(__file__).parents[1] / "docs" / "reference" / "index.md"
#: What is not public by name, though pages and docstrings give its value.
CONSTANTS = ("functional.maps.DEAD_TOLERANCE",)
#: Special methods that are called by syntax.
SYNTAX = ("__call__", "__contains__", "__enter__", "__exit__", "__getitem__", "__iter__", "__len__")


def inventory() -> list[str]:
    """All lines, sorted: first the packages', then the commands'."""
    homes: dict[int, str] = {}
    lines: list[str] = []
    for package in packages():
        module = import_module(package)
        for name in module.__all__:
            value, full = getattr(module, name), f"{package}.{name}"
            if name == "__version__":
                continue
            # An alias of types or a tuple may be one object with another only because Python keeps some of them.
            one_of_many = typing.get_origin(value) is not None or isinstance(value, tuple)
            home = full if one_of_many else homes.setdefault(id(value), full)
            lines += [f"{full} = {home}"] if home != full else described(full, value)
    for name in CONSTANTS:
        module, _, constant = name.rpartition(".")
        value = getattr(import_module(f"{PACKAGE}.{module}"), constant)
        lines.append(f"{PACKAGE}.{name} constant {shown(value)}")
    return sorted(lines) + sorted(commands())


@cache
def packages() -> tuple[str, ...]:
    """Those that the reference lists, and the package itself; inner ones first, as names are at home in them."""
    (listed,) = re.findall(
        r"autosummary::\n   :toctree: api\n\n(.+?)\n```", INDEX.read_text("utf-8"), re.DOTALL
    )
    return (*sorted(listed.split(), key=lambda name: -name.count(".")), PACKAGE)


def described(full: str, value: Any) -> list[str]:
    """The lines of one name."""
    if isinstance(value, type) and not isinstance(value, types.GenericAlias):
        kinds = ", ".join(bases(value))
        return [f"{full} class{f'({kinds})' if kinds else ''}{called(value)}", *members(full, value)]
    if inspect.isroutine(value):
        return [f"{full} function {signature(value)}"]
    if inspect.ismodule(value):
        return [f"{full} module"]
    registered = getattr(value, "_entries", None)
    if registered is not None:
        own = {name: entry for name, entry in registered.items() if ours(entry)}
        return [
            f"{full} {type(value).__name__}",
            *(f"{full}[{name!r}] entry {shown(entry)}" for name, entry in own.items()),
        ]
    if typing.get_origin(value) is not None:
        return [f"{full} type {annotation(value)}"]
    return [f"{full} {type(value).__name__} {shown(value)}"]


def ours(value: Any) -> bool:
    """Not registered by a test or by an example of the documentation: those are no module's."""
    if not hasattr(value, "__qualname__"):
        return True
    module = sys.modules.get(value.__module__)
    return value.__module__.startswith(PACKAGE) and getattr(module, value.__qualname__, None) is value


def public(cls: type) -> bool:
    """Whether users can name a class: one of another project, or one that has a line of its own."""
    return not cls.__module__.startswith(PACKAGE) or cls in public_classes()


@cache
def public_classes() -> frozenset[type]:
    """All of the package's."""
    modules = map(import_module, packages())
    return frozenset(
        v for m in modules for v in (getattr(m, name) for name in m.__all__) if inspect.isclass(v)
    )


def bases(cls: type) -> list[str]:
    """The nearest public classes that it is a kind of."""
    names = [name for base in cls.__bases__ for name in ([base.__name__] if public(base) else bases(base))]
    return [name for name in dict.fromkeys(names) if name not in ("object", "Generic")]


def called(cls: type) -> str:
    """How objects are made; nothing where another project says how."""
    if issubclass(cls, enum.Enum) or getattr(cls, "_is_protocol", False):
        return ""
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        hints, defaults = inspect.get_annotations(cls), cls._field_defaults
        of = (
            f"{n}: {annotation(hints[n])}" + (f" = {shown(defaults[n])}" if n in defaults else "")
            for n in cls._fields
        )
        return f" ({', '.join(of)})"
    maker = next((base for base in cls.__mro__ if "__init__" in vars(base)), object)
    return f" {signature(cls)}" if maker.__module__.startswith(PACKAGE) else ""


def members(full: str, cls: type) -> Iterator[str]:
    """Methods, properties and attributes of a class and of its private bases; a public base has lines of its own."""
    if issubclass(cls, enum.Enum):
        yield from (f"{full}.{member.name} member {member.value!r}" for member in cls)
    parts = [cls, *(base for base in cls.__mro__[1:] if not public(base))]
    made = {field.name for field in fields(cls) if field.init} if is_dataclass(cls) else set()
    in_signature = made or set(getattr(cls, "_fields", ()))
    names = {name for part in parts for name in (*vars(part), *inspect.get_annotations(part))}
    for name in sorted(names - in_signature):
        if name.startswith("_") and name not in SYNTAX:
            continue
        part = next(part for part in parts if name in vars(part) or name in inspect.get_annotations(part))
        value, hint = vars(part).get(name), inspect.get_annotations(part).get(name)
        if isinstance(value, (staticmethod, classmethod)):
            yield f"{full}.{name} {type(value).__name__} {signature(getattr(cls, name))}"
        elif inspect.isroutine(value):
            yield f"{full}.{name} method {signature(value)}"
        elif isinstance(value, property) or hasattr(value, "func"):  # a cached property
            returned = inspect.get_annotations(getattr(value, "fget", None) or value.func).get("return")
            yield f"{full}.{name} property: {annotation(returned)}"
        elif not issubclass(cls, enum.Enum) and not isinstance(value, type):
            typed = f": {annotation(hint)}" if hint is not None else ""
            plain = isinstance(value, (bool, int, float, str)) or (value is None and name in vars(part))
            yield f"{full}.{name} attribute{typed}" + (f" = {value!r}" if plain else "")


def signature(value: Callable[..., Any]) -> str:
    """As written; defaults that are objects by their names, so that no addresses and no other versions' looks are in it."""
    found = inspect.signature(value)
    parameters = [
        parameter.replace(annotation=parameter.empty, default=parameter.empty)
        for parameter in found.parameters.values()
        if parameter.name not in ("self", "cls")
    ]
    texts: list[str] = []
    for bare in parameters:
        full = found.parameters[bare.name]
        if bare.kind is bare.KEYWORD_ONLY and not any(text.startswith("*") for text in texts):
            texts.append("*")
        text = str(bare)
        if full.annotation is not full.empty:
            text += f": {annotation(full.annotation)}"
        if full.default is not full.empty:
            text += f" = {shown(full.default)}"
        texts.append(text)
        last = bare is parameters[-1] or parameters[parameters.index(bare) + 1].kind is not bare.kind
        if bare.kind is bare.POSITIONAL_ONLY and last:
            texts.append("/")
    returned = found.return_annotation
    arrow = "" if returned is found.empty or inspect.isclass(value) else f" -> {annotation(returned)}"
    return f"({', '.join(texts)}){arrow}"


def shown(default: Any) -> str:
    """A default value, a constant, or what is registered: with all that it holds, functions and classes by their names."""
    if isinstance(default, Mapping):
        return f"{{{', '.join(f'{shown(key)}: {shown(value)}' for key, value in default.items())}}}"
    if is_dataclass(default) and not isinstance(default, type):
        held = (f"{field.name}={shown(getattr(default, field.name))}" for field in fields(default))
        return f"{type(default).__name__}({', '.join(held)})"
    if isinstance(default, enum.Enum):
        return f"{type(default).__name__}.{default.name}"
    if isinstance(default, (tuple, list)):
        return f"({', '.join(map(shown, default))})"
    if default is None or isinstance(default, (bool, int, float, str)):
        return repr(default)
    if isinstance(default, types.LambdaType) and default.__name__ == "<lambda>":
        return "function"
    return getattr(default, "__name__", None) or (
        str(default) if isinstance(default, Path) else type(default).__name__
    )


def annotation(hint: Any) -> str:
    """A type, alike whether it was written as text or is an object, and in every version of Python."""
    if isinstance(hint, str):
        return hint
    if isinstance(hint, (typing.ForwardRef, typing.TypeVar)):
        return getattr(hint, "__forward_arg__", None) or hint.__name__
    if hint is None or hint is type(None):
        return "None"
    if isinstance(hint, list):
        return f"[{', '.join(map(annotation, hint))}]"
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(annotation, arguments))
    if origin is typing.Literal:
        return f"Literal[{', '.join(map(repr, arguments))}]"
    if origin is not None and arguments:
        return f"{origin.__name__}[{', '.join(map(annotation, arguments))}]"
    return "..." if hint is ... else getattr(hint, "__name__", None) or str(hint)


def commands() -> Iterator[str]:
    """The command line: each command's arguments, which of them must be given, and what the others are otherwise."""
    from batchcam_captum.cli import _parser

    (choices,) = (a.choices for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    for command, parser in choices.items():
        yield f"batchcam {command}"
        for action in parser._actions:
            if isinstance(action, argparse._HelpAction):
                continue
            line = f"batchcam {command} {', '.join(action.option_strings) or action.metavar or action.dest}"
            if action.nargs == 0:
                yield line
                continue
            if action.option_strings:
                line += f" {action.metavar or action.dest.upper()}"
            line += {"+": " …", "*": " …"}.get(str(action.nargs), "")
            line += f" of {', '.join(map(str, action.choices))}" if action.choices else ""
            needed = action.required and action.nargs not in (
                "*",
                "?",
            )  # versions of Python disagree about these
            # Where the command finds something by itself, its help says what.
            said = re.search(r"(?:^|; )default: (.+)", action.help or "") if action.default is None else None
            otherwise = said[1] if said else shown(action.default)
            yield line + (", needed" if needed else f", otherwise {otherwise}")


if __name__ == "__main__":
    FILE.write_text("\n".join(inventory()) + "\n", encoding="utf-8")
    print(f"{FILE}: {len(inventory())} lines")
