"""The demo from its settings to its files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..environment import environment
from ..evaluation import diagnose, evaluate_cams
from ..evaluation.diagnosis_figures import draw_misclassified
from ..files import output_folder, written_together
from ..functional import get_distance
from ..loading.devices import check_device
from ..losses import LOSSES, CamLoss
from ..prototypes import ClassPrototypes
from . import report
from .data import DataName, DemoData, load_data
from .train import Arm, train_both

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TEST_BATCH = 500
_RESULTS = "results.json"
_SEED_FILES = ("maps.png", "misclassified.png", "cross_entropy.pt", "regularized.pt")


@dataclass(frozen=True)
class DemoSettings:
    """The settings of the demo.

    Args:
        output: the folder of the results; it is created if it is missing.
        data: ``"digits"``, ``"mnist"`` or ``"fashion-mnist"``.
        data_root: the folder of torchvision's data sets.
        download: let torchvision download what is missing.
        loss: name of the loss of the second arm, one of :data:`batchcam_captum.losses.LOSSES`.
        distance: of that loss, if it has one.
        weight: λ.
        epochs: passes over the training images; None: 20 for the digits, otherwise 5.
        batch_size: N; None: 64 for the digits, otherwise 128.
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
            raise ValueError(f"weight: expected a finite number of at least 0, got {self.weight}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate: expected a finite number above 0, got {self.learning_rate}")
        check_device(self.device)

    def file_name(self, name: str, seed: int) -> str:
        """Return the name of a seed's file: ``maps.png``, or ``maps-seed0.png`` if there are several seeds."""
        path = Path(name)
        return name if len(self.seeds) == 1 else f"{path.stem}-seed{seed}{path.suffix}"

    @property
    def file_names(self) -> tuple[str, ...]:
        """All files of the output folder."""
        return (*(self.file_name(name, seed) for seed in self.seeds for name in _SEED_FILES), _RESULTS)

    @property
    def recipe(self) -> tuple[int, int]:
        """Epochs and batch size, with defaults filled in."""
        epochs, batch_size = (20, 64) if self.data == "digits" else (5, 128)
        return self.epochs or epochs, self.batch_size or batch_size


def run_demo(settings: DemoSettings, say: Callable[[str], object] = print) -> dict[str, Any]:
    """Train both arms for each seed, measure them, and write table, pictures, results and checkpoints.

    Args:
        settings: what to do.
        say: prints a line.

    Returns:
        The content of ``results.json``.

    Raises:
        OSError: the output folder cannot be written to, or the data cannot be read. Nothing new is left in the folder.
        ValueError: a setting does not fit.
    """
    with output_folder(settings.output, settings.file_names), _threads_for(settings):
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
        runs = [_Run(settings, data, prototypes, seed) for seed in settings.seeds]
        heading = f"+ {settings.loss}, λ = {settings.weight:g}"
        if settings.loss != "prototype_contrastive":
            heading += f", {settings.distance}"
        kept = ("data", "loss", "distance", "weight", "learning_rate")
        chosen = {name: value for name, value in asdict(settings).items() if name in kept}
        results = {
            "settings": {**chosen, "epochs": epochs, "batch_size": batch_size, "seeds": list(settings.seeds)},
            "environment": environment(device),
            "runs": [run.results for run in runs],
            "table": report.table([run.results for run in runs], heading),
        }
        with written_together(settings.output) as temporary:
            for run in runs:
                run.write(temporary)
            (temporary / _RESULTS).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    say(f"\n{results['table']}")
    names = (f"  {name}" for name in sorted(settings.file_names))
    say("\n".join(["", f"Written to {settings.output}:", *names]))
    return results


@contextmanager
def _threads_for(settings: DemoSettings) -> Iterator[None]:
    """Use one thread for the digits: images of 8 pixels are too small to share, and other programs would slow the waiting."""
    before = torch.get_num_threads()
    if settings.data == "digits":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Run:
    """Both arms of a seed, trained and measured."""

    def __init__(
        self, settings: DemoSettings, data: DemoData, prototypes: ClassPrototypes, seed: int
    ) -> None:
        self.settings, self.data, self.seed = settings, data, seed
        epochs, batch_size = settings.recipe
        device = torch.device(settings.device)
        self.arms = train_both(
            data,
            _make_loss(settings, data, prototypes),
            settings.weight,
            seed=seed,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=settings.learning_rate,
            device=device,
            progress=settings.progress,
        )
        plain, regularized = (arm.grad_cam for arm in self.arms)
        diagnosis = diagnose(
            regularized,
            data.test.batches(_TEST_BATCH, device=device),
            prototypes,
            class_names=data.class_names,
            mean=data.mean,
            std=data.std,
        )
        self.figures: dict[str, Figure] = {
            "maps.png": report.figure_of_maps(data, plain, regularized, prototypes, settings.loss),
            "misclassified.png": draw_misclassified(diagnosis),
        }
        measured: list[dict[str, Any]] = [
            evaluate_cams(arm.grad_cam, data.test.batches(_TEST_BATCH, device=device), prototypes)
            | {"seconds_per_step": arm.seconds_per_step}
            for arm in self.arms
        ]
        self.results = {
            "seed": seed,
            "cross_entropy": measured[0],
            "regularized": measured[1],
            "step_ratio": measured[1]["seconds_per_step"] / measured[0]["seconds_per_step"],
        }

    def write(self, folder: Path) -> None:
        """Write pictures and checkpoints.

        Raises:
            OSError: a file cannot be written; the error names it as it would be called in the output folder.
        """
        name = ""
        try:
            for name, figure in self.figures.items():
                figure.savefig(folder / self.settings.file_name(name, self.seed), dpi=150)
            for name, arm in zip(_SEED_FILES[2:], self.arms, strict=True):
                torch.save(self._checkpoint(arm), folder / self.settings.file_name(name, self.seed))
        except (OSError, RuntimeError) as error:  # torch.save raises a RuntimeError if the disk is full
            path = self.settings.output / self.settings.file_name(name, self.seed)
            raise OSError(
                f"{path}: expected to write it, got: {getattr(error, 'strerror', None) or error}; free some space, or choose "
                "another --output"
            ) from error

    def _checkpoint(self, arm: Arm) -> dict[str, Any]:
        return {
            "model": {name: value.cpu() for name, value in arm.model.state_dict().items()},
            "num_classes": len(self.data.class_names),
            "image_size": self.data.image_size,
            "mean": self.data.mean,
            "std": self.data.std,
            "seed": self.seed,
        }


def _make_loss(settings: DemoSettings, data: DemoData, prototypes: ClassPrototypes) -> CamLoss:
    kind: Callable[..., CamLoss] = LOSSES[settings.loss]
    if settings.loss == "image":
        return kind(distance=settings.distance, mean=data.mean, std=data.std)
    if settings.loss == "prototype_contrastive":
        return kind(prototypes)
    return kind(prototypes, distance=settings.distance)
