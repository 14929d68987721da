"""What a preflight found: findings in words, and the figures."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Topic = Literal[
    "attention",
    "attribution",
    "batch_norm",
    "checkpoint",
    "class_token",
    "compiled",
    "dead_cams",
    "disconnected",
    "layout",
    "mixing",
    "not_finite",
    "repeated",
    "second_order",
    "small_maps",
    "softmax",
    "target",
    "unreached",
    "warning",
    "zero_gradient",
]
Severity = Literal["error", "warning", "note"]
_ORDER: dict[Severity, int] = {"error": 0, "warning": 1, "note": 2}


@dataclass(frozen=True)
class Finding:
    """One thing worth knowing."""

    topic: Topic
    severity: (
        Severity  #: error: no map, or one that means nothing; warning: read before use; note: good to know
    )
    message: str  #: what it is, and what to do
    layer: str | None = None  #: where there are several


@dataclass(frozen=True)
class LayerFigures:
    """The figures of one layer."""

    name: str
    runs: int  #: in one forward
    #: Of what it returns; None where that is several tensors, or where it does not run.
    shape: tuple[int, ...] | None
    map_size: tuple[int, ...] | None = None  #: (h, w); None where there is no map
    dead_fraction: float | None = None  #: share of the batch's maps without a positive value

    def __str__(self) -> str:
        if self.map_size is None or self.dead_fraction is None:
            return f"{self.name}: no map"
        size = " x ".join(map(str, self.map_size)) or "no places"
        return f"{self.name}: map {size}, {self.dead_fraction:.0%} of the maps dead"


class CheckReport:
    """What :func:`~batchcam_captum.check` found; ``print`` shows it.

    Args:
        findings: of all layers.
        layers: the figures of each.
        samples: how many the batch had.
    """

    def __init__(
        self, findings: Iterable[Finding], layers: Iterable[LayerFigures], samples: int | None = None
    ) -> None:
        self.findings = tuple(sorted(dict.fromkeys(findings), key=lambda finding: _ORDER[finding.severity]))
        self.layers = tuple(layers)
        self.samples = samples

    @property
    def ok(self) -> bool:
        """Whether there is no error among the findings."""
        return all(finding.severity != "error" for finding in self.findings)

    @property
    def map_size(self) -> tuple[int, ...] | None:
        """(h, w) of the maps of the first layer, None where there are none."""
        return self.layers[0].map_size

    @property
    def dead_fraction(self) -> float | None:
        """Share of the batch's maps of the first layer without a positive value, None where there are none."""
        return self.layers[0].dead_fraction

    def about(self, topic: Topic) -> list[Finding]:
        """The findings on one topic.

        Args:
            topic: one of those of :class:`Finding`.

        Returns:
            They, in the order of the report; empty where there is nothing to say.
        """
        return [finding for finding in self.findings if finding.topic == topic]

    def __str__(self) -> str:
        counts = [
            f"{number} {severity}{'s' if number > 1 else ''}"
            for severity in _ORDER
            if (number := sum(finding.severity == severity for finding in self.findings))
        ]
        lines = [f"{'ok' if self.ok else 'not ok'}: {', '.join(counts) or 'nothing to remark'}"]
        lines += [f"  {figures}" for figures in self.layers]
        for finding in self.findings:
            head = f"{finding.severity}, {finding.topic.replace('_', ' ')}: "
            place = f"{finding.layer}: " if finding.layer and len(self.layers) > 1 else ""
            lines.append(
                textwrap.fill(
                    head + place + finding.message, 100, subsequent_indent="    ", break_on_hyphens=False
                )
            )
        return "\n".join(lines)

    __repr__ = __str__
