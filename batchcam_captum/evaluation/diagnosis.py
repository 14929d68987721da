"""Where a model looks, class by class: mean cams, which class's prototype cams are closest to, and the worst mistakes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..attribution import BatchGradCam
from ..batches import batches
from ..files import written_together
from ..functional import full_precision, nearest_prototype, normalize, prepare, prototype_cosine
from ..functional.checks import check_integer
from ..functional.distance import Distance
from ..functional.images import PerChannel, undo_standardization
from ..optional import load
from ..prototypes import ClassPrototypes, Prototypes

#: The files that :meth:`Diagnosis.save` writes.
FILES = ("class_maps.png", "diagnosis.json", "diagnosis.npz", "map_confusion.png", "misclassified.png")
_FORMAT = 1


@dataclass(frozen=True)
class ClassDiagnosis:
    """The cams of the true classes of one model, summed by class. All tensors are on the CPU."""

    #: (K, 1, *spatial): the mean of relu(C) / max over the cams that are not dead
    mean_maps: Tensor = field(repr=False)
    samples: Tensor = field(repr=False)  #: (K,) int64
    dead: Tensor = field(repr=False)  #: (K,) int64, cams without a positive value
    #: (K,) mean cosine to the class's own prototype, in [0, 1], larger is closer; 0 for a dead cam; NaN without samples
    cosines: Tensor = field(repr=False)
    #: (K, K + 1) int64: how many cams of each class (row) are closest to each prototype (column); last column: to none, as they
    #: are dead or flat
    map_confusion: Tensor = field(repr=False)
    #: (K, K) int64: how many samples of each class (row) are predicted as each class (column)
    prediction_confusion: Tensor = field(repr=False)

    @property
    def accuracy(self) -> float:
        """Share of samples whose highest score is the label's, in [0, 1]."""
        return float(self.prediction_confusion.diagonal().sum() / self.samples.sum())

    @property
    def nearest_prototype_accuracy(self) -> float:
        """Share of samples whose cam is closest to the prototype of their own class, in [0, 1]; never that of a dead cam."""
        return float(self.map_confusion.diagonal().sum() / self.samples.sum())

    @property
    def dead_fraction(self) -> float:
        """Share of samples with a dead cam, in [0, 1]."""
        return float(self.dead.sum() / self.samples.sum())

    @property
    def cosine(self) -> float:
        """Mean cosine of cam and prototype over the samples."""
        return float((self.cosines * self.samples).nansum() / self.samples.sum())

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers for JSON, without the maps; None where there is none."""
        return {
            "accuracy": self.accuracy,
            "nearest_prototype_accuracy": self.nearest_prototype_accuracy,
            "dead_fraction": self.dead_fraction,
            "samples": self.samples.tolist(),
            "dead": self.dead.tolist(),
            "cosine_to_prototype": [_or_none(value) for value in self.cosines.tolist()],
            "map_confusion": self.map_confusion.tolist(),
            "prediction_confusion": self.prediction_confusion.tolist(),
        }


@dataclass(frozen=True)
class Mistakes:
    """The P misclassified samples with the highest cross-entropy, the worst first. All tensors are on the CPU."""

    positions: Tensor  #: (P,) int64, position in the loader
    labels: Tensor  #: (P,) int64
    predictions: Tensor  #: (P,) int64
    confidences: Tensor  #: (P,) softmax probability of the predicted class
    label_probabilities: Tensor  #: (P,) that of the true class
    images: Tensor = field(repr=False)  #: (P, C, *spatial), as the model received them
    maps_of_prediction: Tensor = field(repr=False)  #: (P, 1, *spatial), relu(C) / max
    maps_of_label: Tensor = field(repr=False)  #: the same for the true class
    dead_of_prediction: Tensor  #: (P,) booleans: the cam of the predicted class is dead
    dead_of_label: Tensor  #: (P,) the same for the true class

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def differences(self) -> Tensor:
        """(P, 1, *spatial) in [−1, 1]: above 0 where the predicted class has more evidence than the true one.

        NaN where one of the two cams is dead: it has no evidence anywhere, and the difference would be the other map.
        """
        differences = self.maps_of_prediction - self.maps_of_label
        dead = self.dead_of_prediction | self.dead_of_label
        return differences.masked_fill(dead.reshape(-1, *[1] * (differences.dim() - 1)), torch.nan)

    def to_dicts(self, class_names: Sequence[str]) -> list[dict[str, Any]]:
        """Return one entry per sample, for JSON; ``mean_difference_of_maps`` is None where one of the two cams is dead."""
        differences = self.differences.abs()
        return [
            {
                "position": int(self.positions[row]),
                "label": class_names[int(self.labels[row])],
                "prediction": class_names[int(self.predictions[row])],
                "confidence": float(self.confidences[row]),
                "label_probability": float(self.label_probabilities[row]),
                "mean_difference_of_maps": _or_none(float(differences[row].mean())),
                "map_of_prediction_dead": bool(self.dead_of_prediction[row]),
                "map_of_label_dead": bool(self.dead_of_label[row]),
            }
            for row in range(len(self))
        ]


@dataclass(frozen=True)
class Diagnosis:
    """The result of :func:`diagnose`."""

    settings: dict[str, Any]  #: layer, method, what the prototypes are, how the closest one is found
    class_names: tuple[str, ...]
    after: ClassDiagnosis  #: of the model
    before: ClassDiagnosis | None  #: of the model that it is compared with
    mistakes: Mistakes  #: of the model
    mistakes_in_all: int
    prototypes: Tensor = field(repr=False)  #: (K, P, *spatial) in [0, 1], at the size of the cams
    #: (P, H, W) or (P, H, W, 3) in [0, 1]: the images of the mistakes, to be shown
    pictures: Tensor = field(repr=False)

    @property
    def models(self) -> dict[str, ClassDiagnosis]:
        """``"before"``, if there is one, and ``"after"``."""
        return {"before": self.before, "after": self.after} if self.before else {"after": self.after}

    def to_dict(self) -> dict[str, Any]:
        """Return everything except maps and images, for JSON."""
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
        """Return the tensors by their names in ``diagnosis.npz``."""
        parts = {**self.models, "mistakes": self.mistakes}
        found = {f"{name}_{key}": value for name, part in parts.items() for key, value in vars(part).items()}
        return {"prototypes": self.prototypes} | found

    def text(self) -> str:
        """Return the figures of the models as a Markdown table."""
        models = self.models
        rows = [
            ["", *(models if len(models) > 1 else ["model"])],
            ["accuracy, %", *(f"{100 * part.accuracy:.2f}" for part in models.values())],
            [
                "cams closest to their own class's prototype, %",
                *(f"{100 * part.nearest_prototype_accuracy:.2f}" for part in models.values()),
            ],
            ["cosine of cam and prototype", *(f"{part.cosine:.3f}" for part in models.values())],
            ["dead cams, %", *(f"{100 * part.dead_fraction:.2f}" for part in models.values())],
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        rows.insert(1, ["-" * width for width in widths])
        return "\n".join(
            "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
            for row in rows
        )

    def save(self, folder: str | os.PathLike[str]) -> tuple[str, ...]:
        """Write figures, numbers and arrays: all files, or none if one fails.

        Args:
            folder: created if its parent exists. Files of the same names are replaced.

        Returns:
            The names of the files: ``class_maps.png``, ``map_confusion.png``, ``misclassified.png``, ``diagnosis.json`` (see
            :meth:`to_dict`) and ``diagnosis.npz`` (see :meth:`tensors`).

        Raises:
            OSError: the folder cannot be created or written to.
            ModuleNotFoundError: matplotlib, and with it NumPy, is not installed.
        """
        load("matplotlib", purpose="saving a diagnosis", extra="demo")
        import numpy as np

        from . import diagnosis_figures as figures

        text = json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"
        arrays: dict[str, Any] = {name: value.numpy() for name, value in self.tensors().items()}
        with suppress(OSError):  # written_together names the folder that is missing
            Path(folder).mkdir()
        with written_together(folder) as temporary:
            (temporary / "diagnosis.json").write_text(text, encoding="utf-8")
            np.savez_compressed(temporary / "diagnosis.npz", **arrays)
            figures.draw_class_maps(self).savefig(temporary / "class_maps.png", dpi=150)
            figures.draw_map_confusion(self).savefig(temporary / "map_confusion.png", dpi=150)
            figures.draw_misclassified(self).savefig(temporary / "misclassified.png", dpi=150)
        return FILES


def diagnose(
    grad_cam: BatchGradCam,
    loader: Iterable[Any],
    prototypes: Prototypes | None = None,
    *,
    before: BatchGradCam | None = None,
    class_names: Sequence[str] | None = None,
    panels: int = 8,
    distance: str | Distance = "centered_cosine",
    mean: PerChannel = None,
    std: PerChannel = None,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Diagnosis:
    """Diagnose a model by its cams, in one pass and in memory that does not grow with the data set.

    For each class: the mean cam of the true class, which prototypes its cams are closest to, and how many are dead; and the worst
    mistakes, each with the cams of the predicted and of the true class. It sees the data of one process. torch's global CPU
    generator stays as it was, whatever the loader draws.

    Args:
        grad_cam: the model, in the mode to diagnose it in, and its layer.
        loader: batches that begin with images (N, C, *spatial) and labels (N,), 0 ... K−1.
        prototypes: of the classes. None: the mean images of the loader itself, which is then read twice.
        before: a second model to compare with, such as one trained with cross-entropy alone.
        class_names: K names. Default: the numbers.
        panels: how many mistakes to keep, at most.
        distance: how the closest prototype is found: ``"centered_cosine"``, a name of
            :data:`~batchcam_captum.functional.DISTANCES`, or a function (N, ...), (N, ...) -> (N,).
        mean: the ``mean`` of ``Normalize`` that the images went through, to show them and to make prototypes of them.
        std: its ``std``.
        device: where the batches go; None leaves them where they are.
        progress: show progress bars.

    Returns:
        The diagnosis; :meth:`Diagnosis.save` writes it.

    Raises:
        ValueError: an empty loader, labels out of range, scores that do not fit the prototypes, cams that are not finite.
        TypeError: batches of another kind, or a layer with several tensors.
    """
    check_integer("panels", panels, 0)
    source = type(prototypes).__name__
    if prototypes is None:
        source = "mean images of the diagnosed data set"
        classes = _count_classes(grad_cam, loader, device)
        prototypes = ClassPrototypes.from_loader(
            loader, classes, mean=mean, std=std, device=device, progress=progress, sync=False
        )
    names = tuple(map(str, range(prototypes.num_classes) if class_names is None else class_names))
    if len(names) != prototypes.num_classes:
        raise ValueError(f"class_names: expected {prototypes.num_classes} names, got {len(names)}")
    models = {"after": grad_cam} if before is None else {"after": grad_cam, "before": before}
    tallies = {name: _ClassTally(prototypes, distance) for name in models}
    worst = _WorstMistakes(panels)
    for images, labels in batches(loader, device, description="diagnosis", progress=progress):
        if not len(labels):
            continue
        for name, model in models.items():
            cams, scores = _cams(model, images, labels, prototypes.num_classes)
            tallies[name].update(cams, scores, labels)
            if model is grad_cam:
                worst.update(images, scores, labels)
    results = {name: tally.result() for name, tally in tallies.items()}
    size = results["after"].mean_maps.shape[2:]
    mistakes = worst.result(grad_cam, size)
    method: Any = grad_cam.method
    return Diagnosis(
        settings={
            "layer": ", ".join(map(str, grad_cam.layer_names)),
            "method": _name(method),
            "map_size": list(size),
            "prototypes": source,
            "nearest_prototype_by": _name(distance),
            "maps": "relu(C) / max; means over the cams that are not dead",
        },
        class_names=names,
        after=results["after"],
        before=results.get("before"),
        mistakes=mistakes,
        mistakes_in_all=worst.total,
        prototypes=normalize(prototypes.maps(size)).cpu(),
        pictures=_pictures(mistakes.images, mean, std),
    )


class _ClassTally:
    """Sums of one model's cams by class.

    Args:
        prototypes: what cams are compared with.
        distance: how the closest prototype is found.
    """

    def __init__(self, prototypes: Prototypes, distance: str | Distance) -> None:
        self.prototypes, self.distance = prototypes, distance
        classes = prototypes.num_classes
        self._maps: Tensor | None = None
        self._alive = torch.zeros(classes, dtype=torch.int64)
        self._cosines = torch.zeros(classes, dtype=torch.float64)
        self._nearest = torch.zeros(classes, classes + 1, dtype=torch.int64)
        self._predicted = torch.zeros(classes, classes, dtype=torch.int64)

    def update(self, cams: Tensor, scores: Tensor, labels: Tensor) -> None:
        """Add a batch of signed cams (N, 1, *spatial) of the labels (N,), and scores (N, K)."""
        classes = self.prototypes.num_classes
        if not bool(torch.isfinite(scores).all()):
            raise ValueError("scores: expected finite numbers, got others; the training may have diverged")
        if not bool(((labels >= 0) & (labels < classes)).all()):
            raise ValueError(
                f"labels: expected class indices from 0 to {classes - 1}, got others; leave unlabeled samples out"
            )
        size = cams.shape[2:]
        targets, seen = self.prototypes.maps(size).to(cams.device), self.prototypes.seen.to(cams.device)
        cosines = prototype_cosine(cams, labels, targets, seen=seen).cpu()
        nearest = nearest_prototype(cams, targets, self.distance, seen=seen).cpu()
        maps, dead = (part.cpu() for part in prepare(cams))
        labels = labels.cpu().long()
        if self._maps is None:
            self._maps = torch.zeros(classes, 1, *size, dtype=torch.float64)
        self._maps.index_add_(0, labels, maps.double())  # a dead cam's map is zero
        self._cosines.index_add_(0, labels, cosines.double())
        self._alive += torch.bincount(labels[~dead], minlength=classes)
        for table, columns in (
            (self._nearest, nearest.where(nearest >= 0, classes)),
            (self._predicted, scores.argmax(1).cpu()),
        ):
            width = table.shape[1]
            table += torch.bincount(labels * width + columns, minlength=table.numel()).reshape(table.shape)

    def result(self) -> ClassDiagnosis:
        """Return the means and counts.

        Raises:
            ValueError: there was no sample.
        """
        if self._maps is None:
            raise ValueError(
                "loader: expected at least one sample, got none; check the data set and drop_last"
            )
        samples = self._predicted.sum(1)
        divisor = self._alive.clamp(min=1).reshape(-1, *[1] * (self._maps.dim() - 1))
        return ClassDiagnosis(
            mean_maps=(self._maps / divisor).float(),
            samples=samples,
            dead=samples - self._alive,
            cosines=self._cosines / samples,
            map_confusion=self._nearest,
            prediction_confusion=self._predicted,
        )


class _WorstMistakes:
    """The misclassified samples with the highest cross-entropy; of equal ones the first. Other images are not kept.

    Args:
        limit: how many to keep.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.total = 0
        self._samples = 0
        self._kept: dict[str, Tensor] = {}

    def update(self, images: Tensor, scores: Tensor, labels: Tensor) -> None:
        """Add a batch of images (N, C, *spatial), scores (N, K) and labels (N,)."""
        logs = scores.float().log_softmax(1)
        predictions = scores.argmax(1)
        batch = {
            "losses": -logs.gather(1, labels.long().unsqueeze(1)).squeeze(1),
            "positions": torch.arange(self._samples, self._samples + len(labels), device=labels.device),
            "labels": labels.long(),
            "predictions": predictions,
            "confidences": logs.amax(1).exp(),
            "images": images,
        }
        wrong = predictions != labels
        self.total += int(wrong.sum())
        self._samples += len(labels)
        rows = {
            name: torch.cat([self._kept.get(name, part[:0]), part[wrong]]) for name, part in batch.items()
        }
        order = rows["losses"].sort(descending=True, stable=True).indices[: self.limit]
        self._kept = {name: part[order] for name, part in rows.items()}

    def result(self, grad_cam: BatchGradCam, size: Sequence[int]) -> Mistakes:
        """Explain the mistakes for the predicted and for the true class, at the size of the cams."""
        kept = self._kept
        images = kept["images"]
        of_prediction, of_label = (
            prepare(
                grad_cam.attribute(images, target=kept[name])
                if len(images)
                else images.new_zeros(0, 1, *size)
            )
            for name in ("predictions", "labels")
        )
        return Mistakes(
            label_probabilities=kept["losses"].neg().exp().cpu(),
            maps_of_prediction=of_prediction.maps.float().cpu(),
            maps_of_label=of_label.maps.float().cpu(),
            dead_of_prediction=of_prediction.dead.cpu(),
            dead_of_label=of_label.dead.cpu(),
            images=full_precision(images).cpu(),
            **{name: part.cpu() for name, part in kept.items() if name not in ("losses", "images")},
        )


def _cams(grad_cam: BatchGradCam, images: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    cams, scores = grad_cam.attribute_with_scores(images, target=labels)
    if not isinstance(cams, Tensor):
        raise TypeError(
            f"layer: expected one layer with one tensor, got {type(cams).__name__} of cams; diagnose one of them"
        )
    if scores.shape[1] != classes:
        raise ValueError(
            f"prototypes: expected {scores.shape[1]} classes, the number of the model's scores, got {classes}; check num_classes"
        )
    return cams, scores


def _count_classes(grad_cam: BatchGradCam, loader: Iterable[Any], device: torch.device | str | None) -> int:
    """Return K, from the scores of the first sample."""
    if isinstance(loader, Iterator):
        raise ValueError(
            "prototypes: expected some for a loader that can be read only once, got None; pass prototypes, or a loader that "
            "starts anew"
        )
    for images, labels in batches(loader, device):
        if len(labels):
            return grad_cam.attribute_with_scores(images[:1], target=labels[:1])[1].shape[1]
    raise ValueError("loader: expected at least one sample, got none; check the data set and drop_last")


def _pictures(images: Tensor, mean: PerChannel, std: PerChannel) -> Tensor:
    """Return (P, H, W) or (P, H, W, 3) in [0, 1]. Images outside [0, 1] after undoing the standardization are scaled into it."""
    plain = undo_standardization(images, mean, std)
    if len(plain) and not (float(plain.min()) >= -0.01 and float(plain.max()) <= 1.01):
        plain = normalize(plain, "minmax")
    plain = plain.clamp(0, 1)
    return plain.permute(0, 2, 3, 1) if plain.shape[1] == 3 else plain.mean(1)


def _name(value: Any) -> str:
    return value if isinstance(value, str) else getattr(value, "__name__", str(value))


def _or_none(value: float) -> float | None:
    """Return None for NaN, which JSON does not have."""
    return None if value != value else value
