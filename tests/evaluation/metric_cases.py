"""One metric of each class, and its value over a whole data set from the functions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from batchcam_captum import functional
from batchcam_captum.evaluation import metrics

PROTOTYPES = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))


class Case(NamedTuple):
    cams: Tensor
    labels: Tensor
    masks: Tensor
    shortcuts: Tensor

    @property
    def counted(self):
        return self.part(self.labels != -100)

    def part(self, index):
        return Case(*(each[index] for each in self))

    def fed_to(self, metric):
        metric.update(self.cams, self.labels, masks=self.masks, shortcuts=self.shortcuts)
        return metric


def make_case(num_samples=23):
    """Return samples of every kind: dead, ignored, without a mask, without a shortcut."""
    draw = torch.Generator().manual_seed(0)
    cams = torch.randn(num_samples, 1, 4, 4, generator=draw)
    cams[3] = 0
    cams[4] = -cams[4].abs()
    labels = torch.arange(num_samples) % 3
    labels[5] = -100
    masks = torch.rand(num_samples, 1, 8, 8, generator=draw) > 0.6
    shortcuts = (torch.rand(num_samples, 1, 8, 8, generator=draw) > 0.9).float()
    masks[6], shortcuts[7] = False, 0
    return Case(cams, labels, masks, shortcuts)


def _near(case, distance="centered_cosine"):
    return (functional.nearest_prototype(case.cams, PROTOTYPES, distance) == case.labels).float()


#: Name -> (what makes the metric, the values of a case without ignored samples).
EVERY = {
    "l1": (
        lambda **kw: metrics.PrototypeDistance(PROTOTYPES, **kw),
        lambda case: functional.prototype_distance(case.cams, case.labels, PROTOTYPES),
    ),
    "ssim at the prototypes' size": (
        lambda **kw: metrics.PrototypeDistance(PROTOTYPES, "ssim", **kw),
        lambda case: functional.prototype_distance(case.cams, case.labels, PROTOTYPES, "ssim"),
    ),
    "cosine": (
        lambda **kw: metrics.PrototypeCosine(PROTOTYPES, **kw),
        lambda case: functional.prototype_cosine(case.cams, case.labels, PROTOTYPES),
    ),
    "nearest": (lambda **kw: metrics.NearestPrototypeAccuracy(PROTOTYPES, **kw), _near),
    "nearest by l2": (
        lambda **kw: metrics.NearestPrototypeAccuracy(PROTOTYPES, "l2", **kw),
        lambda case: _near(case, "l2"),
    ),
    "coherence": (
        lambda **kw: metrics.ClassCoherence(4, (4, 4), **kw),
        lambda case: functional.class_coherence(case.cams, case.labels, 4),
    ),
    "coherence at another size": (
        lambda **kw: metrics.ClassCoherence(4, (7, 7), **kw),
        lambda case: functional.class_coherence(
            functional.resize(functional.prepare(case.cams).maps, (7, 7)), case.labels, 4
        ),
    ),
    "energy": (
        metrics.EnergyPointingGame,
        lambda case: functional.energy_in_mask(case.cams, case.masks),
    ),
    "wrong reason": (
        metrics.WrongReasonRate,
        lambda case: functional.wrong_reason(case.cams, case.masks),
    ),
    "shortcut": (
        metrics.ShortcutReliance,
        lambda case: functional.shortcut_share(case.cams, case.shortcuts).share,
    ),
    "pointing game": (
        metrics.PointingGame,
        lambda case: functional.pointing_game(case.cams, case.masks),
    ),
    "iou": (
        lambda **kw: metrics.MaskIoU(threshold=0.3, **kw),
        lambda case: functional.mask_iou(case.cams, case.masks, threshold=0.3),
    ),
    "rank accuracy": (
        metrics.RankAccuracy,
        lambda case: functional.rank_accuracy(case.cams, case.masks),
    ),
    "dead": (metrics.DeadFraction, lambda case: functional.dead_cams(case.cams).float()),
    "sparsity": (metrics.Sparsity, lambda case: functional.sparsity(case.cams)),
    "entropy": (
        metrics.CamEntropy,
        lambda case: functional.entropy(case.cams),
    ),
}


def expected(name, case):
    return EVERY[name][1](case.counted).nanmean().float()
