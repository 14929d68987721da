"""What the demo shows: a table and the maps."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..attribution import BatchGradCam
from ..evaluation.figures import map_grid
from ..functional import prepare, resize
from ..prototypes import ClassPrototypes
from .data import DemoData

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: (key, name in the table, factor, digits)
_ROWS = (
    ("accuracy", "test accuracy, %", 100, 2),
    ("l1", "L1 of cam to prototype (smaller is nearer)", 1, 3),
    ("ssim", "SSIM of cam and prototype (larger is nearer)", 1, 3),
    ("cosine", "cosine of cam and prototype (larger is nearer)", 1, 3),
    ("dead_fraction", "dead cams, %", 100, 2),
    ("seconds_per_step", "milliseconds per step, median", 1000, 2),
)


def table(runs: Sequence[dict[str, Any]], heading: str) -> str:
    """Return both arms side by side as a Markdown table: the mean, and ± the standard deviation of several seeds.

    Args:
        runs: one entry per seed, with ``"cross_entropy"``, ``"regularized"`` and ``"step_ratio"``.
        heading: of the column of the regularized arm.
    """
    rows = [("", "cross-entropy", heading)]
    for key, name, factor, digits in _ROWS:
        plain, regularized = (
            _cell([run[arm][key] * factor for run in runs], digits)
            for arm in ("cross_entropy", "regularized")
        )
        rows.append((name, plain, regularized))
    rows.append(("ratio of the steps", "1", _cell([run["step_ratio"] for run in runs], 3)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _cell(values: list[float], digits: int) -> str:
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def figure_of_maps(
    data: DemoData, plain: BatchGradCam, regularized: BatchGradCam, prototypes: ClassPrototypes, loss: str
) -> Figure:
    """Draw for each class its first test image, the map of each arm, and the prototype.

    Args:
        data: images.
        plain: the model trained with cross-entropy alone.
        regularized: the model trained with the cam loss.
        prototypes: of all classes.
        loss: the name of the cam loss.
    """
    chosen = torch.stack([(data.test.labels == c).nonzero()[0, 0] for c in range(len(data.class_names))])
    maps = prototypes.maps()[:, 0]
    images, labels = (part[chosen].to(maps.device) for part in (data.test.images, data.test.labels))
    before, steps = _heatmaps(plain, images, labels)
    after, _ = _heatmaps(regularized, images, labels)
    return map_grid(
        {
            "image": (images[:, 0], False),
            "map before:\ncross-entropy": (before, True),
            f"map after:\n+ {loss}": (after, True),
            "prototype": (maps, True),
        },
        data.class_names,
        title=f"Grad-CAM of the true class, first test image of each class; {steps}",
        across=True,
    )


def _heatmaps(grad_cam: BatchGradCam, images: Tensor, target: Tensor) -> tuple[Tensor, str]:
    """Return maps of the images' size, (N, H, W), and what was done to them."""
    cams = grad_cam.attribute(images, target=target)
    assert isinstance(cams, Tensor)  # the layer has one output
    steps = "relu, divided by the maximum"
    if cams.shape[2:] != images.shape[2:]:
        steps += ", enlarged bilinearly"
    return resize(prepare(cams).maps, images.shape[2:])[:, 0], steps
