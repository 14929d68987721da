"""The maps of many classes from one pass equal those of one class and one sample at a time."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from captum.attr import LayerGradCam
from torch import Tensor, nn

from batchcam_captum import BatchGradCam
from batchcam_captum.functional import grad_cam
from tests.attribution.captum_parity import assert_close_to
from tests.models import DenseNetOutput, ResidualNet, SmallCnn, TupleNet, VectorNet, strong_heads


def images_of(samples: int = 3, *shape: int) -> Tensor:
    return torch.randn(samples, 3, *(shape or (16, 14)), dtype=torch.double)


def twin(model: nn.Module, layer: nn.Module, images: Tensor, classes: Tensor) -> Any:
    """Captum's map of one sample and one class after the other."""
    rows = []
    for sample, row in zip(images, classes, strict=True):
        maps = [LayerGradCam(model, layer).attribute(sample[None], target=int(c)) for c in row]
        if isinstance(maps[0], tuple):
            rows.append(tuple(torch.cat(entries, 1) for entries in zip(*maps, strict=True)))
        else:
            rows.append(torch.cat(maps, 1))
    if isinstance(rows[0], tuple):
        return tuple(torch.cat(entries) for entries in zip(*rows, strict=True))
    return torch.cat(rows)


def assert_close(found: Any, expected: Any) -> None:
    assert_close_to(found, expected, torch.float64)
    assert not any(each.requires_grad for each in (found if isinstance(found, tuple) else (found,)))


class Pooled(nn.Module):
    """The head begins with a pooling of a kind."""

    def __init__(self, pool: Any, head: nn.Module | None = None, dims: int = 2) -> None:
        super().__init__()
        self.layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](3, 8, 3)
        self.pool = pool
        self.head = strong_heads(head or nn.Linear(8, 6))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.pool(self.layer(images)).flatten(1))


class Excited(Pooled):
    """What is pooled is also used on another path."""

    def forward(self, images: Tensor) -> Tensor:
        maps = self.layer(images)
        return self.head((maps.tanh() * self.pool(maps)).sum((2, 3)))


class WeightFromActivations(Pooled):
    """The last product's other factor depends on the activations, too."""

    def forward(self, images: Tensor) -> Tensor:
        pooled = self.pool(self.layer(images)).flatten(1)
        return pooled.tanh() @ (pooled[:1].T * self.head.weight.T)


class BiasFromActivations(Pooled):
    def forward(self, images: Tensor) -> Tensor:
        pooled = self.pool(self.layer(images)).flatten(1)
        return torch.addmm(pooled[:, :6].sin(), pooled.tanh(), self.head.weight.T)


def global_pool() -> nn.Module:
    return nn.AdaptiveAvgPool2d(1)


#: Heads that pool, and whether the gradients can be taken after the pooling.
HEADS: dict[str, tuple[Any, bool]] = {
    "adaptive_pooling": (lambda: Pooled(global_pool()), True),
    "mean": (lambda: Pooled(lambda maps: maps.mean((2, 3))), True),
    "mean_negative_axes": (lambda: Pooled(lambda maps: maps.mean((-1, -2), keepdim=True)), True),
    "two_linear_layers": (
        lambda: Pooled(global_pool(), nn.Sequential(nn.Linear(8, 7), nn.GELU(), nn.Linear(7, 6, bias=False))),
        True,
    ),
    "no_linear_last": (
        lambda: Pooled(global_pool(), nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Softplus())),
        True,
    ),
    "weight_from_activations": (lambda: WeightFromActivations(global_pool()), True),
    "bias_from_activations": (lambda: BiasFromActivations(global_pool()), True),
    "mean_of_some_axes": (lambda: Pooled(lambda maps: maps.mean(3).sum(2)), False),
    "mean_over_the_channels": (lambda: Pooled(lambda maps: maps.mean((1, 2)), nn.Linear(9, 6)), False),
    "another_path": (lambda: Excited(global_pool()), False),
}


@pytest.mark.parametrize("is_frozen", [False, True], ids=["trainable", "frozen"])
@pytest.mark.parametrize(("make", "shorter"), HEADS.values(), ids=HEADS)
def test_heads_that_pool(make: Any, shorter: bool, is_frozen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make().double().eval().requires_grad_(not is_frozen)
    # Of these two heads one sample's scores depend on the others.
    samples = 1 if isinstance(model, WeightFromActivations) else 3
    images, ends = images_of(samples, 11, 11), []
    expected = twin(model, model.layer, images, torch.arange(6).expand(samples, 6))
    original = torch.autograd.grad

    def noting(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        ends.extend(inputs)
        return original(outputs, inputs, *args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", noting)
    assert_close(BatchGradCam(model, model.layer).attribute_classes(images), expected)
    assert all(isinstance(end, Tensor) != shorter for end in ends)


NETWORKS: dict[str, tuple[Any, tuple[int, ...], str]] = {
    "plain": (SmallCnn, (16, 14), "layer"),
    "one_dimension": (lambda: SmallCnn(dims=1), (30,), "layer"),
    "three_dimensions": (lambda: SmallCnn(dims=3), (9, 10, 11), "layer"),
    "pooled_three_dimensions": (lambda: Pooled(nn.AdaptiveAvgPool3d(1), dims=3), (5, 6, 7), "layer"),
    "tuple_valued": (TupleNet, (11, 11), "layer"),
    "identity_beside_a_path": (lambda: ResidualNet(nn.Identity()), (9, 9), "layer"),
    "vector_valued": (VectorNet, (4, 4), "layer"),
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=5), (64, 64), "layer4"),
}


@pytest.mark.parametrize("is_frozen", [False, True], ids=["trainable", "frozen"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network(name: str, is_frozen: bool) -> None:
    make, shape, layer_name = NETWORKS[name]
    model = strong_heads(make()).double().eval().requires_grad_(not is_frozen)
    layer, images = model.get_submodule(layer_name), images_of(2, *shape)
    classes = torch.tensor([[4, 0, 2], [1, 2, 3]])
    assert_close(
        BatchGradCam(model, layer).attribute_classes(images, classes), twin(model, layer, images, classes)
    )


@pytest.mark.parametrize(
    "classes",
    [
        None,
        range(5),
        (-5, 1, -3, 3, 4),
        torch.arange(5),
        torch.arange(5, dtype=torch.uint8).expand(3, 5),
        np.arange(5),
        [np.int64(entry) for entry in range(5)],
        list(torch.arange(5)),
    ],
    ids=["None", "range", "tuple", "tensor", "rows", "array", "NumPy integers", "tensors"],
)
def test_ways_to_name_the_classes(classes: Any) -> None:
    model, images = SmallCnn().double(), images_of()
    found = BatchGradCam(model, model.layer).attribute_classes(images, classes)
    assert_close(found, twin(model, model.layer, images, torch.arange(5).expand(3, 5)))


@pytest.mark.parametrize("internal_batch_size", [None, 2])
def test_classes_of_the_scores_come_with_them(internal_batch_size: int | None) -> None:
    model, images = SmallCnn().double(), images_of(5)
    found, scores = BatchGradCam(model, model.layer).attribute_classes_with_scores(
        images, lambda scores: scores.topk(2).indices, internal_batch_size=internal_batch_size
    )
    expected = model(images).detach()
    assert_close(scores, expected)
    assert_close(found, twin(model, model.layer, images, expected.topk(2).indices))


@pytest.mark.parametrize("method", ["grad_cam", "grad_cam_plus_plus", "xgrad_cam", "hires_cam", "layer_cam"])
@pytest.mark.parametrize("make", [SmallCnn, lambda: Pooled(global_pool(), nn.Linear(8, 5))])
def test_every_weighting_in_chunks_and_pieces(make: Any, method: str) -> None:
    model, images = make().double(), images_of()
    attribution = BatchGradCam(model, model.layer, method=method)
    expected = torch.cat([attribution.attribute(images, c) for c in range(5)], 1)
    assert_close(attribution.attribute_classes(images), expected)
    for chunk in (1, 2, 100):
        found = attribution.attribute_classes(images, classes_per_chunk=chunk, internal_batch_size=2)
        assert_close(found, expected)


def test_a_method_that_cannot_be_hashed() -> None:
    @dataclass
    class Scaled:
        factor: float

        def __call__(self, activations: Tensor, gradients: Tensor) -> Tensor:
            return self.factor * grad_cam(activations, gradients)

    model, images = Pooled(global_pool()).double(), images_of()
    found = BatchGradCam(model, "layer", method=Scaled(2.0)).attribute_classes(images)
    assert_close(found, 2 * BatchGradCam(model, "layer").attribute_classes(images))


def test_several_layers() -> None:
    model, images, names = SmallCnn().double(), images_of(2), ["layer", "stem"]
    maps = BatchGradCam(model, names).attribute_classes(images, [3, 0], relu_attributions=True)
    assert isinstance(maps, list)
    for name, cams in zip(names, maps, strict=True):
        expected = twin(model, model.get_submodule(name), images, torch.tensor([[3, 0]] * 2))
        assert_close(cams, expected.relu())


def test_a_thousand_classes_take_one_forward_and_few_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    model, forwards, gradients = Pooled(global_pool(), nn.Linear(8, 1000)), [], []
    model.register_forward_hook(lambda *_: forwards.append(1))
    original = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: gradients.append(1) or original(*a, **k))
    maps = BatchGradCam(model, model.layer).attribute_classes(torch.randn(8, 3, 8, 8))
    assert maps.shape == (8, 1000, 6, 6)
    assert len(forwards) == 1
    assert len(gradients) < 10


def test_an_operator_that_cannot_be_vectorized() -> None:
    class LooksAtValues(torch.autograd.Function):
        """Its backward asks for a number."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient * (2 if float(gradient.sum()) < 1e30 else 0)

    class Head(nn.Linear):
        def forward(self, features: Tensor) -> Tensor:
            return LooksAtValues.apply(super().forward(features.tanh()))

    model = Pooled(nn.AdaptiveAvgPool2d(2), nn.Sequential(nn.Linear(32, 8), Head(8, 6))).double()
    images = images_of(2, 11, 11)
    with pytest.warns(UserWarning, match="classes") as raised:
        found = BatchGradCam(model, model.layer).attribute_classes(images, classes_per_chunk=2)
    assert [warning.filename for warning in raised] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_close(found, twin(model, model.layer, images, torch.arange(6).expand(2, 6)))
        # One class at a time is what the warning is about, so nothing is left to warn of.
        BatchGradCam(model, model.layer).attribute_classes(images, classes_per_chunk=1)


@pytest.mark.parametrize("where", ["activations", "pooled", "scores"])
def test_hooks_on_gradients_count_as_in_attribute(where: str) -> None:
    class Hooked(Pooled):
        def forward(self, images: Tensor) -> Tensor:
            activations = self.layer(images)
            pooled = self.pool(activations)
            scores = self.head(pooled.flatten(1))
            hooked = {"activations": activations, "pooled": pooled, "scores": scores}[where]
            if hooked.requires_grad:
                hooked.register_hook(lambda gradient: gradient.clamp(min=0) * 2)
            return scores

    model, images = Hooked(global_pool()).double(), images_of(3, 8, 8)
    attribution = BatchGradCam(model, model.layer)
    expected = torch.cat([attribution.attribute(images, c) for c in range(6)], 1)
    assert_close(attribution.attribute_classes(images), expected)


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"classes": [0, 5]}, ValueError, "^classes: .* 5"),
        ({"classes": [-6]}, ValueError, "^classes: .* -6"),
        ({"classes": []}, ValueError, "^classes: "),
        ({"classes": torch.zeros(2, 1).long()}, ValueError, r"^classes: .*\(2, 1\)"),
        (
            {"classes": torch.zeros(2, 1).long(), "internal_batch_size": 2},
            ValueError,
            r"^classes: .*\(2, 1\)",
        ),
        ({"classes": torch.zeros(3, 1, 1).long()}, ValueError, "^classes: "),
        ({"classes": torch.zeros(3, 5)}, TypeError, "^classes: .*float32"),
        ({"classes": [0.5]}, TypeError, "^classes: .*float"),
        ({"classes": [True]}, TypeError, "^classes: .*bool"),
        ({"classes": "cat"}, TypeError, "^classes: .*str"),
        ({"classes": 3}, TypeError, "^classes: .*int"),
        ({"classes_per_chunk": 0}, ValueError, "^classes_per_chunk: "),
        ({"classes_per_chunk": 1.5}, TypeError, "^classes_per_chunk: "),
        ({"classes_per_chunk": True}, TypeError, "^classes_per_chunk: "),
    ],
)
def test_arguments_that_do_not_fit(options: dict[str, Any], kind: type[Exception], text: str) -> None:
    model = SmallCnn().double()
    with pytest.raises(kind, match=text):
        BatchGradCam(model, model.layer).attribute_classes(images_of(), **options)


def test_scores_that_do_not_fit() -> None:
    class Around(Pooled):
        def forward(self, images: Tensor) -> Tensor:
            self.layer(images)
            return self.head(images.mean(1)[:, :2, :4].flatten(1))

    places, around = DenseNetOutput(), Around(None)
    with pytest.raises(ValueError, match=r"scores .*\(2, 5, 3, 3\)"):
        BatchGradCam(places, places.layer).attribute_classes(torch.randn(2, 3, 9, 9))
    with pytest.raises(RuntimeError, match="scores"):
        BatchGradCam(around, around.layer).attribute_classes(torch.randn(2, 3, 8, 8))
