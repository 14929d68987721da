"""The demo from its settings to its files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..attribution import BatchGradCam
from ..environment import environment
from ..evaluation import evaluate_cams
from ..files import output_folder, written_together
from ..functional import get_distance
from ..loading.devices import check_device
from ..losses import LOSSES, CamLoss
from ..prototypes import ClassPrototypes
from ..training import CamRegularizer
from . import report
from .data import DataName, DemoData, load_data
from .train import Arm, layer_of, train_both

_TEST_BATCH = 500
_RESULTS = "results.json"
_SEED_FILES = ("maps.png", "misclassified.png", "cross_entropy.pt", "regularized.pt")


@dataclass(frozen=True)
class DemoSettings:
    """What the demo is run with.

    Args:
        output: the folder for the results; it is made if it is missing.
        data: ``"digits"``, ``"mnist"`` or ``"fashion-mnist"``.
        data_root: the folder of torchvision's data sets.
        download: let torchvision download what is missing.
        loss: name of the loss of the second arm, see :data:`batchcam_captum.losses.LOSSES`.
        distance: of that loss, where it has one.
        weight: λ.
        epochs: passes over the training images; None: 20 for the digits, 5 otherwise.
        batch_size: N; None: 64 for the digits, 128 otherwise.
        learning_rate: of Adam.
        seeds: one run each.
        device: where to train.
        progress: show progress bars.
    """

    output: Path
    data: DataName = "digits"
    data_root: Path | None = None
    download: bool = False
    loss: str = "batch_cam"
    distance: str = "ssim"
    weight: float = 1.0
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float = 1e-3
    seeds: tuple[int, ...] = (0,)
    device: str = "cpu"
    progress: bool = True

    def __post_init__(self) -> None:
        """Check what can be checked before anything is loaded."""
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: expected at least one, and each once, got {list(self.seeds)}")
        if not all(-(2**63) <= seed < 2**63 for seed in self.seeds):
            raise ValueError(
                f"seeds: expected integers of 64 bits, got {list(self.seeds)}; pass smaller ones"
            )
        LOSSES[self.loss]
        get_distance(self.distance)
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(
                f"weight: expected a finite number of at least 0, got {self.weight}; 1 is the default, 0 turns the loss off"
            )
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(
                f"learning_rate: expected a finite number above 0, got {self.learning_rate}; 0.001 is the default"
            )
        check_device(self.device)

    def file_name(self, name: str, seed: int) -> str:
        """The name that a seed's file gets: ``maps.png``, or ``maps-seed0.png`` where there are several seeds."""
        path = Path(name)
        return name if len(self.seeds) == 1 else f"{path.stem}-seed{seed}{path.suffix}"

    @property
    def file_names(self) -> tuple[str, ...]:
        """Everything that is written to the output folder."""
        return (*(self.file_name(name, seed) for seed in self.seeds for name in _SEED_FILES), _RESULTS)

    @property
    def recipe(self) -> tuple[int, int]:
        """Epochs and batch size, defaults filled in."""
        epochs, batch_size = (20, 64) if self.data == "digits" else (5, 128)
        return self.epochs or epochs, self.batch_size or batch_size


def run_demo(settings: DemoSettings, say: Callable[[str], object] = print) -> dict[str, Any]:
    """Train both arms for each seed, measure them, and write table, pictures, results and checkpoints.

    Args:
        settings: what to do.
        say: takes the lines of text for the user.

    Returns:
        What ``results.json`` holds.

    Raises:
        OSError: the output folder cannot be written to, or the data cannot be read. Nothing is left behind, and earlier results
            stay as they were.
        ValueError: settings that do not fit.
    """
    folder = settings.output
    with output_folder(folder, settings.file_names):
        device = torch.device(settings.device)
        data = load_data(settings.data, settings.data_root, download=settings.download)
        epochs, batch_size = settings.recipe
        say(
            f"{settings.data}: {len(data.train)} training and {len(data.test)} test images of {data.image_size} px; "
            f"{epochs} epochs, batches of {batch_size}"
        )
        prototypes = ClassPrototypes.from_loader(
            data.train.batches(_TEST_BATCH),
            len(data.class_names),
            mean=data.mean,
            std=data.std,
            device=device,
            progress=settings.progress,
        )
        runs = []
        files: dict[str, Callable[[Path], None]] = {}
        for seed in settings.seeds:
            run, seed_files = _run_seed(settings, data, prototypes, seed, device)
            runs.append(run)
            files.update(seed_files)
        heading = f"+ {settings.loss}, λ = {settings.weight:g}"
        if settings.loss != "prototype_contrastive":
            heading += f", {settings.distance}"
        results = {
            "settings": {
                "data": settings.data,
                "loss": settings.loss,
                "distance": settings.distance,
                "weight": settings.weight,
                "epochs": epochs,
                "batch_size": batch_size,
                "learning_rate": settings.learning_rate,
                "seeds": list(settings.seeds),
            },
            "environment": environment(device),
            "runs": runs,
            "table": report.table(runs, heading),
        }
        files[_RESULTS] = lambda path: _write_text(path, json.dumps(results, indent=2) + "\n")
        with written_together(folder) as temporary:
            for name in settings.file_names:
                _write(files[name], temporary / name, folder / name)
    say(f"\n{results['table']}")
    say(
        "\n".join(
            ["", f"Written to {settings.output}:", *(f"  {name}" for name in sorted(settings.file_names))]
        )
    )
    return results


def _run_seed(
    settings: DemoSettings, data: DemoData, prototypes: ClassPrototypes, seed: int, device: torch.device
) -> tuple[dict[str, Any], dict[str, Callable[[Path], None]]]:
    epochs, batch_size = settings.recipe
    arms = train_both(
        data,
        lambda grad_cam: CamRegularizer(grad_cam, _make_loss(settings, data, prototypes), settings.weight),
        seed=seed,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=settings.learning_rate,
        device=device,
        progress=settings.progress,
    )
    measured = [
        {
            **evaluate_cams(
                BatchGradCam(arm.model, layer_of(arm.model)),
                data.test.batches(_TEST_BATCH, device=device),
                prototypes,
            ),
            "seconds_per_step": arm.seconds_per_step,
        }
        for arm in arms
    ]
    plain, regularized = (BatchGradCam(arm.model, layer_of(arm.model)) for arm in arms)
    maps = report.figure_of_maps(data, plain, regularized, prototypes, settings.loss)
    wrong = report.figure_of_misclassified(data, regularized, prototypes, _predictions(arms[1], data, device))
    writers: tuple[Callable[[Path], None], ...] = (  # in the order of _SEED_FILES
        lambda path: maps.savefig(path, dpi=150),
        lambda path: wrong.savefig(path, dpi=150),
        lambda path: torch.save(_checkpoint(arms[0], data, seed), path),
        lambda path: torch.save(_checkpoint(arms[1], data, seed), path),
    )
    files = {settings.file_name(name, seed): write for name, write in zip(_SEED_FILES, writers, strict=True)}
    run = {
        "seed": seed,
        "cross_entropy": measured[0],
        "regularized": measured[1],
        "step_ratio": arms[1].seconds_per_step / arms[0].seconds_per_step,
    }
    return run, files


def _make_loss(settings: DemoSettings, data: DemoData, prototypes: ClassPrototypes) -> CamLoss:
    kind: Callable[..., CamLoss] = LOSSES[settings.loss]
    if settings.loss == "image":
        return kind(distance=settings.distance, mean=data.mean, std=data.std)
    if settings.loss == "prototype_contrastive":
        return kind(prototypes)
    return kind(prototypes, distance=settings.distance)


def _predictions(arm: Arm, data: DemoData, device: torch.device) -> Tensor:
    with torch.no_grad():
        batches = data.test.batches(_TEST_BATCH, device=device)
        return torch.cat([arm.model(images).argmax(1).cpu() for images, _ in batches])


def _checkpoint(arm: Arm, data: DemoData, seed: int) -> dict[str, Any]:
    return {
        "model": {name: value.cpu() for name, value in arm.model.state_dict().items()},
        "num_classes": len(data.class_names),
        "image_size": data.image_size,
        "mean": data.mean,
        "std": data.std,
        "seed": seed,
    }


def _write(write: Callable[[Path], None], temporary: Path, path: Path) -> None:
    """Write a file; an error names the path that the user knows, not the temporary one."""
    try:
        write(temporary)
    except (OSError, RuntimeError) as error:  # RuntimeError: torch.save, when the disk is full
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise OSError(
            f"{path}: expected to write it, got: {reason}; free some space, or choose another --output"
        ) from error


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
