"""What a comparison found, as values."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from .agreement import Agreement
from .measure import Spread


@dataclass(frozen=True)
class Pair:
    """Maps of one method by one peer, and ours as that peer would have returned them."""

    method: str
    library: str
    ours: Tensor = field(repr=False)  #: (N, 1, *spatial), on the CPU
    theirs: Tensor = field(repr=False)  #: the same shape, on the CPU
    agreement: Agreement = field(repr=False)


@dataclass(frozen=True)
class Skipped:
    """What could not be compared or measured, and why."""

    method: str
    library: str
    reason: str
    batch_size: int | None = None  #: None: the maps


@dataclass(frozen=True)
class Cost:
    """What one call on a batch takes; None where it was not measured."""

    method: str
    library: str
    batch_size: int
    seconds: Spread | None
    ratio_to_ours: Spread | None  #: of the seconds, within a round
    rounds: int
    peak_bytes: int | None  #: beyond model and images


@dataclass(frozen=True)
class Comparison:
    """Everything that :func:`compare` found."""

    settings: dict[str, Any]  #: model, layer, methods, device, dtype, …
    environment: dict[str, Any]  #: the machine, and versions
    versions: dict[str, str | None]  #: library -> version; None: not installed
    left_out: list[str]  #: libraries that are not installed
    images: Tensor = field(repr=False)  #: (N, C, *spatial), on the CPU
    pictures: Tensor | None = field(repr=False)  #: (N, H, W, 3) in [0, 1]
    paths: list[str]
    targets: list[int]
    failed: dict[str, str]  #: images that could not be read -> why
    raw: dict[str, Tensor] = field(repr=False)  #: method -> our raw maps, (N, 1, *spatial), on the CPU
    pairs: list[Pair]
    skipped: list[Skipped]
    costs: list[Cost]
    #: What a reader of the numbers has to know: scores that are not finite, maps that are zero.
    remarks: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the tensors as plain values, ready for JSON."""
        return {
            "settings": self.settings,
            "environment": self.environment,
            "libraries": self.versions,
            "not_installed": self.left_out,
            "images": [
                {"path": path, "target": target}
                for path, target in zip(self.paths, self.targets, strict=True)
            ],
            "images_not_read": [{"path": path, "reason": reason} for path, reason in self.failed.items()],
            "agreement": [
                {"method": pair.method, "library": pair.library, "map_size": list(pair.theirs.shape[2:])}
                | pair.agreement.as_dict()
                for pair in self.pairs
            ],
            "costs": [asdict(cost) for cost in self.costs],
            "skipped": [asdict(entry) for entry in self.skipped],
            "remarks": self.remarks,
        }

    def markdown(self) -> str:
        """The report without its picture: what was compared, agreement, time and memory, and what could not be done."""
        from .report import markdown

        return markdown(self)

    def text(self) -> str:
        """The same report to be read as it stands, on a terminal: names without what Markdown needs before some characters."""
        from .report import text

        return text(self)

    def write(self, folder: str | os.PathLike[str]) -> list[str]:
        """Write ``comparison.json``, ``comparison.md``, and ``comparison.png`` (``comparison-2.png``, … for further methods).

        Files of these names are replaced, all of them or none; pictures of an earlier comparison that this one lacks are removed.

        Args:
            folder: is made where it is not there.

        Returns:
            The names of the files. There is no picture of maps that are not two-dimensional.

        Raises:
            OSError: the folder cannot be made or written to.
            ModuleNotFoundError: matplotlib is not installed.
        """
        from .report import write

        return write(self, folder)


def titled(settings: dict[str, Any]) -> str:
    """The model's name, and who made it, where that is known."""
    made_by = " ".join(filter(None, (settings.get("source"), settings.get("source_version"))))
    return f"{settings['model']} ({made_by})" if made_by else str(settings["model"])


def encodable(text: str) -> str:
    """A text that can be written: the names of files may hold bytes that no encoding has."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
