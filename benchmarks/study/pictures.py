"""``python -m benchmarks.study.pictures --data-root DIR``: maps of both arms side by side, for docs/study.md.

Trains cross-entropy alone and the recipe with seed 0, as the grid does, and draws the first test image of each class.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from batchcam_captum import BatchGradCam
from batchcam_captum.evaluation import map_grid
from batchcam_captum.functional import normalize, prepare

from .arms import PLAIN
from .data import load
from .page import FOLDER
from .plans import RECIPE
from .settings import Settings
from .training import Trained, train

SETS = ("fashion-mnist", "decoy-mnist")


def draw(data_name: str, root: Path, device: torch.device, path: Path) -> None:
    """Train both arms on a data set, and draw their maps.

    Args:
        data_name: of the data set.
        root: torchvision's folder.
        device: where to train.
        path: of the picture.
    """
    data = load(data_name, root)
    labels = data.evaluation.labels
    first = torch.stack([(labels == label).nonzero()[0, 0] for label in range(data.num_classes)])
    images = data.standardized(data.evaluation.images[first]).to(device)
    targets = labels[first].to(device)
    columns: dict[str, tuple[Tensor, bool]] = {"image": (data.evaluation.images[first, 0], False)}
    for heading, arm in (("cross-\nentropy", PLAIN), ("recipe", RECIPE)):
        trained = train(Settings(data_name, "simple_cnn", arm, seed=0), data, device)
        for method, name in (("grad_cam", "Grad-CAM"), ("hires_cam", "HiResCAM")):
            columns[f"{heading}\n{name}"] = (_maps(trained, method, images, targets), True)
    prototypes = data.clean_prototypes().maps(columns["recipe\nGrad-CAM"][0].shape[1:])
    columns["prototype"] = (normalize(prototypes)[:, 0], True)
    title = f"{data_name}, SimpleCNN: maps of the true class on the first test image of each class"
    map_grid(columns, [str(label) for label in range(data.num_classes)], title=title, across=True).savefig(
        path, dpi=110
    )


def _maps(trained: Trained, method: str, images: Tensor, targets: Tensor) -> Tensor:
    cams = BatchGradCam(trained.model, trained.layer, method=method).attribute(images, target=targets)
    return prepare(cams).maps[:, 0].cpu()


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--data-root", type=Path, required=True)
    made.add_argument("--device", default="cpu")
    made.add_argument("--data", nargs="+", default=SETS)
    made.add_argument("--output", type=Path, default=FOLDER)
    options = made.parse_args()
    for name in options.data:
        draw(name, options.data_root, torch.device(options.device), options.output / f"study-maps-{name}.png")


if __name__ == "__main__":
    main()
