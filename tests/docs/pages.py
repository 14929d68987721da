"""The pages of the documentation, cut into their fenced blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
#: Made by the build or by a script, or no page.
_NO_PAGES = ("_build", "_static", "_templates", "auto_examples", "reference/api")
#: Before a block of output: the numbers in it are those of one machine, and may differ by this much on another.
_LOOSE = re.compile(r"<!-- numbers ± (?P<tolerance>[\d.]+) -->")
_FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,}|:{3,})(?P<info>[^`\n]*)$")


@dataclass(frozen=True)
class Block:
    """A fenced block: what stands after the fence's ticks, the number of its first line, and its text."""

    page: Path
    language: str
    line: int
    text: str
    #: Of a block of output, how far its numbers may be off.
    tolerance: float = 0

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass
class Page:
    """A page's blocks, and its lines with those of the blocks left empty, so that line numbers stay what they are."""

    path: Path
    blocks: list[Block] = field(default_factory=list)
    prose: list[str] = field(default_factory=list)

    def of(self, language: str) -> list[Block]:
        return [block for block in self.blocks if block.language == language]


def read(path: Path, text: str | None = None) -> Page:
    """Cut a page.

    Args:
        path: of the page, inside of the repository.
        text: in place of the file's.
    """
    page = Page(path)
    opened: re.Match[str] | None = None
    body: list[str] = []
    tolerance = 0.0
    lines = (path.read_text(encoding="utf-8") if text is None else text).splitlines()
    for number, line in enumerate(lines, 1):
        if opened is not None:
            page.prose.append("")
            if line.strip() == opened["ticks"]:
                inside = "".join(f"{each.removeprefix(opened['indent'])}\n" for each in body)
                language, first = opened["info"].strip().split(" ")[0], number - len(body)
                page.blocks.append(Block(path, language, first, inside, tolerance))
                opened, body, tolerance = None, [], 0.0
            else:
                body.append(line)
            continue
        fence = _FENCE.match(line)
        if fence is not None and fence["ticks"].startswith("`"):  # what stands between colons is prose
            opened = fence
            page.prose.append("")
            continue
        loose = _LOOSE.fullmatch(line.strip())
        tolerance = float(loose["tolerance"]) if loose is not None else 0.0 if line.strip() else tolerance
        page.prose.append(line)
    if opened is not None:
        raise ValueError(f"{path}: expected an end of the block that begins with {opened[0]!r}, got none")
    return page


def _shown(path: Path) -> bool:
    place = path.relative_to(DOCS).as_posix()
    return not place.startswith(_NO_PAGES)


#: Every page that people read, by its place in the repository.
PATHS = sorted(
    path
    for path in (
        *(path for path in DOCS.rglob("*.md") if _shown(path)),
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
        *(ROOT / "benchmarks" / name for name in ("README.md", "study/README.md")),
    )
    if path.exists()
)
PAGES = {path.relative_to(ROOT).as_posix(): read(path) for path in PATHS}
