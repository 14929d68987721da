"""Gradients taken behind what reads the layer give the cams, and the training, that gradients at the layer give."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from batchcam_captum import BatchCamLoss, BatchGradCam, CamRegularizer, PrototypeLoss
from batchcam_captum.attribution.shortcut import Readers, find_shortcut, keeps_sums
from batchcam_captum.training import regularizer as module

K = 3
READERS = {
    "max pool": nn.MaxPool2d(2),
    "overlapping max pool": nn.MaxPool2d(3, stride=2, padding=1),
    "global average": nn.AdaptiveAvgPool2d(1),
    "adaptive average": nn.AdaptiveAvgPool2d(3),
    "average with padding": nn.AvgPool2d(3, stride=2, padding=1),
    "maximum and mean": nn.Sequential(nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)),
    "linear layer alone": nn.Identity(),
    "another nonlinearity": nn.Tanh(),
}
#: What gradients have the shape of: the linear layer's output, the pooling's, or the layer's.
OF_LINEAR, OF_POOLED, OF_LAYER = (6, 6), (6, 4, 1, 1), (6, 4, 8, 8)
ENDS = {"global average": OF_POOLED, "average with padding": OF_LAYER, "another nonlinearity": OF_LAYER} | {
    "maximum and mean": (6, 4, 4, 4)
}


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
    original = module.LayerGradient

    def noting(tensor, shortcut):
        shapes.append((tuple(tensor.shape), shortcut is not None))
        return original(tensor, shortcut)

    monkeypatch.setattr(module, "LayerGradient", noting)
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
    ((shape, _),) = shapes
    assert shape == ENDS.get(reader, OF_LINEAR)
    monkeypatch.setattr(module, "find_shortcut", lambda *_: None)
    expected_total, expected = gradients_of(model, loss)
    assert shapes[-1] == (OF_LAYER, False)
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
    """Whoever scales the gradient at the layer sees it scaled in the cam (behind it hooks on tensors cannot be seen)."""
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
    node = Readers(pooled.sum(), activations).sole()
    assert node is None or not keeps_sums(node, 3)
    activations = torch.rand(2, 4, 8, 8, requires_grad=True)
    assert not keeps_sums(Readers(activations.mean((1, 2, 3)), activations).sole(), 4)
    assert keeps_sums(Readers(activations.mean((-1, -2)), activations).sole(), 4)


class Frozen(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.weight.requires_grad_(False)


class Transposed(nn.Linear):
    """The features are the second factor of its product."""

    def forward(self, features):
        return (self.weight @ features.T).T


class Scaled(nn.Linear):
    def forward(self, features):
        return torch.addmm(self.bias, features, self.weight.T, alpha=0.5)


class TwoReaders(nn.Module):
    def __init__(self, *sizes):
        super().__init__()
        self.one, self.other = nn.Linear(*sizes), nn.Linear(*sizes)

    def forward(self, features):
        return self.one(features) + self.other(features)


class Elsewhere(nn.Linear):
    """Its weight has another use, too."""

    def forward(self, features):
        return super().forward(features) + self.weight.square().sum()


HEADS = {  # name -> a module for flattened places, and whether its output is where the gradient is taken
    "linear": (nn.Linear, True),
    "no bias": (lambda *sizes: nn.Linear(*sizes, bias=False), True),
    "weight used twice": (Elsewhere, True),
    "frozen weight": (Frozen, False),
    "weight norm": (lambda *sizes: nn.utils.parametrizations.weight_norm(nn.Linear(*sizes)), True),
    "dropout first": (lambda *sizes: nn.Sequential(nn.Dropout(0.5), nn.Linear(*sizes)), False),
    "transposed": (Transposed, False),
    "scaled": (Scaled, False),
    "two readers": (TwoReaders, False),
}


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("head", HEADS)
def test_behind_a_linear_layer_over_places_and_channels(head, dims, monkeypatch):
    make, shorter = HEADS[head]
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
    side = (5,) * dims
    model = nn.Sequential(
        conv(1, 3, 3, padding=1), nn.Flatten(), make(3 * 5**dims, 6), nn.Softplus(), nn.Linear(6, K)
    ).double()
    images = torch.rand(4, 1, *side, dtype=torch.float64)
    if dims == 2:  # flattened by way of a copy
        images = images.contiguous(memory_format=torch.channels_last)
        model = model.to(memory_format=torch.channels_last)
    labels = torch.arange(4) % K
    regularizer = CamRegularizer(
        BatchGradCam(model, "0"), PrototypeLoss(torch.rand(K, 1, *side), distance="l2")
    )
    shapes = ends_of(monkeypatch)

    def step():
        torch.manual_seed(0)
        model.zero_grad()
        with regularizer:
            scores = model(images)
        value = regularizer(scores, labels)
        value.backward()
        return value.detach(), [p.grad if p.grad is None else p.grad.clone() for p in model.parameters()]

    value, gradients = step()
    assert shapes == [((4, 6), True) if shorter else ((4, 3, *side), False)]
    monkeypatch.setattr(module, "find_shortcut", lambda *_: None)
    expected_value, expected = step()
    assert_close(value, expected_value, rtol=1e-12, atol=0)
    assert_close(gradients, expected, rtol=1e-9, atol=1e-13)
    assert expected[-2].abs().max() > 0


def flat_model(dtype=torch.float64):
    head = nn.Sequential(nn.Flatten(), nn.Linear(3 * 25, 6), nn.Softplus(), nn.Linear(6, K))
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), *head).to(dtype)


@pytest.mark.parametrize("change", ["other values", "another type"])
def test_the_weight_is_that_of_the_forward(change, monkeypatch):
    """Whoever exchanges the parameters' data in between, as an average of the weights is swapped in, changes no cam."""
    model, images = flat_model(), torch.rand(4, 1, 5, 5, dtype=torch.float64)
    regularizer = CamRegularizer(BatchGradCam(model, "0"), PrototypeLoss(torch.rand(K, 1, 5, 5)))
    shapes = ends_of(monkeypatch)
    values = []
    for swaps in (False, True):
        with regularizer:
            scores = model(images)
        weight = model[2].weight
        if swaps:
            weight.data = torch.rand_like(weight) if change == "other values" else weight.data.half()
        values.append(regularizer(scores, torch.arange(4) % K).detach())
    assert [shape for shape, _ in shapes] == [(4, 6), (4, 6)]
    assert_close(*values, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kept", ["by checkpointing", "by hooks of saved tensors"])
def test_a_weight_that_is_kept_elsewhere_is_not_fetched_for_it(kept, monkeypatch):
    model, images = flat_model(), torch.rand(4, 1, 5, 5, dtype=torch.float64)
    head, fetched = model[1:], []

    def fetch(held):
        fetched.append(held)
        return held

    class Kept(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = model[0], head

        def forward(self, images):
            activations = self.layer(images)
            if kept == "by checkpointing":
                return checkpoint(self.head, activations, use_reentrant=False)
            with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, fetch):
                return self.head(activations)

    whole = Kept()
    regularizer = CamRegularizer(BatchGradCam(whole, "layer"), PrototypeLoss(torch.rand(K, 1, 5, 5)))
    shapes = ends_of(monkeypatch)
    with regularizer:
        scores = whole(images)
    find_shortcut(scores[:, 0].sum(), regularizer._captured().activations[0])
    assert not fetched
    regularizer(scores, torch.arange(4) % K).backward()
    assert shapes == [((4, 3, 5, 5), False)]


def test_autocast_keeps_to_the_precise_gradient(monkeypatch):
    """In bfloat16 the shortcut is as near to float32 as the gradient at the layer is."""
    model, images = flat_model(torch.float32), torch.rand(8, 1, 5, 5)
    labels = torch.arange(8) % K
    regularizer = CamRegularizer(
        BatchGradCam(model, "0"), PrototypeLoss(torch.rand(K, 1, 5, 5), distance="l2")
    )
    shapes = ends_of(monkeypatch)

    def weight_gradient(*, amp):
        model.zero_grad()
        with regularizer, torch.autocast("cpu", torch.bfloat16, enabled=amp):
            scores = model(images)
        regularizer(scores.float(), labels).backward()
        return model[2].weight.grad.clone()

    precise, short = weight_gradient(amp=False), weight_gradient(amp=True)
    monkeypatch.setattr(module, "find_shortcut", lambda *_: None)
    at_layer = weight_gradient(amp=True)
    assert [shape for shape, _ in shapes] == [(8, 6), (8, 6), (8, 3, 5, 5)]
    error, of_layer = (short - precise).norm(), (at_layer - precise).norm()
    assert 0 < error < 0.05 * precise.norm()
    assert error < 2 * of_layer


def test_places_that_are_flattened_in_another_order_are_not_taken_for_channels(monkeypatch):
    class Permuted(nn.Module):
        def forward(self, maps):
            return maps.permute(0, 2, 3, 1).flatten(1)

    shapes = ends_of(monkeypatch)
    gradients_of(Net(Permuted()), BatchCamLoss(torch.rand(K, 1, 8, 8)))
    gradients_of(Net(nn.Sequential(nn.MaxPool2d(2), Permuted())), BatchCamLoss(torch.rand(K, 1, 8, 8)))
    assert [shape for shape, _ in shapes] == [OF_LAYER, (6, 4, 4, 4)]
