"""Put the tables of the committed results into the README, between their markers."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
COMMANDS = {
    "digits": "batchcam demo --seeds 0 1 2",
    "fashion-mnist": "batchcam demo --data fashion-mnist --data-root DIR --seeds 0 1 2",
}


def block(name: str) -> str:
    """What stands between the markers of a data set: the command, the recipe and machine, the table."""
    results = json.loads((RESULTS / f"demo-{name}.json").read_text())
    settings, machine = results["settings"], results["environment"]
    pinned = "allocator pinned, see benchmarks/" if machine["allocator"] else "allocator not pinned"
    return "\n".join(
        [
            f"**{name}**: `{COMMANDS[name]}`; {settings['epochs']} epochs, batches of {settings['batch_size']}, seeds "
            f"{', '.join(map(str, settings['seeds']))}; {machine['device_name']}, {machine['threads']} "
            f"threads, torch {machine['torch']}, {pinned}.",
            "",
            results["table"],
        ]
    )


def filled(text: str) -> str:
    """The README's text with every block brought up to date."""
    for name in COMMANDS:
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text, found = pattern.subn(lambda match, name=name: f"{match[1]}{block(name)}\n{match[2]}", text)
        if found != 1:
            raise ValueError(f"README.md: expected the markers of {name} once, found them {found} times")
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text()))
