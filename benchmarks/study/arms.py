"""The arms of the study: what is added to the cross-entropy, written as text.

``prototype-ssim@median:1`` is the prototype loss with the SSIM distance to class medians and the weight 1.
``foreground:0.1+batch_cam-l1:1~1`` are two terms, of which the second warms up over one epoch.
``prototype-l1/hires_cam/log_prob_sum:1`` takes another cam, of another score. Nothing added is ``cross_entropy``. So
the name of a result says what was trained.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from batchcam_captum import (
    BatchGradCam,
    CamRegularizer,
    ClassPrototypes,
    ForegroundPrototypes,
    MaskPrototypes,
    MedianPrototypes,
)
from batchcam_captum.losses import LOSSES, CamLoss
from batchcam_captum.training.schedules import LinearWarmup

from .data import StudyData, brightest

PLAIN = "cross_entropy"

_TERM = re.compile(
    r"(?P<loss>[a-z_]+)(-(?P<distance>[a-z0-9]+))?(@(?P<prototypes>[a-z_]+))?"
    r"(/(?P<method>[a-z_]+)(/(?P<score>[a-z_]+))?)?(:(?P<weight>[0-9.]+))?(~(?P<warm_up>[0-9.]+))?"
)
#: What each loss compares with where the text does not say.
_USUAL = {
    "foreground": "foreground",
    "prototype": "mean",
    "batch_cam": "mean",
    "prototype_contrastive": "mean",
}


@dataclass(frozen=True)
class Term:
    """One term of an arm."""

    loss: str  #: its name in the registry of losses
    distance: str | None = None
    prototypes: str | None = None  #: a name of :data:`PROTOTYPES`; None: the loss takes none
    method: str | None = None
    score: str | None = None
    weight: float = 1.0
    warm_up: float = 0.0  #: in epochs

    @classmethod
    def read(cls, text: str) -> Self:
        """Of text such as ``prototype-ssim@median:1``.

        Raises:
            ValueError: text of another form, or unknown names.
        """
        found = _TERM.fullmatch(text)
        if found is None or found["loss"] not in LOSSES:
            raise ValueError(
                f"arm: expected terms loss[-distance][@prototypes][/method[/score]][:weight][~epochs] with a loss of "
                f"{', '.join(sorted(LOSSES))}, got {text!r}"
            )
        loss = found["loss"]
        prototypes = found["prototypes"] or _USUAL.get(loss)
        if prototypes is not None and prototypes not in PROTOTYPES:
            raise ValueError(f"arm: expected prototypes of {', '.join(PROTOTYPES)}, got {prototypes!r}")
        return cls(
            loss,
            found["distance"],
            prototypes,
            found["method"],
            found["score"],
            float(found["weight"] or 1),
            float(found["warm_up"] or 0),
        )

    def made(self, data: StudyData) -> CamLoss:
        """The loss."""
        options: dict[str, Any] = {
            name: value
            for name in ("distance", "method", "score")
            if (value := getattr(self, name)) is not None
        }
        kind: Callable[..., CamLoss] = LOSSES[self.loss]
        if self.loss == "image":
            return kind(mean=data.mean, std=data.std, to_channel=brightest, **options)
        if self.prototypes is None:
            return kind(**options)
        return kind(PROTOTYPES[self.prototypes](data), **options)

    def schedule(self, steps_per_epoch: int) -> float | LinearWarmup:
        """λ, or what it is at each step."""
        steps = round(self.warm_up * steps_per_epoch)
        return LinearWarmup(self.weight, steps) if steps else self.weight


def terms(arm: str) -> list[Term]:
    """The terms of an arm; none for ``cross_entropy``.

    Raises:
        ValueError: see :meth:`Term.read`.
    """
    return [] if arm == PLAIN else [Term.read(text) for text in arm.split("+")]


def regularizer(
    arm: str, grad_cam: BatchGradCam, data: StudyData, steps_per_epoch: int
) -> CamRegularizer | None:
    """What is added to the cross-entropy; None for nothing."""
    found = terms(arm)
    if not found:
        return None
    return CamRegularizer(
        grad_cam,
        {
            f"{each.loss}_{index}": (each.made(data), each.schedule(steps_per_epoch))
            for index, each in enumerate(found)
        },
    )


def needs_masks(arm: str) -> bool:
    """Whether the arm is told where the objects, or the shortcuts, are."""
    return any(
        each.prototypes == "masks"
        or (each.prototypes is None and each.loss in ("rrr_cam", "energy", "hint", "gradia"))
        for each in terms(arm)
    )


def _mean(data: StudyData) -> ClassPrototypes:
    prototypes = ClassPrototypes(data.num_classes, to_channel=brightest)
    prototypes.update(data.train.images, data.train.labels)
    return prototypes


def _median(data: StudyData) -> MedianPrototypes:
    prototypes = MedianPrototypes(data.num_classes, to_channel=brightest)
    prototypes.update(data.train.images, data.train.labels)
    prototypes.drop_histogram()
    return prototypes


def _foreground(data: StudyData) -> ForegroundPrototypes:
    prototypes = ForegroundPrototypes(data.num_classes, to_channel=brightest)
    prototypes.update(data.train.images, data.train.labels)
    return prototypes


def _mean_in_foreground(data: StudyData) -> ClassPrototypes:
    return ClassPrototypes.from_maps(_mean(data).maps() * _foreground(data).maps())


def _clean(data: StudyData) -> ClassPrototypes:
    return data.clean_prototypes()


#: What the cams are compared with. ``clean`` is a help that data with a shortcut cannot give: class means without it.
PROTOTYPES: dict[str, Callable[[StudyData], Any]] = {
    "mean": _mean,
    "median": _median,
    "foreground": _foreground,
    "mean_in_foreground": _mean_in_foreground,
    "clean": _clean,
    "masks": lambda data: MaskPrototypes(data.num_classes),
}
