"""Put the tables of the demo's committed results into the README, between their markers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
COMMANDS = {
    "digits": "batchcam demo --seeds 0 1 2",
    "fashion-mnist": "batchcam demo --data fashion-mnist --data-root DIR --seeds 0 1 2",
}


def block(name: str) -> str:
    """What stands between the markers of a data set: the command, the recipe and machine, the table."""
    results = json.loads((RESULTS / f"demo-{name}.json").read_text(encoding="utf-8"))
    settings = results["settings"]
    return "\n".join(
        [
            f"**{name}**: `{COMMANDS[name]}`; {settings['epochs']} epochs, batches of {settings['batch_size']}, seeds "
            f"{', '.join(map(str, settings['seeds']))}; {machine(results['environment'])}.",
            "",
            results["table"],
        ]
    )


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


def filled(text: str) -> str:
    """The README's text with every block brought up to date."""
    return put(text, {name: block(name) for name in COMMANDS}, "README.md")


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text(encoding="utf-8")), encoding="utf-8")
