"""Gradients taken after what reads the layer give the training that gradients at the layer give."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from batchcam_captum import BatchCamLoss, BatchGradCam, CamRegularizer, PrototypeLoss
from batchcam_captum.training import regularizer as module

K = 3
LAYER = (6, 4, 8, 8)  #: shape of the gradient at the layer of Net


class Frozen(nn.Linear):
    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.weight.requires_grad_(False)


class Transposed(nn.Linear):
    """The features are the second factor of the product."""

    def forward(self, features: Tensor) -> Tensor:
        return (self.weight @ features.T).T


class Scaled(nn.Linear):
    def forward(self, features: Tensor) -> Tensor:
        return torch.addmm(self.bias, features, self.weight.T, alpha=0.5)


class TwoReaders(nn.Module):
    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(*sizes), nn.Linear(*sizes)

    def forward(self, features: Tensor) -> Tensor:
        return self.one(features) + self.other(features)


class UsedTwice(nn.Linear):
    """The weight has another use, too."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features) + self.weight.square().sum()


class Permuted(nn.Module):
    """Flatten the places before the channels."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.permute(0, 2, 3, 1).flatten(1)


class InSaved(nn.Sequential):
    """Whoever stores saved tensors elsewhere is not asked for them."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__(*parts)
        self.fetched: list[Tensor] = []

    def forward(self, features: Tensor) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, self.fetch):
            return super().forward(features)

    def fetch(self, tensor: Tensor) -> Tensor:
        self.fetched.append(tensor)
        return tensor


class Checkpointed(nn.Sequential):
    def forward(self, features: Tensor) -> Tensor:
        return checkpoint(super().forward, features, use_reentrant=False)


def linear(inputs: int, make: Any = nn.Linear) -> nn.Module:
    return nn.Sequential(nn.Flatten(), make(inputs, 6))


#: What reads the layer's (N, 4, 8, 8), and the shape of the gradient that is taken.
READERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "max pool": (lambda: nn.Sequential(nn.MaxPool2d(2), linear(64)), (6, 6)),
    "overlapping max pool": (lambda: nn.Sequential(nn.MaxPool2d(3, 2, 1), linear(64)), (6, 6)),
    "adaptive average": (lambda: nn.Sequential(nn.AdaptiveAvgPool2d(3), linear(36)), (6, 6)),
    "global average": (lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), linear(4)), (6, 4, 1, 1)),
    "average with padding": (lambda: nn.Sequential(nn.AvgPool2d(3, 2, 1), linear(64)), LAYER),
    "maximum and mean": (
        lambda: nn.Sequential(nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), linear(4)),
        (6, 4, 4, 4),
    ),
    "another nonlinearity": (lambda: nn.Sequential(nn.Tanh(), linear(256)), LAYER),
    "linear": (lambda: linear(256), (6, 6)),
    "no bias": (lambda: linear(256, lambda *sizes: nn.Linear(*sizes, bias=False)), (6, 6)),
    "weight used twice": (lambda: linear(256, UsedTwice), (6, 6)),
    "weight norm": (
        lambda: linear(256, lambda *sizes: nn.utils.parametrizations.weight_norm(nn.Linear(*sizes))),
        (6, 6),
    ),
    "frozen weight": (lambda: linear(256, Frozen), LAYER),
    "transposed": (lambda: linear(256, Transposed), LAYER),
    "scaled": (lambda: linear(256, Scaled), LAYER),
    "two readers": (lambda: linear(256, TwoReaders), LAYER),
    "dropout first": (lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(256, 6)), LAYER),
    "permuted": (lambda: nn.Sequential(Permuted(), nn.Linear(256, 6)), LAYER),
    "pooled, then permuted": (
        lambda: nn.Sequential(nn.MaxPool2d(2), Permuted(), nn.Linear(64, 6)),
        (6, 4, 4, 4),
    ),
    "checkpointed": (lambda: Checkpointed(nn.Flatten(), nn.Linear(256, 6)), LAYER),
    "saved elsewhere": (lambda: InSaved(nn.Flatten(), nn.Linear(256, 6)), LAYER),
}


class Net(nn.Module):
    def __init__(self, reader: nn.Module, dims: int = 2) -> None:
        super().__init__()
        self.layer = nn.Sequential((nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](1, 4, 3, padding=1), nn.Tanh())
        self.reader = reader
        self.head = nn.Sequential(nn.Softplus(), nn.Linear(6, K))
        self.twice = False

    def forward(self, images: Tensor) -> Tensor:
        activations = self.layer(images)
        scores = self.head(self.reader(activations))
        return scores + activations.mean() if self.twice else scores


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """Note the shape of each gradient that a cam is made of."""
    found: list[tuple[int, ...]] = []
    original = module.activation_gradients

    def noting(*args: Any, **kwargs: Any) -> Any:
        gradients = original(*args, **kwargs)
        found.extend(tuple(gradient.shape) for gradient in gradients)
        return gradients

    monkeypatch.setattr(module, "activation_gradients", noting)
    return found


def step(model: nn.Module, loss: Any = None, images: Tensor | None = None, method: str = "grad_cam") -> Any:
    """Return the objective and the gradients of the parameters."""
    if images is None:
        images = torch.rand(6, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(len(images)) % K
    loss = loss or BatchCamLoss(
        torch.rand(K, 1, *images.shape[2:], generator=torch.Generator().manual_seed(2))
    )
    regularizer = CamRegularizer(BatchGradCam(model, "layer", method=method), loss)
    torch.manual_seed(0)
    model.zero_grad()
    with regularizer:
        scores = model(images)
    total = F.cross_entropy(scores, labels) + regularizer(scores, labels)
    total.backward()
    return total.detach(), [None if p.grad is None else p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("make", "shape"), READERS.values(), ids=READERS)
def test_training_is_that_of_gradients_at_the_layer(
    make: Any, shape: tuple[int, ...], channels_last: bool, shapes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Net(make()).double()
    if channels_last:  # flattened by way of a copy
        model.to(memory_format=torch.channels_last)
    total, gradients = step(model)
    monkeypatch.setattr(module, "find_shortcut", lambda *_: None)
    expected_total, expected = step(model)
    assert shapes == [shape, LAYER]
    assert_close(total, expected_total, rtol=1e-12, atol=0)
    assert_close(gradients, expected, rtol=1e-9, atol=1e-13)
    assert gradients[-2].abs().max() > 0


@pytest.mark.parametrize("dims", [1, 3])
def test_in_other_dimensions(dims: int, shapes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = Net(linear(4 * 5**dims), dims).double(), torch.rand(4, 1, *[5] * dims).double()
    _, gradients = step(model, images=images)
    monkeypatch.setattr(module, "find_shortcut", lambda *_: None)
    assert_close(gradients, step(model, images=images)[1], rtol=1e-9, atol=1e-13)
    assert shapes == [(4, 6), (4, 4, *[5] * dims)]


def test_pooling_over_samples_or_channels_is_no_pooling_over_places(shapes: Any) -> None:
    def pooled(maps: Tensor) -> Tensor:  # (N, C, L) are (C, H, W) of a single image for torch
        return F.max_pool2d(maps, 2).flatten(1)

    class Reader(nn.Sequential):
        def forward(self, maps: Tensor) -> Tensor:
            return super().forward(pooled(maps))

    step(Net(Reader(nn.Linear(2 * 4, 6)), 1).double(), images=torch.rand(4, 1, 8).double())
    assert shapes == [(4, 4, 8)]


def test_what_else_asks_for_the_gradient_at_the_layer(shapes: Any) -> None:
    maps = torch.rand(K, 1, 8, 8)
    other = PrototypeLoss(maps)
    other.method = "hires_cam"
    model = Net(linear(256)).double()
    step(model, {"a": BatchCamLoss(maps), "b": other})
    step(model, method="layer_cam")
    model.twice = True
    step(model)
    assert shapes == [LAYER] * 3


@pytest.mark.parametrize("where", ["layer.1", "reader"])
def test_a_hook_on_the_activations_is_not_passed_by(where: str, shapes: Any) -> None:
    """A gradient that is scaled at the layer is scaled in the cam."""
    model, plain = Net(linear(256)).double(), []
    plain.append(step(model)[0])

    def scale(tensor: Tensor) -> None:
        tensor.register_hook(lambda gradient: -gradient)

    if where == "reader":
        model.reader.register_forward_pre_hook(lambda _, received: scale(received[0]))
    else:
        model.layer[1].register_forward_hook(lambda _, __, output: scale(output))
    assert step(model)[0] != plain[0]
    assert shapes == [(6, 6), LAYER]


@pytest.mark.parametrize("change", ["other values", "another type"])
def test_the_weight_is_that_of_the_forward(change: str, shapes: Any) -> None:
    """Exchanging the parameters' data in between, as an average of the weights is swapped in, changes no cam."""
    model, images = Net(linear(256)).double(), torch.rand(6, 1, 8, 8).double()
    regularizer = CamRegularizer(BatchGradCam(model, "layer"), PrototypeLoss(torch.rand(K, 1, 8, 8)))
    values = []
    for swaps in (False, True):
        with regularizer:
            scores = model(images)
        weight = model.reader[1].weight
        if swaps:
            weight.data = torch.rand_like(weight) if change == "other values" else weight.data.half()
        values.append(regularizer(scores, torch.arange(6) % K).detach())
    assert shapes == [(6, 6), (6, 6)]
    assert_close(*values, rtol=1e-12, atol=0)


def test_tensors_saved_elsewhere_are_fetched_by_the_gradient_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []
    for shortcuts in (True, False):
        model = Net(InSaved(nn.Flatten(), nn.Linear(256, 6))).double()
        if not shortcuts:
            monkeypatch.setattr(module, "find_shortcut", lambda *_: None)
        step(model)
        fetched.append(len(model.reader.fetched))
    assert fetched[0] == fetched[1] > 0


def test_autocast_is_as_precise_as_the_gradient_at_the_layer(
    shapes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, images = Net(linear(256)), torch.rand(6, 1, 8, 8)
    labels = torch.arange(6) % K
    loss = PrototypeLoss(torch.rand(K, 1, 8, 8), distance="l2")
    regularizer = CamRegularizer(BatchGradCam(model, "layer"), loss)

    def weight_gradient(*, amp: bool) -> Tensor:
        model.zero_grad()
        with regularizer, torch.autocast("cpu", torch.bfloat16, enabled=amp):
            scores = model(images)
        regularizer(scores.float(), labels).backward()
        return model.reader[1].weight.grad.clone()

    precise, short = weight_gradient(amp=False), weight_gradient(amp=True)
    monkeypatch.setattr(module, "find_shortcut", lambda *_: None)
    at_layer = weight_gradient(amp=True)
    assert shapes == [(6, 6), (6, 6), LAYER]
    error, of_layer = (short - precise).norm(), (at_layer - precise).norm()
    assert 0 < error < 0.05 * precise.norm()
    assert error < 2 * of_layer
