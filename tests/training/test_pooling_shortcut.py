"""Gradients taken behind a pooling give the cams, and the training, that gradients at the layer give."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from batchcam_captum import BatchCamLoss, BatchGradCam, CamRegularizer, PrototypeLoss
from batchcam_captum.attribution.pooling import keeps_sums, sole_reader
from batchcam_captum.training import cams

K = 3
READERS = {
    "max pool": nn.MaxPool2d(2),
    "overlapping max pool": nn.MaxPool2d(3, stride=2, padding=1),
    "global average": nn.AdaptiveAvgPool2d(1),
    "adaptive average": nn.AdaptiveAvgPool2d(3),
    "average with padding": nn.AvgPool2d(3, stride=2, padding=1),
    "maximum and mean": nn.Sequential(nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)),
    "none": nn.Identity(),
}
SHORTER = ("max pool", "overlapping max pool", "global average", "adaptive average", "maximum and mean")


class Net(nn.Module):
    def __init__(self, reader, twice=False):
        super().__init__()
        self.layer = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh())
        self.reader = reader
        self.head = nn.Sequential(nn.Flatten(), nn.LazyLinear(6), nn.Softplus(), nn.Linear(6, K))
        self.twice = twice
        self(torch.rand(1, 1, 8, 8))
        self.double()

    def forward(self, images):
        activations = self.layer(images)
        scores = self.head(self.reader(activations))
        return scores + activations.mean() if self.twice else scores


def ends_of(monkeypatch):
    """The shapes of the gradients that are taken."""
    shapes = []
    original = cams._LayerGradients

    def noting(tensor, are_behind):
        shapes.append((tuple(tensor.shape), are_behind))
        return original(tensor, are_behind)

    monkeypatch.setattr(cams, "_LayerGradients", noting)
    return shapes


def gradients_of(model, loss, *, method="grad_cam"):
    images = torch.rand(6, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(6) % K
    regularizer = CamRegularizer(BatchGradCam(model, "layer", method=method), loss)
    with regularizer:
        scores = model(images)
    total = F.cross_entropy(scores, labels) + regularizer(scores, labels)
    model.zero_grad()
    total.backward()
    return total.detach(), [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("reader", READERS)
def test_training_is_that_of_gradients_at_the_layer(reader, monkeypatch):
    model = Net(READERS[reader])
    loss = BatchCamLoss(torch.rand(K, 1, 8, 8))
    shapes = ends_of(monkeypatch)
    total, gradients = gradients_of(model, loss)
    ((_, are_behind),) = shapes
    assert are_behind == (reader in SHORTER)
    monkeypatch.setattr(cams, "keeps_sums", lambda *_: False)
    expected_total, expected = gradients_of(model, loss)
    assert shapes[-1] == ((6, 4, 8, 8), False)
    assert_close(total, expected_total, rtol=1e-12, atol=0)
    assert_close(gradients, expected, rtol=1e-9, atol=1e-13)
    assert gradients[-2].abs().max() > 0


def test_a_layer_that_is_read_twice_has_no_shortcut(monkeypatch):
    shapes = ends_of(monkeypatch)
    gradients_of(Net(nn.MaxPool2d(2), twice=True), BatchCamLoss(torch.rand(K, 1, 8, 8)))
    assert [behind for _, behind in shapes] == [False]


def test_other_weightings_of_the_score_need_the_gradient_at_the_layer(monkeypatch):
    shapes = ends_of(monkeypatch)
    maps = torch.rand(K, 1, 8, 8)
    other = PrototypeLoss(maps)
    other.method = "hires_cam"
    gradients_of(Net(nn.MaxPool2d(2)), {"a": BatchCamLoss(maps), "b": other})
    gradients_of(Net(nn.MaxPool2d(2)), BatchCamLoss(maps), method="layer_cam")
    assert [behind for _, behind in shapes] == [False, False]


@pytest.mark.parametrize("where", ["output", "what is handed on"])
def test_a_hook_on_the_activations_is_not_passed_by(where, monkeypatch):
    """Whoever scales the gradient there, as gradient reversal does, sees it scaled in the cam."""
    shapes = ends_of(monkeypatch)
    model = Net(nn.MaxPool2d(2))

    def scale(_, __, output):
        output.register_hook(lambda gradient: -gradient)

    if where == "output":
        model.layer[1].register_forward_hook(scale)
    else:
        model.reader.register_forward_pre_hook(lambda _, received: scale(_, _, received[0]))
    gradients_of(model, BatchCamLoss(torch.rand(K, 1, 8, 8)))
    assert [behind for _, behind in shapes] == [False]


def test_pooling_over_samples_and_channels_is_none():
    activations = torch.rand(2, 4, 8, requires_grad=True)
    pooled = F.max_pool2d(activations, 2)  # (C, H, W) of a single image, to torch
    node = sole_reader(pooled.sum(), activations)
    assert node is None or not keeps_sums(node, 3)
    activations = torch.rand(2, 4, 8, 8, requires_grad=True)
    assert not keeps_sums(sole_reader(activations.mean((1, 2, 3)), activations), 4)
    assert keeps_sums(sole_reader(activations.mean((-1, -2)), activations), 4)
