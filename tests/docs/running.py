"""Runs a page's code, statement by statement, and holds what the page says of it against what comes out.

Two things a page says are compared. A comment behind a statement with a shape in it, ``# (N, 1, h, w)``: numbers have to be
those of what is assigned or printed, and letters stand for any number, N for the same one in the whole comment, h for that of
one tensor. And a block of output, three backticks and ``text``, behind a block of code: it is what that block prints.
Commands whose input the page has made are run as well.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.docs import commands
from tests.docs.pages import Block, Page

_SHAPE = re.compile(r"(?<!\w)\((?P<sizes>(?:\d+|[A-Za-z])(?:, (?:\d+|[A-Za-z]))+|(?:\d+|[A-Z]),)\)")
_SIZES = re.compile(r"[\[(](\d+(?:, \d+)*),?[\])]")
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?!\w)")


class PageError(AssertionError):
    """A page says something that is not so."""


@dataclass
class Held:
    """How much of what a page says has been held against what comes out."""

    shapes: int = 0
    outputs: int = 0
    commands: int = 0


def run_page(page: Page, names: dict[str, Any]) -> Held:
    """Run a page's code in its order.

    Args:
        page: the page.
        names: what the code finds, and leaves behind.

    Raises:
        PageError: something fails, or is not as the page says; with the file and the line.
        CommandError: a command fails.
    """
    held, printed = Held(), None
    for block in page.blocks:
        if block.language == "python":
            printed, shapes = _run(block, names)
            held.shapes += shapes
            continue
        if block.language == "text":
            if printed is None:
                raise PageError(f"{block.where}: output without code before it")
            compare_output(block, printed)
            held.outputs += 1
        elif block.language == "sh":
            held.commands += commands.run(block)
        printed = None
    return held


def _run(block: Block, names: dict[str, Any]) -> tuple[str, int]:
    source = "\n" * (block.line - 1) + block.text  # so that line numbers are those of the page
    output, compared = io.StringIO(), 0
    comments = dict(_comments(source))
    for statement in ast.parse(source, block.where).body:
        code = compile(ast.Module([statement], []), str(block.page), "exec")
        before = output.tell()
        try:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(io.StringIO()):
                exec(code, names)
        except Exception as error:
            raise PageError(f"{_at(block, statement)}: {type(error).__name__}: {error}") from error
        comment = comments.get(statement.end_lineno or 0, "")
        try:
            compared += _compare_shapes(comment, statement, names, output.getvalue()[before:])
        except PageError as error:
            raise PageError(f"{_at(block, statement)}: {error}") from None
    return output.getvalue(), compared


def _at(block: Block, statement: ast.stmt) -> str:
    return block.where.rpartition(":")[0] + f":{statement.lineno}"


def _comments(source: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def _compare_shapes(comment: str, statement: ast.stmt, names: dict[str, Any], printed: str) -> int:
    stated = [found["sizes"].rstrip(",").split(", ") for found in _SHAPE.finditer(comment)]
    if not stated:
        return 0
    if isinstance(statement, ast.Assign):
        (target,) = statement.targets
        parts = target.elts if isinstance(target, ast.Tuple) else [target]
        values = [eval(compile(ast.Expression(_loaded(part)), "", "eval"), names) for part in parts]
        if len(values) != len(stated):
            raise PageError(f"expected a shape for each of {len(values)} names, got {comment!r}")
    elif isinstance(statement, ast.Expr):
        values = [printed]
    else:
        return 0  # of a function's parameters, of what a loop goes over
    shared: dict[str, int] = {}
    for value, letters in zip(values, stated, strict=False):
        for each in value if isinstance(value, list | tuple) else [value]:
            got = _sizes(each)
            own: dict[str, int] = {}
            expected = [
                int(letter)
                if letter.isdigit()
                else (shared if letter.isupper() else own).setdefault(letter, size)
                for letter, size in zip(letters, got, strict=False)
            ]
            if len(letters) != len(got) or expected != got:
                raise PageError(f"expected {comment!r}, got {tuple(got)}")
            if (
                "in [0, 1]" in comment
                and not isinstance(each, str)
                and not 0 <= each.min() <= each.max() <= 1
            ):
                raise PageError(f"expected {comment!r}, got {float(each.min())} … {float(each.max())}")
    return 1


def _loaded(target: ast.expr) -> ast.expr:
    return ast.parse(ast.unparse(target), mode="eval").body


def _sizes(value: Any) -> list[int]:
    if isinstance(value, str):
        found = _SIZES.search(value)
        if found is None:
            raise PageError(f"expected a shape to be printed, got {value!r}")
        return [int(size) for size in found[1].split(", ")]
    return list(value.shape)


def compare_output(block: Block, printed: str) -> None:
    """Hold a block of output against what was printed.

    Raises:
        PageError: they differ by more than spaces at the ends of lines and, where the page says so, the numbers.
    """
    expected, got = (_trimmed(text) for text in (block.text, printed))
    same = expected == got
    if block.tolerance:
        numbers, values = ([float(each) for each in _NUMBER.findall(text)] for text in (expected, got))
        same = _without_numbers(expected) == _without_numbers(got) and all(
            abs(number - value) <= block.tolerance for number, value in zip(numbers, values, strict=True)
        )
    if not same:
        raise PageError(f"{block.where}: expected the output\n{expected}\n\ngot\n{got}")


def _trimmed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


def _without_numbers(text: str) -> list[str]:
    return _NUMBER.sub("#", text).split()
