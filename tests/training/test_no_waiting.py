"""No training step reads a value on the host: several layers, schedules, weights, both regularizers, on meta tensors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from batchcam_captum import (
    BatchCamLoss,
    BatchGradCam,
    CamRegularizer,
    ClassPrototypes,
    ImageLoss,
    PrototypeContrastiveLoss,
    PrototypeLoss,
)
from batchcam_captum.attribution import Split
from batchcam_captum.training import AutoWeight, Cosine, EveryKSteps, LinearWarmup

K = 5


class Net(nn.Module):
    def __init__(self, *, checkpointing: bool = False) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Tanh())
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(4 * 36, K))
        self.checkpointing = checkpointing

    def forward(self, x):
        x = self.trunk(x)
        x = checkpoint(self.second, x, use_reentrant=False) if self.checkpointing else self.second(x)
        return self.head(x)


WEIGHTS = {
    "number": lambda: 1.0,
    "warm-up": lambda: LinearWarmup(1.0, steps=3),
    "every k": lambda: EveryKSteps(Cosine(1.0, steps=5), k=2),
    "auto": lambda: AutoWeight(every=2),
}
LABELS = {
    "indices": lambda: torch.zeros(8, dtype=torch.long, device="meta"),
    "soft": lambda: torch.rand(8, K, device="meta"),
}


def losses(weight):
    maps = torch.rand(K, 1, 10, 10)
    every_class = PrototypeLoss(maps)
    every_class.score, every_class.method = "log_prob_sum", "hires_cam"
    predicted = ImageLoss()
    predicted.score = "predicted"
    return {
        "batch_cam": (BatchCamLoss(maps, distance="ssim"), weight),
        "every class": every_class,
        "contrastive": PrototypeContrastiveLoss(ClassPrototypes.from_maps(maps)),
        "image": predicted,
    }


def batch(labels):
    options = {"sample_weights": torch.rand(8, device="meta")}
    return torch.rand(8, 3, 10, 10, device="meta"), labels(), options


def check(regularizer, model):
    assert model.head[1].weight.grad.shape == model.head[1].weight.shape
    assert all(value.is_meta and not value.requires_grad for value in regularizer.values.values())
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        regularizer.check()  # here the values are read


#: Every two of weight, layers and labels together at least once where they meet in the code: labels with either number of layers,
#: the weight that reads the terms' gradients with both.
@pytest.mark.parametrize(
    ("weight", "layers", "labels"),
    [
        ("number", ["trunk"], "soft"),
        ("warm-up", ["trunk", "second"], "indices"),
        ("every k", ["trunk"], "indices"),
        ("auto", ["trunk", "second"], "soft"),
        ("auto", ["trunk"], "indices"),
    ],
)
def test_steps_of_cam_regularizer(weight, layers, labels):
    model = Net().to("meta")
    labels = LABELS[labels]
    regularizer = CamRegularizer(BatchGradCam(model, layers), losses(WEIGHTS[weight]())).to("meta")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        images, given, options = batch(labels)
        optimizer.zero_grad()
        with regularizer:
            scores = model(images)
        task = F.cross_entropy(scores, given)
        (task + regularizer(scores, given, images=images, task_loss=task, **options)).backward()
        optimizer.step()
        regularizer.step()
    check(regularizer, model)


@pytest.mark.parametrize(
    ("weight", "labels"),
    [("number", "soft"), ("warm-up", "indices"), ("every k", "soft"), ("every k", "indices")],
)
def test_steps_of_split_regularizer(weight, labels):
    model = Net().to("meta")
    labels = LABELS[labels]
    parts = Split(model.trunk, nn.Sequential(model.second, model.head))
    regularizer = CamRegularizer(parts, losses(WEIGHTS[weight]())).to("meta")
    for _ in range(3):
        images, given, options = batch(labels)
        model.zero_grad()
        scores, cam_loss = regularizer.run(images, given, **options)
        (F.cross_entropy(scores, given) + cam_loss).backward()
        regularizer.step()
    check(regularizer, model)


def test_a_checkpointed_block_after_the_layer():
    model = Net(checkpointing=True).to("meta")
    regularizer = CamRegularizer(BatchGradCam(model, "trunk"), losses(1.0)).to("meta")
    images, given, options = batch(LABELS["indices"])
    with regularizer:
        scores = model(images)
    (F.cross_entropy(scores, given) + regularizer(scores, given, images=images, **options)).backward()
    check(regularizer, model)


def test_accumulated_and_evaluated_values_stay_on_the_device():
    model = Net().to("meta")
    regularizer = CamRegularizer(BatchGradCam(model, ["trunk", "second"]), losses(1.0)).to("meta")
    images, given, _ = batch(LABELS["indices"])
    assert all(value.is_meta for value in regularizer.evaluate(images, given).values())


@pytest.mark.parametrize("distance", ["l1", "l2", "ssim", "cosine"])
def test_distances_and_an_integer_target(distance):
    maps, model = torch.rand(K, 1, 10, 10), Net().to("meta")
    terms = {
        "prototype": PrototypeLoss(maps, distance=distance),
        "batch_cam": BatchCamLoss(maps, distance=distance, resolution="prototype"),
        "image": ImageLoss(distance=distance, mean=(0.1, 0.2, 0.3), std=0.5),
    }
    grad_cam = BatchGradCam(model, "trunk")
    regularizer = CamRegularizer(grad_cam, terms).to("meta")
    images, given, _ = batch(LABELS["soft"])
    with regularizer:
        scores = model(images)
    (F.cross_entropy(scores, given) + regularizer(scores, given, images=images)).backward()
    check(regularizer, model)
    assert grad_cam.attribute(images, target=1).shape == (8, 1, 8, 8)
