"""What the reference says of a public name is whole: every parameter, what comes back, and what is raised."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import pytest

from tests.public_names import annotation, packages, public


def functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """All public ones, and the classes whose objects users make; a class that is made as a public base of it is has its words."""
    seen: set[int] = set()
    for package in packages():
        module = import_module(package)
        for name in module.__all__:
            value = getattr(module, name)
            if id(value) in seen or not (inspect.isfunction(value) or is_made(value)):
                continue
            seen.add(id(value))
            yield f"{package}.{name}", value


def is_made(value: Any) -> bool:
    """Whether it is a class of this package with a constructor of its own, or of a base that no page describes."""
    if not inspect.isclass(value) or getattr(value, "_is_protocol", False):
        return False
    maker = next((base for base in value.__mro__ if "__init__" in vars(base)), object)
    described = public(maker) and maker is not value
    # Fields of a dataclass have comments of their own.
    return (
        maker.__module__.startswith("batchcam_captum")
        and not described
        and not hasattr(value, "__dataclass_fields__")
    )


def lacking(value: Callable[..., Any]) -> list[str]:
    """What a docstring does not say."""
    text = inspect.getdoc(value) or ""
    sections = dict(re.findall(r"^(\w+):\n((?:[ ]{4}.*\n?|\n)+)", text + "\n", re.MULTILINE))
    signature = inspect.signature(value)
    described = set(re.findall(r"^ {4}\*{0,2}(\w+):", sections.get("Args", ""), re.MULTILINE))
    names = set(signature.parameters) - {"self", "cls"}
    found = [f"parameter {name}" for name in sorted(names - described)]
    found += [f"{name}, which is no parameter," for name in sorted(described - names)]
    if inspect.isfunction(value):
        returns = annotation(signature.return_annotation) != "None"
        if returns != bool({"Returns", "Yields"} & set(sections)):
            found.append("Returns" if returns else "Returns, of nothing,")
        if (
            re.search(r"^ +raise \w+Error", inspect.getsource(value), re.MULTILINE)
            and "Raises" not in sections
        ):
            found.append("Raises")
    return found


@pytest.mark.parametrize(("name", "value"), list(functions()))
def test_parameters_results_and_errors_are_described(name, value):
    assert not lacking(value), f"{name}: {', '.join(lacking(value))}"


def undescribed(size: int, *rest: int) -> int:
    """Add up.

    Args:
        sizes: how many.
    """
    if size < 0:
        raise ValueError(size)
    return size + sum(rest)


def test_what_is_missing_is_found():
    assert lacking(undescribed) == [
        "parameter rest",
        "parameter size",
        "sizes, which is no parameter,",
        "Returns",
        "Raises",
    ]
