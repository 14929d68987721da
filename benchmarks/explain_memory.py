"""Does memory grow while a data set is explained?

Resident memory of a process that explains 10,000 images, and of its children, from 10 % of them on; everything is written.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import timm
import torch
from common import Report, Spread, parser, start
from torch.utils.data import DataLoader, Dataset

from batchcam_captum.explain import explain_dataset

REACH = 1.02
_IMAGES, _PIXELS, _BATCH = 10_000, 64, 50


class _Drawn(Dataset[tuple[torch.Tensor, int]]):
    """Random images, made when they are asked for; notes the memory when it has given the next tenth."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.megabytes: list[float] = []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index and index % (self.count // 10) == 0:
            self.megabytes.append(_resident())
        return torch.rand(3, _PIXELS, _PIXELS, generator=torch.Generator().manual_seed(index)), index % 10


def _resident() -> float:
    """Megabytes of this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def main() -> None:
    made = parser(__doc__, rounds=1)
    options = start(made)
    count = 200 if options.quick else _IMAGES
    report = Report(
        "explain_memory", options, "The images are read in the process that is measured, without workers."
    )
    model = timm.create_model("resnet18", num_classes=1000).eval().to(options.device)
    data = _Drawn(count)
    with tempfile.TemporaryDirectory() as folder:
        explain_dataset(
            model,
            "layer3",
            DataLoader(data, batch_size=_BATCH),
            Path(folder, "store.zarr"),
            progress=sys.stderr.isatty(),
        )
    first, *rest = [*data.megabytes, _resident()]
    case = f"resnet18, batch {_BATCH}, {count} images of {_PIXELS} px, maps of layer3 and thumbnails"
    report.add_case(case, megabytes=[first, *rest], at=[f"{10 * tenth} %" for tenth in range(1, 11)])
    report.add_figure(
        case, "resident memory at the end ÷ at 10 %", Spread.of([rest[-1] / first]), reach=REACH
    )
    report.add_figure(case, "highest after ÷ at 10 %", Spread.of([max(rest) / first]), reach=REACH)
    report.finish()


if __name__ == "__main__":
    main()
