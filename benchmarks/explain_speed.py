"""How fast is explaining a data set, next to a bare `no_grad` loop over the same loader?

ResNet-18, 224 px: a map of the predicted class for each image, everything written to a store that is new in each round. The
images are in memory, where nothing but the model takes time, and JPEG files that workers read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import timm
import torch
from common import Report, interleaved, parser, start
from torch.utils.data import DataLoader, Dataset, TensorDataset

from batchcam_captum.explain import explain_dataset

BARE, EXPLAIN = "bare no_grad loop", "explain_dataset"
#: 0.95 of the images a second.
REACH = 1 / 0.95
_IMAGES, _PIXELS, _BATCH = 512, 224, 32


class _Files(Dataset[Any]):
    """JPEG files as tensors."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        from torchvision.io import decode_jpeg, read_file

        return decode_jpeg(read_file(str(self.paths[index]))).float() / 255


def _in_memory(count: int, folder: Path) -> Dataset[Any]:
    return TensorDataset(torch.rand(count, 3, _PIXELS, _PIXELS), torch.arange(count) % 10)


def _on_disk(count: int, folder: Path) -> Dataset[Any]:
    from skimage import data
    from torchvision.io import write_jpeg
    from torchvision.transforms.v2.functional import resize

    picture = resize(torch.from_numpy(data.astronaut()).permute(2, 0, 1), [_PIXELS, _PIXELS])
    paths = [folder / f"{number}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        write_jpeg(picture.roll(number, 2), str(path))
    return _Files(paths)


#: Name -> what makes the data set, and its workers.
DATA: dict[str, tuple[Callable[[int, Path], Dataset[Any]], int]] = {
    "in memory": (_in_memory, 0),
    "JPEG files, 1 worker": (_on_disk, 1),
}


def main() -> None:
    made = parser(__doc__, rounds=7, seconds=900)
    made.add_argument("--images", type=int, default=_IMAGES, help="of a round")
    options = start(made)
    count = 64 if options.quick else options.images
    report = Report(
        "explain_speed",
        options,
        "Each round is one whole call: hashing the model, making the store, and all writing.",
    )
    model = timm.create_model("resnet18", num_classes=1000).eval().to(options.device)
    for name, (make, workers) in list(DATA.items())[: 1 if options.quick else None]:
        case = f"resnet18, batch {_BATCH}, {count} images {name}"
        if report.has(case):
            continue
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            loader = DataLoader(make(count, folder), batch_size=_BATCH, num_workers=workers)

            @torch.no_grad()
            def bare(loader: DataLoader[Any] = loader) -> None:
                for batch in loader:
                    images = batch[0] if isinstance(batch, list) else batch
                    model(images.to(options.device)).cpu()

            def explain(loader: DataLoader[Any] = loader, folder: Path = folder) -> None:
                explain_dataset(model, "layer4", loader, folder / "store.zarr", overwrite=True)

            times = interleaved({BARE: bare, EXPLAIN: explain}, options)
        report.add_case(case, times=times, images=count, workers=workers)
        report.add_figure(case, f"{EXPLAIN} ÷ {BARE}", times.ratio(EXPLAIN, BARE), reach=REACH)
    report.finish()


if __name__ == "__main__":
    main()
