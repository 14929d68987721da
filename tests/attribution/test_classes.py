"""The maps of many classes from one pass equal those of one class at a time, of one sample at a time."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from captum.attr import LayerGradCam
from torch import Tensor, nn

from batchcam_captum import BatchGradCam, LayerCapture
from batchcam_captum.attribution.classes import pooled_edge
from batchcam_captum.functional import grad_cam
from tests.models import DenseNetOutput, ResidualNet, SmallCnn, TupleNet, VectorNet, strong_heads

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11}


def twin(model: nn.Module, layer: nn.Module, images: Tensor, classes: Tensor) -> Any:
    """Captum's map of one sample and one class after the other."""
    rows = []
    for sample, row in zip(images, classes, strict=True):
        maps = [LayerGradCam(model, layer).attribute(sample[None], target=int(c)) for c in row]
        if isinstance(maps[0], tuple):
            rows.append(tuple(torch.cat(entries, 1).detach() for entries in zip(*maps, strict=True)))
        else:
            rows.append(torch.cat(maps, 1).detach())
    if isinstance(rows[0], tuple):
        return tuple(torch.cat(entries) for entries in zip(*rows, strict=True))
    return torch.cat(rows)


def assert_close(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    assert not got.requires_grad
    peak = expected.abs().max().item()
    assert peak > 1e-4
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE[got.dtype] * peak)


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

    def __init__(self) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1))

    def forward(self, images: Tensor) -> Tensor:
        maps = self.layer(images)
        return self.head((maps.tanh() * self.pool(maps)).sum((2, 3)))


class WeightsFromActivations(Pooled):
    """The last product's other factor, or its bias, depends on the activations, too."""

    def __init__(self, what: str) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1))
        self.what = what

    def forward(self, images: Tensor) -> Tensor:
        pooled = self.pool(self.layer(images)).flatten(1)
        if self.what == "weight":
            return pooled.tanh() @ (pooled[:1].T * self.head.weight.T)
        return torch.addmm(pooled[:, :6].sin(), pooled.tanh(), self.head.weight.T)


def pooled_heads() -> dict[str, nn.Module]:
    return {
        "adaptive_pooling": Pooled(nn.AdaptiveAvgPool2d(1)),
        "mean": Pooled(lambda maps: maps.mean((2, 3))),
        "mean_negative_axes": Pooled(lambda maps: maps.mean((-1, -2), keepdim=True)),
        "mean_of_some_axes": Pooled(lambda maps: maps.mean(3).sum(2)),
        "mean_over_the_channels": Pooled(lambda maps: maps.mean((1, 2)), nn.Linear(9, 6)),
        "two_linear_layers": Pooled(
            nn.AdaptiveAvgPool2d(1), nn.Sequential(nn.Linear(8, 7), nn.GELU(), nn.Linear(7, 6, bias=False))
        ),
        "no_linear_last": Pooled(
            nn.AdaptiveAvgPool2d(1), nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Softplus())
        ),
        "another_path": Excited(),
    }


@pytest.mark.parametrize("name", list(pooled_heads()))
def test_heads_that_pool(name: str) -> None:
    model = pooled_heads()[name].double().eval()
    images = torch.randn(3, 3, 11, 11, dtype=torch.double)
    got = BatchGradCam(model, model.layer).attribute_classes(images)
    assert_close(got, twin(model, model.layer, images, torch.arange(6).expand(3, 6)))


@pytest.mark.parametrize(
    ("name", "recognised"),
    [
        ("adaptive_pooling", True),
        ("mean", True),
        ("mean_negative_axes", True),
        ("two_linear_layers", True),
        ("no_linear_last", True),
        ("mean_of_some_axes", False),
        ("another_path", False),
    ],
)
@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen"])
def test_pooling_is_recognised(name: str, recognised: bool, frozen: bool) -> None:
    model = pooled_heads()[name].eval().requires_grad_(not frozen)
    with LayerCapture(model.layer) as capture:
        scores = model(torch.randn(3, 3, 11, 11))
    found = pooled_edge(scores, capture.activations)
    assert (found is not None) == recognised
    if found is not None:
        assert (found.places, found.kept) == (81, 1)


@pytest.mark.parametrize("what", ["weight", "bias"])
def test_products_of_two_things_that_depend_on_the_layer(what: str) -> None:
    model = WeightsFromActivations(what).double()
    images = torch.randn(1, 3, 8, 8, dtype=torch.double)
    got = BatchGradCam(model, model.layer).attribute_classes(images)
    assert_close(got, twin(model, model.layer, images, torch.arange(6)[None]))


def small_vgg() -> nn.Module:
    model = torchvision.models.vgg11()
    model.classifier = nn.Sequential(nn.Linear(512 * 49, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 5))
    return model


NETWORKS: dict[str, tuple[Any, tuple[int, ...], str]] = {
    "plain": (SmallCnn, (3, 16, 14), "layer"),
    "one_dimension": (lambda: SmallCnn(dims=1), (3, 30), "layer"),
    "three_dimensions": (lambda: SmallCnn(dims=3), (3, 9, 10, 11), "layer"),
    "pooled_three_dimensions": (lambda: Pooled(nn.AdaptiveAvgPool3d(1), dims=3), (3, 5, 6, 7), "layer"),
    "tuple_valued": (TupleNet, (3, 11, 11), "layer"),
    "identity_beside_a_path": (lambda: ResidualNet(nn.Identity()), (3, 9, 9), "layer"),
    "vector_valued": (VectorNet, (3, 4, 4), "layer"),
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=5), (3, 64, 64), "layer4"),
    "resnet18_middle": (lambda: torchvision.models.resnet18(num_classes=5), (3, 64, 64), "layer3"),
    "vgg11": (small_vgg, (3, 32, 32), "features"),
    "convnextv2": (lambda: timm.create_model("convnextv2_atto", num_classes=5), (3, 64, 64), "stages.3"),
}


@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network(name: str, frozen: bool) -> None:
    make, shape, layer_name = NETWORKS[name]
    model = strong_heads(make()).double().eval().requires_grad_(not frozen)
    layer, images = model.get_submodule(layer_name), torch.randn(2, *shape, dtype=torch.double)
    classes = torch.tensor([[4, 0, 2], [1, 2, 3]])
    got = BatchGradCam(model, layer).attribute_classes(images, classes)
    expected = twin(model, layer, images, classes)
    assert isinstance(got, tuple) == isinstance(expected, tuple)
    for ours, theirs in zip(*((x if isinstance(x, tuple) else (x,)) for x in (got, expected)), strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize(
    "classes",
    [None, [0, 1, 2, 3, 4], range(5), (-5, 1, -3, 3, 4), torch.arange(5), torch.arange(5).expand(3, 5)],
    ids=["None", "list", "range", "tuple", "tensor", "rows"],
)
def test_ways_to_name_the_classes(classes: Any) -> None:
    model = SmallCnn()
    images = torch.randn(3, 3, 16, 14)
    got = BatchGradCam(model, model.layer).attribute_classes(images, classes)
    assert_close(got, twin(model, model.layer, images, torch.arange(5).expand(3, 5)))


def test_the_highest_classes_of_each_sample() -> None:
    model = SmallCnn().double()
    images = torch.randn(4, 3, 16, 14, dtype=torch.double)
    highest = model(images).topk(2).indices
    got = BatchGradCam(model, model.layer).attribute_classes(images, highest)
    assert_close(got, twin(model, model.layer, images, highest))


@pytest.mark.parametrize("internal_batch_size", [None, 2])
def test_classes_of_the_scores_come_with_them(internal_batch_size: int | None) -> None:
    model = SmallCnn().double()
    images = torch.randn(5, 3, 16, 14, dtype=torch.double)
    grad_cam = BatchGradCam(model, model.layer)
    cams, scores = grad_cam.attribute_classes_with_scores(
        images, lambda scores: scores.topk(2).indices, internal_batch_size=internal_batch_size
    )
    assert not scores.requires_grad
    with torch.no_grad():
        expected = model(images)
    assert_close(scores, expected)
    assert_close(cams, grad_cam.attribute_classes(images, expected.topk(2).indices))


@pytest.mark.parametrize("method", ["grad_cam_plus_plus", "xgrad_cam", "hires_cam", "layer_cam"])
@pytest.mark.parametrize("make", [SmallCnn, lambda: Pooled(nn.AdaptiveAvgPool2d(1), nn.Linear(8, 5))])
def test_every_weighting(make: Any, method: str) -> None:
    model = make().double()
    images = torch.randn(3, 3, 16, 14, dtype=torch.double)
    attribution = BatchGradCam(model, model.layer, method=method)
    expected = torch.cat([attribution.attribute(images, c) for c in range(5)], 1)
    assert_close(attribution.attribute_classes(images), expected)


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("make", [SmallCnn, lambda: Pooled(nn.AdaptiveAvgPool2d(1), nn.Linear(8, 5))])
def test_chunks_of_classes_change_nothing(make: Any, chunk: int) -> None:
    model = make().double()
    images = torch.randn(3, 3, 16, 14, dtype=torch.double)
    attribution = BatchGradCam(model, model.layer)
    got = attribution.attribute_classes(images, classes_per_chunk=chunk)
    assert_close(got, attribution.attribute_classes(images))


def test_several_layers() -> None:
    model = torchvision.models.resnet18(num_classes=5).double().eval()
    images = torch.randn(2, 3, 64, 64, dtype=torch.double)
    names = ["layer4", "layer2"]
    maps = BatchGradCam(model, names).attribute_classes(images, [3, 0], relu_attributions=True)
    assert isinstance(maps, list)
    for name, cams in zip(names, maps, strict=True):
        expected = twin(model, model.get_submodule(name), images, torch.tensor([[3, 0]] * 2))
        assert_close(cams, expected.relu())


def test_pieces_of_the_batch_change_nothing() -> None:
    model = SmallCnn().double()
    images, classes = torch.randn(5, 3, 16, 14, dtype=torch.double), torch.randint(5, (5, 3))
    attribution = BatchGradCam(model, model.layer)
    expected = attribution.attribute_classes(images, classes)
    assert_close(attribution.attribute_classes(images, classes, internal_batch_size=2), expected)


def test_there_is_one_forward_and_few_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Pooled(nn.AdaptiveAvgPool2d(1), nn.Linear(8, 1000))
    forwards, gradients = [], []
    model.register_forward_hook(lambda *_: forwards.append(1))
    original = torch.autograd.grad
    monkeypatch.setattr(
        torch.autograd, "grad", lambda *args, **kwargs: gradients.append(1) or original(*args, **kwargs)
    )
    maps = BatchGradCam(model, model.layer).attribute_classes(torch.randn(8, 3, 8, 8))
    assert maps.shape == (8, 1000, 6, 6)
    assert len(forwards) == 1
    assert len(gradients) < 10


class LooksAtValues(torch.autograd.Function):
    """Its backward asks for a number, which cannot be vectorised."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * (2 if float(gradient.sum()) < 1e30 else 0)


def test_an_operator_that_cannot_be_vectorised() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 6)

        def forward(self, features: Tensor) -> Tensor:
            return LooksAtValues.apply(self.linear(features.tanh()))

    model = Pooled(nn.AdaptiveAvgPool2d(2), nn.Sequential(nn.Linear(32, 8), Head())).double()
    images = torch.randn(2, 3, 11, 11, dtype=torch.double)
    with pytest.warns(UserWarning, match="cannot be vectorised over the classes") as raised:
        got = BatchGradCam(model, model.layer).attribute_classes(images, classes_per_chunk=2)
    assert len(raised) == 1
    assert raised[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_close(got, twin(model, model.layer, images, torch.arange(6).expand(2, 6)))
        # One class at a time is what the warning is about: nothing to warn of.
        BatchGradCam(model, model.layer).attribute_classes(images, classes_per_chunk=1)


@pytest.mark.parametrize(
    ("classes", "kind", "message"),
    [
        ([0, 5], ValueError, r"classes: expected indices from -5 to 4, got 5; the model returns 5 scores"),
        ([-6], ValueError, "from -5 to 4, got -6"),
        ([], ValueError, "expected M indices"),
        (torch.zeros(2, 1, dtype=torch.long), ValueError, r"each sample, \(3, M\), got shape \(2, 1\)"),
        (torch.zeros(3, 1, 1, dtype=torch.long), ValueError, "got shape"),
        (torch.zeros(3, 5), TypeError, "expected integers, got torch.float32"),
        ([0.5], TypeError, "expected integers, got float"),
        ([True], TypeError, "expected integers, got bool"),
        ("cat", TypeError, "a sequence of integers or a tensor, got str"),
        (3, TypeError, r"got int; a single class is \[3\]"),
    ],
)
def test_classes_that_do_not_fit(classes: Any, kind: type[Exception], message: str) -> None:
    model = SmallCnn()
    with pytest.raises(kind, match=message):
        BatchGradCam(model, model.layer).attribute_classes(torch.randn(3, 3, 16, 14), classes)


def test_rows_of_another_number_are_refused_in_pieces_too() -> None:
    model = SmallCnn()
    with pytest.raises(ValueError, match=r"each sample, \(4, M\), got shape \(2, 1\)"):
        BatchGradCam(model, model.layer).attribute_classes(
            torch.randn(4, 3, 16, 14), torch.tensor([[0], [1]]), internal_batch_size=2
        )


@pytest.mark.parametrize(
    "classes", [np.array([3, 1]), [np.int64(3), np.int64(1)], [torch.tensor(3), torch.tensor(1)]], ids=str
)
def test_arrays_and_other_integers(classes: Any) -> None:
    model, images = SmallCnn(), torch.randn(2, 3, 16, 14)
    attribution = BatchGradCam(model, model.layer)
    assert torch.equal(
        attribution.attribute_classes(images, classes), attribution.attribute_classes(images, [3, 1])
    )


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

    model = Hooked(nn.AdaptiveAvgPool2d(1)).double()
    images = torch.randn(3, 3, 8, 8, dtype=torch.double)
    attribution = BatchGradCam(model, model.layer)
    expected = torch.cat([attribution.attribute(images, c) for c in range(6)], 1)
    assert_close(attribution.attribute_classes(images), expected)


def test_a_method_that_cannot_be_hashed() -> None:
    @dataclass
    class Scaled:
        factor: float

        def __call__(self, activations: Tensor, gradients: Tensor) -> Tensor:
            return self.factor * grad_cam(activations, gradients)

    model, images = Pooled(nn.AdaptiveAvgPool2d(1)).double(), torch.randn(3, 3, 8, 8, dtype=torch.double)
    got = BatchGradCam(model, "layer", method=Scaled(2.0)).attribute_classes(images)
    assert_close(got, 2 * BatchGradCam(model, "layer").attribute_classes(images))


def test_scores_for_every_place_and_bad_chunks_are_refused() -> None:
    model = DenseNetOutput()
    with pytest.raises(ValueError, match=r"expected scores \(N, K\), got \(2, 5, 3, 3\)"):
        BatchGradCam(model, model.layer).attribute_classes(torch.randn(2, 3, 9, 9))
    small = SmallCnn()
    with pytest.raises(ValueError, match="classes_per_chunk: expected at least 1, got 0"):
        BatchGradCam(small, small.layer).attribute_classes(torch.randn(2, 3, 16, 14), classes_per_chunk=0)
    for size in (1.5, "a", True):
        with pytest.raises(TypeError, match="classes_per_chunk: expected an integer or None, got"):
            BatchGradCam(small, small.layer).attribute_classes(
                torch.randn(2, 3, 16, 14),
                classes_per_chunk=size,  # type: ignore[arg-type]
            )


def test_scores_that_do_not_depend_on_the_layer() -> None:
    class Around(Pooled):
        def forward(self, images: Tensor) -> Tensor:
            self.layer(images)
            return self.head(images.mean(1)[:, :2, :4].flatten(1))

    model = Around(None)
    with pytest.raises(RuntimeError, match="of a path around this layer"):
        BatchGradCam(model, model.layer).attribute_classes(torch.randn(2, 3, 8, 8))
