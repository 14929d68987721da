"""Tables in Markdown, of committed results, between markers in the text of a page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def result(name: str) -> Any:
    """The record in ``results/NAME.json``."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def machine(environment: dict[str, object]) -> str:
    """The machine and the version of torch, in words."""
    pinned = "allocator pinned, see benchmarks/" if environment["allocator"] else "allocator not pinned"
    return f"{environment['device_name']}, {_count(environment['threads'])}, torch {environment['torch']}, {pinned}"


def _count(threads: object) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"


def markdown(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def put(text: str, blocks: dict[str, str], file: str) -> str:
    """A text with each block between its markers.

    Args:
        text: what the file holds.
        blocks: name of the markers -> what is to stand between them.
        file: its name, for the error.

    Raises:
        ValueError: a block's markers do not stand in the text exactly once.
    """
    for name, content in blocks.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text, found = pattern.subn(lambda match, content=content: f"{match[1]}{content}\n{match[2]}", text)
        if found != 1:
            raise ValueError(f"{file}: expected the markers of {name} once, found them {found} times")
    return text
