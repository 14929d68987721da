"""Real data through the commands, as a user gives them: is what they write what direct calls give?

Fashion-MNIST's test set with a network that ``batchcam demo`` trains for it, and the pictures that come with scikit-image with
ImageNet weights that come with a package, see ``pretrained.py``. Needs the extra `test`, chromium and chromedriver.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pretrained
import torch
from browser import seen
from captum.attr import LayerGradCam
from common import Report, Spread, parser, start
from torch import Tensor, nn

from batchcam_captum import BatchGradCam
from batchcam_captum.demo.model import SimpleCNN
from batchcam_captum.explain import Status, Store, open_store
from batchcam_captum.loading import Preprocessing, load_images
from batchcam_captum.loading.images import SUFFIXES

#: Of the largest value, in float32.
REACH = 1e-5
#: How many samples are compared, and those of a batch of the command.
_POSITIONS, _BATCH = 64, 32
_ALONE = "map of the image alone, from BatchGradCam's, median"
#: What the weights should see. ImageNet has no class for the other pictures, such as the astronaut.
SENSIBLE = {
    "chelsea.png": {"tabby", "tiger cat", "Egyptian cat", "Persian cat", "Siamese cat"},
    "coffee.png": {"espresso", "cup", "coffee mug"},
    "motorcycle_left.png": {"moped", "motor scooter"},
    "motorcycle_right.png": {"moped", "motor scooter"},
    "rocket.jpg": {"missile", "projectile", "space shuttle"},
}


@dataclass(frozen=True)
class Real:
    """A store, and what its numbers should be."""

    name: str
    commands: list[str]  #: as given, in a folder of their own
    printed: str  #: by ``batchcam explain``
    store: Store
    page: Path  #: the report
    writing_seconds: float  #: of ``batchcam report``
    model: nn.Module
    layer: str
    image: Callable[[int], Tensor]  #: position -> (1, C, H, W)
    ids: list[str]  #: of all samples
    unreadable: frozenset[str] = frozenset()  #: those of them that cannot be read


def given(folder: Path, *command: str | Path) -> tuple[str, float]:
    """Give a command in a folder, as a user does; what it prints, and its seconds."""
    words = [str(Path(sysconfig.get_path("scripts"), "batchcam")), *map(str, command)]
    began = time.perf_counter()
    done = subprocess.run(words, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout, time.perf_counter() - began


def fashion(folder: Path, root: Path) -> tuple[Real, dict[str, Spread]]:
    """Fashion-MNIST's test set, with a network that the demo trains for an epoch, and figures of its own."""
    from torchvision.datasets import FashionMNIST

    data = ("--data", "fashion-mnist", "--data-root", root)
    train = ("demo", *data, "--epochs", "1", "--output", "trained", "--quiet")
    given(folder, *train)
    checkpoint = next((folder / "trained").rglob("regularized.pt"))
    name = str(checkpoint.relative_to(folder))
    explain = (
        "explain",
        "demo",
        "--checkpoint",
        name,
        *data,
        "--layer",
        "features",
        "--output",
        "fashion.zarr",
    )
    printed, _ = given(folder, *explain)
    page, writing_seconds = _reported(folder, "fashion")

    saved = torch.load(checkpoint, weights_only=True)
    model = SimpleCNN(saved["num_classes"], saved["image_size"]).eval()
    model.load_state_dict(saved["model"])
    test = FashionMNIST(root, train=False)
    images = (test.data[:, None].float() / 255 - saved["mean"]) / saved["std"]
    with torch.no_grad():
        loop = torch.cat([model(batch).argmax(1) for batch in images.split(500)])
    store = open_store(folder / "fashion.zarr")
    predictions, labels = (torch.from_numpy(array[:]) for array in (store.predictions, store.labels))
    right, expected = (
        (found == whose).float().mean().item()
        for found, whose in ((predictions, labels), (loop, test.targets))
    )
    figures = {
        "labels that are not the data set's": _count(labels != test.targets),
        "accuracy, off that of a plain loop": Spread.exact(abs(right - expected)),
    }
    real = Real(
        "Fashion-MNIST's test set, the demo's network",
        _shown(root, train, explain, ("report", "fashion.zarr")),
        printed,
        store,
        page,
        writing_seconds,
        model,
        "features",
        lambda position: images[position : position + 1],
        [str(position) for position in range(len(images))],
    )
    return real, figures


def pictures(folder: Path) -> tuple[Real, dict[str, Spread]]:
    """scikit-image's pictures, grey, with colours, transparent and moving ones, and how many are not seen as what they show."""
    copied = copy_pictures(folder / "pictures")
    shutil.copy(pretrained.__file__, folder)
    mean, std = (",".join([str(value)] * 3) for value in (pretrained.MEAN, pretrained.STD))
    size = ("--size", str(pretrained.SIZE), "--mean", mean, "--std", std)
    explain = (
        "explain",
        "pretrained.py:efficientnet_lite0",
        "--data",
        "pictures",
        "--layer",
        pretrained.LAYER,
        *size,
    )
    explain = (*explain, "--output", "pictures.zarr")
    printed, _ = given(folder, *explain)
    page, writing_seconds = _reported(folder, "pictures")
    store = open_store(folder / "pictures.zarr")
    names = pretrained.categories()
    seen_as = {name: names[each] for name, each in zip(store.ids[:], store.predictions[:], strict=True)}
    wrong = [name for name, sensible in SENSIBLE.items() if seen_as[name] not in sensible]
    real = Real(
        "scikit-image's pictures, EfficientNet-Lite0",
        _shown(None, explain, ("report", "pictures.zarr")),
        printed,
        store,
        page,
        writing_seconds,
        pretrained.efficientnet_lite0(),
        pretrained.LAYER,
        lambda position: read_picture(folder / "pictures" / copied[position]),
        copied,
        frozenset(name for name in copied if not opens(folder / "pictures" / name)),
    )
    return real, {"pictures seen as something else": Spread.exact(len(wrong))}


def copy_pictures(folder: Path, *, only: tuple[str, ...] = ()) -> list[str]:
    """Put the pictures that are inside scikit-image's package into a folder; their names.

    Args:
        folder: new.
        only: names; by default all.
    """
    import skimage

    folder.mkdir(parents=True)
    found = sorted(
        path
        for path in Path(skimage.__file__).with_name("data").iterdir()
        if path.suffix.lower() in SUFFIXES and path.name in (only or (path.name,))
    )
    for path in found:
        shutil.copy(path, folder)
    return [path.name for path in found]


def opens(path: Path) -> bool:
    """Whether Pillow can read it; of one of scikit-image's files it knows the kind, and not how its samples lie."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
    except OSError:
        return False
    return True


def read_picture(path: Path) -> Tensor:
    """(1, 3, 224, 224), as EfficientNet-Lite0 takes it."""
    size, mean, std = (pretrained.SIZE,) * 2, (pretrained.MEAN,) * 3, (pretrained.STD,) * 3
    return load_images(path, Preprocessing(size, mean, std, crop=0.875)).tensor


def compared(real: Real, positions: list[int], readable: list[int], *, captum: bool) -> dict[str, Spread]:
    """How far maps and scores are from those of direct calls, and how many predictions differ.

    Args:
        real: what is compared.
        positions: of which samples.
        readable: all that could be read.
        captum: with Captum's ``LayerGradCam`` as well.
    """
    ours = BatchGradCam(real.model, real.layer)
    theirs = LayerGradCam(real.model, real.model.get_submodule(real.layer))
    away: dict[str, list[float]] = defaultdict(list)
    predictions = 0

    def note(name: str, stored: Any, direct: Tensor) -> None:
        difference = (torch.as_tensor(stored) - direct.detach()).abs().max()
        away[name].append((difference / direct.abs().max().clamp_min(1e-30)).item())

    for first in sorted({position - position % _BATCH for position in positions}):
        batch = [each for each in readable if first <= each < first + _BATCH]
        images = torch.cat([real.image(each) for each in batch])
        scores = real.model(images)
        targets = scores.argmax(1)
        maps = ours.attribute(images, target=targets)
        captums = theirs.attribute(images, target=targets, relu_attributions=False) if captum else maps
        for position in set(batch).intersection(positions):
            row, stored = batch.index(position), real.store.maps[position]
            classes = {int(real.store.predictions[position]), *real.store.targets[position].tolist()}
            predictions += classes != {int(targets[row])}
            note("scores, from the model's", real.store.scores[position], scores[row])
            note("map, from BatchGradCam's", stored, maps[row])
            if captum:
                note("map, from Captum's", stored, captums[row])
            alone = real.image(position)
            note(_ALONE, stored, ours.attribute(alone, target=int(real.model(alone).argmax()))[0])
    figures = {name: Spread.exact(max(values)) for name, values in away.items() if name != _ALONE}
    return {
        "predictions that differ": Spread.exact(float(predictions)),
        _ALONE: Spread.of(away[_ALONE]),
    } | figures


def note(report: Report, real: Real, figures: dict[str, Spread], *, captum: bool) -> None:
    """Look at a store and its report, and add all figures."""
    store = real.store
    readable = [position for position, name in enumerate(real.ids) if name not in real.unreadable]
    positions = random.Random(0).sample(readable, min(_POSITIONS, len(readable)))
    ids = list(store.ids[:])
    damaged = {name for name, status in zip(ids, store.status[:], strict=True) if status == Status.DAMAGED}
    counted = {
        "complete, 0: yes": Spread.exact(0.0 if store.complete else 1.0),
        "samples not written": Spread.exact(float((store.status[:] == Status.MISSING).sum())),
        "wrongly damaged, or not": Spread.exact(len(damaged ^ real.unreadable)),
        "samples missing or twice": Spread.exact(
            abs(len(ids) - len(real.ids)) + sum(a != b for a, b in zip(ids, real.ids, strict=False))
        ),
    }
    differences = compared(real, positions, readable, captum=captum)
    opened = seen(real.page, pictures=True)
    for message in opened.messages:
        print(message, file=sys.stderr)
    pace = re.search(r"([\d,.]+) images a second", real.printed)
    assert pace is not None, real.printed
    case = f"{real.name}, {len(store):,} images"
    names = store.class_names
    report.add_case(
        case,
        commands=real.commands,
        compared=len(positions),
        damaged=sorted(damaged),
        **({"predictions": _predictions(store, names)} if captum and names else {}),
        console=opened.messages,
    )
    for name, value in (counted | differences | figures).items():
        report.add_figure(case, name, value, reach=REACH if ", from " in name else 0)
    report.add_figure(case, "messages on the report's console", Spread.exact(len(opened.messages)), reach=0)
    for name, number in {
        "images a second": float(pace[1].replace(",", "")),
        "report, MB": real.page.stat().st_size / 1e6,
        "report written, s": real.writing_seconds,
        "first pictures, s": opened.seconds,
    }.items():
        report.add_figure(case, name, Spread.exact(number), reach=None)


def _predictions(store: Store, names: tuple[str, ...]) -> dict[str, str]:
    """What each picture is taken for, and how surely."""
    written = store.written()
    columns = (array[:][written] for array in (store.ids, store.predictions, store.confidences))
    return {name: f"{names[each]} ({sure:.2f})" for name, each, sure in zip(*columns, strict=True)}


def _reported(folder: Path, name: str) -> tuple[Path, float]:
    _, seconds = given(folder, "report", f"{name}.zarr", "--quiet")
    return folder / f"{name}.html", seconds


def _shown(root: Path | None, *commands: tuple[str | Path, ...]) -> list[str]:
    """The commands, without where the data happens to be here."""
    return [
        " ".join(["batchcam", *("DIR" if word == root else str(word) for word in command)])
        for command in commands
    ]


def _count(which: Tensor) -> Spread:
    return Spread.exact(float(which.sum()))


def main() -> None:
    made = parser(__doc__, rounds=1)
    made.add_argument("--data-root", type=Path, metavar="DIR", help="torchvision's folder with FashionMNIST")
    options = start(made)
    root = _root(options)
    report = Report(
        "explain_real",
        options,
        "Each command in a process of its own. How far maps and scores are from those of direct calls is the largest "
        "difference divided by the largest absolute value; over the samples compared, the largest of that with the batches of "
        "the command, and the median with one image a call: in a batch of another size sums are rounded otherwise, and where "
        "that moves a value across a corner of ReLU6 the gradient there is another one.",
        "Whatever else ran on the machine slows the images a second.",
    )
    with tempfile.TemporaryDirectory() as folder:
        if not options.quick:
            note(report, *fashion(Path(folder), root), captum=False)
        note(report, *pictures(Path(folder)), captum=True)
    report.finish()


def _root(options: argparse.Namespace) -> Path:
    """Where the data is, which is no setting: it says nothing of the numbers."""
    root = options.data_root
    del options.data_root
    if root is None and not options.quick:
        sys.exit("explain_real: expected --data-root DIR, torchvision's folder with FashionMNIST, got none")
    return Path(os.path.abspath(root or "."))


if __name__ == "__main__":
    main()
