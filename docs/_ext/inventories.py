"""The other projects' names that these pages refer to, for builds that cannot reach their documentation.

``docs/inventories/PROJECT.txt`` has a line for each: role, name and address, where ``$`` stands for the name. From these the
files are made that intersphinx reads.
"""

from __future__ import annotations

import zlib
from pathlib import Path

HOMES = {
    "python": "https://docs.python.org/3/",
    "torch": "https://docs.pytorch.org/docs/stable/",
    "captum": "https://captum.ai/api/",
    "torchmetrics": "https://lightning.ai/docs/torchmetrics/stable/",
    "lightning": "https://lightning.ai/docs/pytorch/stable/",
    "numpy": "https://numpy.org/doc/stable/",
    "pandas": "https://pandas.pydata.org/docs/",
    "matplotlib": "https://matplotlib.org/stable/",
}


def mapping(lists: Path, folder: Path) -> dict[str, tuple[str, tuple[str | None, str]]]:
    """What ``intersphinx_mapping`` is set to: the project's own inventory, and the one made here where that cannot be had.

    Args:
        lists: folder of the lists.
        folder: where the files go.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, tuple[str, tuple[str | None, str]]] = {}
    for project, home in HOMES.items():
        lines = (lists / f"{project}.txt").read_text(encoding="utf-8").splitlines()
        made = folder / f"{project}.inv"
        made.write_bytes(inventory(project, [line for line in lines if line and not line.startswith("#")]))
        found[project] = (home, (None, str(made)))
    return found


def inventory(project: str, lines: list[str]) -> bytes:
    """A version-2 inventory, as Sphinx reads it."""
    head = f"# Sphinx inventory version 2\n# Project: {project}\n# Version: \n# The remainder is compressed using zlib.\n"
    body = "".join(
        "{1} {0} 1 {2} -\n".format(*line.split()) for line in lines
    )  # name, role, priority, address, shown name
    return head.encode() + zlib.compress(body.encode())
