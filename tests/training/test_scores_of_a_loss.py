"""Scores and maps that a loss of one's own makes anew whenever it is asked for them."""

from __future__ import annotations

import torch
from torch import nn
from torch.testing import assert_close

from batchcam_captum import BatchGradCam, CamRegularizer, split_model
from batchcam_captum.losses import CamLoss

LABELS = torch.tensor([0, 1, 2, 0])


class Bound(CamLoss):
    """Two scores, methods of its own."""

    @property
    def scores(self):
        return (self.first, self.second)

    def first(self, scores, labels):
        return scores.gather(1, labels.unsqueeze(1)).squeeze(1)

    def second(self, scores, labels):
        return scores.amin(1)

    reduction: str = "sum"

    def per_sample(self, samples):
        return (samples.cams[:, 0] - 2 * samples.cams[:, 1]).square().flatten(1).sum(1)


class Fresh(Bound):
    @property
    def scores(self):
        return (lambda s, y: self.first(s, y), lambda s, y: self.second(s, y))


def test_they_are_told_apart_and_recognised():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 3)).double()
    images = torch.rand(4, 1, 8, 8, dtype=torch.float64)
    grad_cam = BatchGradCam(model, "1")
    scores = model(images)
    pair = [grad_cam.attribute(images, target=target) for target in (LABELS, scores.argmin(1))]
    expected = (pair[0] - 2 * pair[1]).square().sum()
    losses = {"bound": Bound(), "fresh": Fresh(), "again": Fresh()}
    regularizer = CamRegularizer(grad_cam, losses)
    with regularizer:
        scores = model(images)
    regularizer(scores, LABELS)
    split = CamRegularizer(split_model(model, "1"), losses)
    split.run(images, LABELS)
    for values in (regularizer.values, split.values, regularizer.evaluate(images, LABELS)):
        for name in losses:
            assert_close(values[name], expected)
