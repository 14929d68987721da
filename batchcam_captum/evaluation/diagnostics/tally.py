"""What is kept while a data set streams by: sums a class, and the worst mistakes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...functional import ValueChecks, class_sums, class_weights, nearest_prototype, prepare, prototype_cosine
from ...functional.distance import Distance
from ...prototypes import Prototypes
from .result import ClassDiagnosis


class ClassTally:
    """Sums of one model's maps by class, on the device of the maps, without waiting for it.

    Args:
        prototypes: what maps are compared with.
        distance: how the nearest prototype is found.
    """

    def __init__(self, prototypes: Prototypes, distance: str | Distance) -> None:
        self.prototypes = prototypes
        self.distance = distance
        self.checks = ValueChecks()
        self._sums: dict[str, Tensor] = {}

    def update(self, cams: Tensor, scores: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            cams: (N, 1, *spatial), signed, of the labels.
            scores: (N, K).
            labels: (N,).
        """
        classes = self.prototypes.num_classes
        belongs = class_weights(labels, classes, num_samples=cams.shape[0], checks=self.checks).weights
        belongs = belongs.to(_exact(cams.device))
        self.checks.require(
            torch.isfinite(scores),
            "scores: expected finite numbers, got others; the training may have diverged",
        )
        maps, dead, *_ = prepare(cams)
        targets = self.prototypes.maps(cams.shape[2:]).to(cams.device)
        seen = self.prototypes.seen.to(cams.device)
        nearest = nearest_prototype(cams, targets, self.distance, seen=seen, checks=self.checks)
        cosines = prototype_cosine(cams, labels, targets, seen=seen, checks=self.checks)
        alive = belongs * ~dead.unsqueeze(1)
        rows = {
            "maps": class_sums(maps.to(belongs.dtype), alive),
            "samples": belongs.sum(0),
            "alive": alive.sum(0),
            "cosines": class_sums(cosines.to(belongs.dtype), belongs),
            "nearest": belongs.T @ _one_hot(nearest.where(nearest >= 0, classes), classes + 1, belongs),
            "predicted": belongs.T @ _one_hot(scores.argmax(1), classes, belongs),
        }
        for name, value in rows.items():
            self._sums[name] = value if name not in self._sums else self._sums[name] + value

    def result(self) -> ClassDiagnosis:
        """What has been added up, on the CPU.

        Raises:
            ValueError: values that did not fit, or no sample.
        """
        self.checks.raise_failed()
        sums = {name: value.cpu().double() for name, value in self._sums.items()}
        if not sums or not bool(sums["samples"].sum()):
            raise ValueError(
                "loader: expected at least one sample, got none; check the data set and drop_last"
            )
        samples, alive, maps = sums["samples"], sums["alive"], sums["maps"]
        divisor = alive.clamp(min=1).reshape(-1, *[1] * (maps.dim() - 1))
        return ClassDiagnosis(
            mean_maps=(maps / divisor).float(),
            samples=samples.long(),
            dead=(samples - alive).long(),
            cosines=sums["cosines"] / samples,
            map_confusion=sums["nearest"].long(),
            prediction_confusion=sums["predicted"].long(),
        )


class Kept(NamedTuple):
    """The worst mistakes so far; rows with a loss of −∞ are none."""

    losses: Tensor  #: (P,)
    positions: Tensor
    labels: Tensor
    predictions: Tensor
    confidences: Tensor
    images: Tensor


class WorstMistakes:
    """The misclassified samples with the highest cross-entropy; of equal ones the first. Other images are not held.

    Args:
        limit: how many to keep.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kept: Kept | None = None
        self._seen = 0
        self._in_all: Tensor | int = 0

    def update(self, images: Tensor, scores: Tensor, labels: Tensor) -> None:
        """Look at a batch."""
        logs = scores.float().log_softmax(1)
        predictions = scores.argmax(1)
        losses = -logs.gather(1, labels.long().unsqueeze(1)).squeeze(1)
        wrong = predictions != labels
        self._in_all = self._in_all + wrong.sum()
        batch = Kept(
            losses.masked_fill(~wrong, -torch.inf),
            torch.arange(self._seen, self._seen + len(labels), device=labels.device),
            labels.long(),
            predictions,
            logs.amax(1).exp(),
            images,
        )
        self._seen += len(labels)
        if self._kept is not None:
            batch = Kept(*(torch.cat(pair) for pair in zip(self._kept, batch, strict=True)))
        order = batch.losses.sort(descending=True, stable=True).indices[: self.limit]
        self._kept = Kept(*(part[order] for part in batch))

    def result(self) -> tuple[Kept, int]:
        """The mistakes, the worst first, and how many there are in all."""
        assert self._kept is not None  # the tally has refused an empty loader
        found = self._kept.losses > -torch.inf
        return Kept(*(part[found] for part in self._kept)), int(self._in_all)


def _exact(device: torch.device) -> torch.dtype:
    """For sums over a whole data set."""
    return torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64


def _one_hot(indices: Tensor, classes: int, like: Tensor) -> Tensor:
    return (indices.unsqueeze(1) == torch.arange(classes, device=indices.device)).to(like.dtype)
