"""SECURITY.md keeps its word: what may come from strangers runs no code."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import batchcam_captum

PACKAGE = Path(batchcam_captum.__file__).parent


@cache
def calls() -> list[tuple[str, str, ast.Call]]:
    """Every call in the package: file, what is called, and the call."""
    return [
        (path.relative_to(PACKAGE).as_posix(), ast.unparse(node.func), node)
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]


def test_pickles_of_weights_alone_are_loaded():
    loads = {
        file: {word.arg: ast.unparse(word.value) for word in call.keywords}.get("weights_only")
        for file, name, call in calls()
        if name == "torch.load"
    }
    assert set(loads.values()) == {"True"}
    assert len(loads) >= 2


def test_nothing_else_evaluates_what_it_reads():
    names = {name for _, name, _ in calls()}
    assert not names & {"eval", "exec", "pickle.load", "pickle.loads", "yaml.load", "np.load", "os.system"}
