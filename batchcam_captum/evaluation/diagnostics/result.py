"""What a diagnosis found, as values, as JSON, as arrays and as figures."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...files import written_together
from ...optional import load

#: What :meth:`Diagnosis.save` writes.
FILES = ("class_maps.png", "diagnosis.json", "diagnosis.npz", "map_confusion.png", "misclassified.png")
_FORMAT = 1


@dataclass(frozen=True)
class ClassDiagnosis:
    """One model's maps of the true classes, added up by class. Everything lies on the CPU."""

    #: (K, 1, *spatial): the mean of relu(C) / max over the maps that are not dead
    mean_maps: Tensor = field(repr=False)
    samples: Tensor = field(repr=False)  #: (K,) int64
    dead: Tensor = field(repr=False)  #: (K,) int64, maps without a positive value
    #: (K,) mean cosine to the own prototype, in [0, 1], larger is nearer; a dead map's is 0; NaN without a sample
    cosines: Tensor = field(repr=False)
    #: (K, K + 1) int64: how many maps of each class (row) are nearest to each prototype (column); the last column: to none, as
    #: they are dead or flat
    map_confusion: Tensor = field(repr=False)
    #: (K, K) int64: how many samples of each class (row) are predicted as each class (column)
    prediction_confusion: Tensor = field(repr=False)

    @property
    def accuracy(self) -> float:
        """Share of samples whose highest score is the label's, in [0, 1]."""
        return float(self.prediction_confusion.diagonal().sum() / self.samples.sum())

    @property
    def nearest_prototype_accuracy(self) -> float:
        """Share of samples whose map is nearest to the prototype of their own class, in [0, 1]; a dead map's is not."""
        return float(self.map_confusion.diagonal().sum() / self.samples.sum())

    @property
    def dead_fraction(self) -> float:
        """Share of samples whose map is dead, in [0, 1]."""
        return float(self.dead.sum() / self.samples.sum())

    def to_dict(self) -> dict[str, Any]:
        """Numbers for JSON, without the maps; None where there is none."""
        return {
            "accuracy": self.accuracy,
            "nearest_prototype_accuracy": self.nearest_prototype_accuracy,
            "dead_fraction": self.dead_fraction,
            "samples": self.samples.tolist(),
            "dead": self.dead.tolist(),
            "cosine_to_prototype": [None if value != value else value for value in self.cosines.tolist()],
            "map_confusion": self.map_confusion.tolist(),
            "prediction_confusion": self.prediction_confusion.tolist(),
        }


@dataclass(frozen=True)
class Mistakes:
    """Misclassified samples, the worst first: those with the highest cross-entropy. Everything lies on the CPU."""

    positions: Tensor  #: (P,) int64, place in the loader
    labels: Tensor  #: (P,) int64
    predictions: Tensor  #: (P,) int64
    confidences: Tensor  #: (P,) softmax probability of the predicted class
    label_probabilities: Tensor  #: (P,) that of the true class
    images: Tensor = field(repr=False)  #: (P, C, *spatial), as the model got them
    maps_of_prediction: Tensor = field(repr=False)  #: (P, 1, *spatial), relu(C) / max
    maps_of_label: Tensor = field(repr=False)  #: the same for the true class
    dead_of_prediction: Tensor  #: (P,) booleans: the map of the predicted class has no positive value
    dead_of_label: Tensor  #: (P,) the same for the true class

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def differences(self) -> Tensor:
        """(P, 1, *spatial) in [−1, 1]: above 0 where the predicted class has more evidence than the true one.

        NaN where one of the two maps is dead: it has no evidence anywhere, and the difference would be the other map.
        """
        differences = self.maps_of_prediction - self.maps_of_label
        dead = (self.dead_of_prediction | self.dead_of_label).reshape(-1, *[1] * (differences.dim() - 1))
        return differences.masked_fill(dead, torch.nan)

    def to_dicts(self, class_names: tuple[str, ...]) -> list[dict[str, Any]]:
        """One entry a sample, for JSON; ``mean_difference_of_maps`` is None where one of the two maps is dead."""
        rows = zip(
            self.positions.tolist(),
            self.labels.tolist(),
            self.predictions.tolist(),
            self.confidences.tolist(),
            self.label_probabilities.tolist(),
            self.differences.abs().flatten(1).mean(1).tolist() if len(self) else [],
            self.dead_of_prediction.tolist(),
            self.dead_of_label.tolist(),
            strict=True,
        )
        return [
            {
                "position": position,
                "label": class_names[label],
                "prediction": class_names[prediction],
                "confidence": confidence,
                "label_probability": probability,
                "mean_difference_of_maps": None if difference != difference else difference,
                "map_of_prediction_dead": dead_of_prediction,
                "map_of_label_dead": dead_of_label,
            }
            for position, label, prediction, confidence, probability, difference, dead_of_prediction, dead_of_label in rows
        ]


@dataclass(frozen=True)
class Diagnosis:
    """Everything that :func:`diagnose` found."""

    settings: dict[str, Any]  #: layer, method, what the prototypes are, how the nearest is found
    class_names: tuple[str, ...]
    after: ClassDiagnosis  #: of the model
    before: ClassDiagnosis | None  #: of the one it is compared with
    mistakes: Mistakes  #: of the model
    mistakes_in_all: int
    prototypes: Tensor = field(repr=False)  #: (K, P, *spatial) in [0, 1], at the size of the maps
    pictures: Tensor = field(
        repr=False
    )  #: (P, H, W) or (P, H, W, 3) in [0, 1]: the mistakes' images, to be shown

    def to_dict(self) -> dict[str, Any]:
        """Everything but maps and images, for JSON."""
        return {
            "format": _FORMAT,
            "settings": self.settings,
            "classes": list(self.class_names),
            "samples": int(self.after.samples.sum()),
            "after": self.after.to_dict(),
            "before": None if self.before is None else self.before.to_dict(),
            "mistakes": {
                "in_all": self.mistakes_in_all,
                "worst": self.mistakes.to_dicts(self.class_names),
            },
        }

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by the names that they have in ``diagnosis.npz``."""
        found = {"prototypes": self.prototypes}
        for model, part in (("after", self.after), ("before", self.before)):
            if part is not None:
                found |= {f"{model}_{name}": value for name, value in vars(part).items()}
        return found | {f"mistakes_{name}": value for name, value in vars(self.mistakes).items()}

    def text(self) -> str:
        """The figures of the models, as a Markdown table."""
        models = (
            [("after", self.after)]
            if self.before is None
            else [("before", self.before), ("after", self.after)]
        )
        rows = [
            ("", *(name if len(models) > 1 else "model" for name, _ in models)),
            ("accuracy, %", *(f"{100 * part.accuracy:.2f}" for _, part in models)),
            (
                "maps nearest to their own class's prototype, %",
                *(f"{100 * part.nearest_prototype_accuracy:.2f}" for _, part in models),
            ),
            ("cosine of map and prototype", *(f"{_mean(part):.3f}" for _, part in models)),
            ("dead maps, %", *(f"{100 * part.dead_fraction:.2f}" for _, part in models)),
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
            for row in rows
        ]
        lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        return "\n".join(lines)

    def save(self, folder: str | os.PathLike[str]) -> tuple[str, ...]:
        """Write figures, numbers and arrays, all of them or none.

        Args:
            folder: where they go. It is made, in a folder that exists. Files of the same names are replaced.

        Returns:
            The names of the files: ``class_maps.png``, ``map_confusion.png``, ``misclassified.png``, ``diagnosis.json`` (see
            :meth:`to_dict`) and ``diagnosis.npz`` (see :meth:`tensors`).

        Raises:
            OSError: the folder cannot be made or written to.
            ModuleNotFoundError: matplotlib, and with it NumPy, is not installed.
        """
        load("matplotlib", purpose="saving a diagnosis", extra="demo")
        from . import figures

        text = json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"
        writers: dict[str, Callable[[Path], object]] = {
            "class_maps.png": lambda path: figures.class_maps(self).savefig(path, dpi=150),
            "diagnosis.json": lambda path: path.write_text(text, encoding="utf-8"),
            "diagnosis.npz": lambda path: _save_arrays(path, self.tensors()),
            "map_confusion.png": lambda path: figures.map_confusion(self).savefig(path, dpi=150),
            "misclassified.png": lambda path: figures.misclassified(self).savefig(path, dpi=150),
        }
        with suppress(OSError):  # what could not be made is named where it is missed
            Path(folder).mkdir()
        with written_together(folder) as temporary:
            for name in FILES:
                writers[name](temporary / name)
        return FILES


def _mean(part: ClassDiagnosis) -> float:
    """Over the samples."""
    seen = part.samples > 0
    return float((part.cosines[seen] * part.samples[seen]).sum() / part.samples.sum())


def _save_arrays(path: Path, tensors: dict[str, Tensor]) -> None:
    import numpy as np

    arrays: dict[str, Any] = {
        name: (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        for name, value in tensors.items()
    }
    np.savez_compressed(path, **arrays)
