"""The arms of the study: what is added to the cross-entropy, written as text.

``prototype-ssim@median:1`` is the prototype loss with the SSIM distance to class medians and the weight 1.
``foreground:0.1+batch_cam-l1:1~1`` are two terms, of which the second warms up over one epoch.
``prototype-l1/hires_cam/log_prob_sum:1`` takes another cam, of another score; ``:auto`` is λ by the gradients;
``!strict`` revives no dead cam, ``!minmax`` and ``!none`` name a normalisation. Nothing added is ``cross_entropy``. So
the name of a result says what was trained.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch

from batchcam_captum import (
    BatchGradCam,
    CamRegularizer,
    ClassPrototypes,
    ForegroundPrototypes,
    MedianPrototypes,
    RunningPrototypes,
)
from batchcam_captum.losses import LOSSES, CamLoss
from batchcam_captum.training import LinearWarmup
from batchcam_captum.training.terms import GivenWeight

from .data import Part, StudyData, brightest

PLAIN = "cross_entropy"

_TERM = re.compile(
    r"(?P<loss>[a-z_]+)(-(?P<distance>[a-z0-9]+))?(@(?P<prototypes>[a-z_]+))?"
    r"(/(?P<method>[a-z_]+)(/(?P<score>[a-z_]+))?)?(?P<options>(!(strict|minmax|none))*)"
    r"(:(?P<weight>[0-9.]+|auto))?(~(?P<warm_up>[0-9.]+))?"
)
#: What each loss compares with where the text does not say.
_USUAL = {
    "foreground": "foreground",
    "prototype": "mean",
    "batch_cam": "mean",
    "prototype_contrastive": "mean",
}


#: Losses that take masks with the batch.
_TOLD = ("rrr_cam", "energy", "hint", "gradia")


@dataclass(frozen=True)
class Term:
    """One term of an arm."""

    loss: str  #: its name in the registry of losses
    distance: str | None = None
    prototypes: str | None = None  #: a name of :data:`PROTOTYPES`; None: the loss takes none
    method: str | None = None
    score: str | None = None
    options: tuple[str, ...] = ()
    weight: float | Literal["auto"] = 1.0
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
        loss, weight = found["loss"], found["weight"] or "1"
        prototypes = found["prototypes"] or _USUAL.get(loss)
        if prototypes is not None and prototypes not in PROTOTYPES:
            raise ValueError(f"arm: expected prototypes of {', '.join(PROTOTYPES)}, got {prototypes!r}")
        return cls(
            loss,
            found["distance"],
            prototypes,
            found["method"],
            found["score"],
            tuple(found["options"].split("!")[1:]),
            "auto" if weight == "auto" else float(weight),
            float(found["warm_up"] or 0),
        )

    def made(self, data: StudyData) -> CamLoss:
        """The loss."""
        options: dict[str, Any] = {
            name: value
            for name in ("distance", "method", "score")
            if (value := getattr(self, name)) is not None
        }
        for option in self.options:
            options |= {"revive": False} if option == "strict" else {"normalization": option}
        kind: Callable[..., CamLoss] = LOSSES[self.loss]
        if self.loss == "image":
            return kind(mean=data.mean, std=data.std, to_channel=brightest, **options)
        if self.prototypes is None:
            return kind(**options)
        return kind(PROTOTYPES[self.prototypes](data), **options)

    def schedule(self, steps_per_epoch: int) -> GivenWeight:
        """λ, or how it comes about at each step."""
        steps = round(self.warm_up * steps_per_epoch)
        return self.weight if self.weight == "auto" or not steps else LinearWarmup(self.weight, steps)


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


def masks_for(arm: str, part: Part) -> torch.Tensor | None:
    """Where the arm is told that evidence may be, (N, 1, H, W) floating; None where it is told nothing."""
    found = terms(arm)
    if any(each.prototypes == "objects" for each in found):
        return part.objects.float()
    if any(each.prototypes == "masks" or each.loss in _TOLD for each in found):
        return part.masks
    return None


def _mean(data: StudyData) -> ClassPrototypes:
    prototypes = ClassPrototypes(data.num_classes, to_channel=brightest)
    prototypes.update(data.train.images, data.train.labels)
    return prototypes


def _median(data: StudyData) -> MedianPrototypes:
    return MedianPrototypes.from_loader(
        [(data.train.images, data.train.labels)],
        data.num_classes,
        images_per_class=len(data.train.images),
        to_channel=brightest,
        progress=False,
    )


def _foreground(data: StudyData) -> ForegroundPrototypes:
    prototypes = ForegroundPrototypes(data.num_classes, to_channel=brightest)
    prototypes.update(data.train.images, data.train.labels)
    return prototypes


def _mean_in_foreground(data: StudyData) -> ClassPrototypes:
    return ClassPrototypes.from_maps(_mean(data).maps() * _foreground(data).maps())


def _mean_of_erased(data: StudyData) -> ClassPrototypes:
    """A quarter of each image's area is black, in a random rectangle, which leaves a shortcut in fewer of them."""
    from torchvision.transforms.v2 import RandomErasing

    erase = RandomErasing(p=1, scale=(0.25, 0.25), ratio=(0.5, 2))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        images = torch.stack([erase(image) for image in data.train.images])
    prototypes = ClassPrototypes(data.num_classes, to_channel=brightest)
    prototypes.update(images, data.train.labels)
    return prototypes


def _clean(data: StudyData) -> ClassPrototypes:
    return data.clean_prototypes()


#: What the cams are compared with. ``clean`` is a help that data with a shortcut cannot give: class means without it.
PROTOTYPES: dict[str, Callable[[StudyData], Any]] = {
    "mean": _mean,
    "median": _median,
    "erased": _mean_of_erased,
    "running": lambda data: RunningPrototypes(data.num_classes),
    "foreground": _foreground,
    "mean_in_foreground": _mean_in_foreground,
    "clean": _clean,
    "masks": lambda data: None,  # those of the batch
    "objects": lambda data: None,
}
