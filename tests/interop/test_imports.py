"""Importing the package of the peers needs none of them, and nothing else that is heavy."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchcam_captum import interop
from tests.test_import import imports_of

PACKAGE = Path(interop.__file__).parent
FILES = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}


def on_import(path: Path) -> Iterator[str]:
    """What the file's own lines import, functions and branches for type checkers left out."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""


@pytest.mark.parametrize("path", FILES.values(), ids=FILES)
def test_heavy_packages_are_imported_where_they_are_needed(path: Path) -> None:
    tops = {name.split(".")[0] for name in on_import(path)}
    assert tops <= {"torch", "tqdm", *sys.stdlib_module_names}


@pytest.mark.parametrize("path", FILES.values(), ids=FILES)
def test_nothing_of_training_is_used(path: Path) -> None:
    own = {name.split(".")[1] for name in imports_of(path) if name.startswith("batchcam_captum.")}
    assert not own & {"training", "losses", "prototypes", "demo", "cli"}


@pytest.mark.parametrize("name", interop.__all__)
def test_public_names_resolve(name: str) -> None:
    assert getattr(interop, name) is not None
