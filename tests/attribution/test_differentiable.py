"""Maps to train with: their full second-order gradient, checked on the weights after the layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn

from batchcam_captum import BatchGradCam
from tests.models import InPlaceNet, ResidualNet, SmallCnn, TupleNet, frozen

DIFFERENTIABLE: list[dict[str, Any]] = [
    {"differentiable": True},
    {"grad_kwargs": {"create_graph": True}},
    {"differentiable": True, "grad_kwargs": {"create_graph": True, "retain_graph": True}},
]
MODELS = {
    "plain": SmallCnn,
    "batch_norm": lambda: SmallCnn(norm=True),
    "one_dimension": lambda: SmallCnn(dims=1),
    "three_dimensions": lambda: SmallCnn(dims=3),
    "in_place": InPlaceNet,
    "residual": lambda: ResidualNet(nn.Identity()),
}


def images_for(model: nn.Module, count: int = 3) -> Tensor:
    dims = next(p for p in model.parameters()).dim() - 2
    return torch.randn(count, 3, *(12, 10, 9)[:dims], dtype=torch.float64)


def slow_cams(model: nn.Module, layer: nn.Module, images: Tensor, targets: list[int]) -> list[Tensor]:
    """The definition, sample by sample, with its graph."""
    cams = []
    for image, target in zip(images, targets, strict=True):
        remembered: list[Tensor] = []

        def remember(
            module: nn.Module, received: Any, returned: Tensor, kept: list[Tensor] = remembered
        ) -> Tensor:
            kept.append(returned)
            return returned.clone()

        handle = layer.register_forward_hook(remember)
        score = model(image.unsqueeze(0))[0, target]
        handle.remove()
        (activations,) = remembered
        (gradients,) = torch.autograd.grad(score, activations, create_graph=True)
        weights = gradients.flatten(2).mean(2)
        cams.append(torch.einsum("nc,nc...->n...", weights, activations).unsqueeze(1))
    return cams


def gradients_of(loss: Tensor, model: nn.Module) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    grads = torch.autograd.grad(loss, parameters, materialize_grads=True)
    return dict(zip(names, grads, strict=True))


@pytest.mark.parametrize("arguments", DIFFERENTIABLE, ids=["flag", "grad_kwargs", "both"])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_every_parameters_gradient_equals_a_loop_over_samples(make: Any, arguments: dict[str, Any]) -> None:
    model = make().double().eval()
    images, targets = images_for(model), [1, 4, 0]
    expected = gradients_of(
        sum(cam.square().sum() for cam in slow_cams(model, model.layer, images, targets)), model
    )
    cams = BatchGradCam(model, model.layer).attribute(images, targets, **arguments)
    cams.square().sum().backward()
    assert expected["head.weight"].abs().max() > 1e-4
    for name, parameter in model.named_parameters():
        actual = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        scale = expected[name].abs().max() + 1e-12
        assert (actual - expected[name]).abs().max() <= 1e-11 * scale, name


def test_a_wrongly_constant_channel_weight_would_be_seen() -> None:
    # Captum's default: the maps require a gradient and the trunk gets one, but the head gets none. This is the trap.
    model = SmallCnn()
    images = torch.randn(2, 3, 9, 9)
    cams = LayerGradCam(model, model.layer).attribute(images, target=1)
    assert cams.requires_grad
    cams.square().sum().backward()
    assert model.layer.weight.grad.abs().max() > 0
    assert model.head.weight.grad is None


@pytest.mark.parametrize("grad_kwargs", [None, {}, {"retain_graph": True}, {"create_graph": False}])
@pytest.mark.parametrize("method", ["attribute", "attribute_with_scores"])
def test_without_asking_everything_is_detached(method: str, grad_kwargs: dict[str, Any] | None) -> None:
    model = TupleNet()
    returned = getattr(BatchGradCam(model, model.layer), method)(
        torch.randn(2, 3, 11, 11), 1, grad_kwargs=grad_kwargs
    )
    cams, scores = returned if method == "attribute_with_scores" else (returned, returned[0])
    assert [tensor.requires_grad for tensor in (*cams, scores)] == [False] * 3
    assert all(tensor.grad_fn is None for tensor in (*cams, scores))


@pytest.mark.parametrize("method", ["attribute", "attribute_with_scores"])
def test_contradicting_arguments_raise(method: str) -> None:
    model = SmallCnn()
    grad_cam = BatchGradCam(model, model.layer)
    with pytest.raises(
        ValueError, match=r"differentiable=True contradicts .*create_graph.*leave one of them out"
    ):
        getattr(grad_cam, method)(
            torch.randn(1, 3, 9, 9), 1, grad_kwargs={"create_graph": False}, differentiable=True
        )


@pytest.mark.parametrize("at_input", [False, True], ids=["output", "input"])
@pytest.mark.parametrize("flags", [{}, {"relu_attributions": True}, {"attr_dim_summation": False}], ids=str)
def test_every_kind_of_map_reaches_the_head(flags: dict[str, bool], at_input: bool) -> None:
    model = SmallCnn()
    cams = BatchGradCam(model, model.layer).attribute(
        torch.randn(3, 3, 9, 9), [0, 1, 2], None, at_input, differentiable=True, **flags
    )
    cams.square().sum().backward()
    assert model.head.weight.grad.abs().max() > 0


def test_a_frozen_trunk_trains_the_head_alone() -> None:
    model = SmallCnn().double()
    frozen(model.stem), frozen(model.layer)
    images = images_for(model)
    expected = slow_gradient_of_head(model, images)
    BatchGradCam(model, model.layer).attribute(
        images, [0, 1, 2], differentiable=True
    ).square().sum().backward()
    assert (model.head.weight.grad - expected).abs().max() <= 1e-11 * expected.abs().max()
    assert model.layer.weight.grad is None


def slow_gradient_of_head(model: nn.Module, images: Tensor) -> Tensor:
    model.layer.requires_grad_(True)
    loss = sum(cam.square().sum() for cam in slow_cams(model, model.layer, images, [0, 1, 2]))
    model.layer.requires_grad_(False)
    return torch.autograd.grad(loss, model.head.weight)[0]


@pytest.mark.parametrize("differentiable", [False, True])
def test_scores_come_from_the_one_forward(differentiable: bool) -> None:
    model = SmallCnn(dropout=0.5).train()
    images = torch.randn(3, 3, 9, 9)
    returned: list[Tensor] = []
    handle = model.register_forward_hook(lambda module, received, scores: returned.append(scores))
    cams, scores = BatchGradCam(model, model.layer).attribute_with_scores(
        images, [0, 1, 2], differentiable=differentiable
    )
    handle.remove()
    assert len(returned) == 1
    torch.testing.assert_close(scores, returned[0], rtol=0, atol=0)
    assert scores.shape == (3, 5)
    assert scores.requires_grad == cams.requires_grad == differentiable


def test_scores_and_maps_train_together_in_one_backward() -> None:
    model = SmallCnn().double()
    images, targets = images_for(model), torch.tensor([0, 1, 2])
    cams, scores = BatchGradCam(model, model.layer).attribute_with_scores(
        images, targets, differentiable=True
    )
    together = nn.functional.cross_entropy(scores, targets) + cams.square().sum()
    apart = nn.functional.cross_entropy(model(images), targets) + sum(
        cam.square().sum() for cam in slow_cams(model, model.layer, images, targets.tolist())
    )
    expected = gradients_of(apart, model)
    for name, gradient in gradients_of(together, model).items():
        assert (gradient - expected[name]).abs().max() <= 1e-11 * expected[name].abs().max(), name


def test_attribute_with_scores_gives_attributes_maps() -> None:
    model = SmallCnn()
    grad_cam = BatchGradCam(model, model.layer)
    images = torch.randn(3, 3, 9, 9)
    for flags in (
        {},
        {"relu_attributions": True},
        {"attr_dim_summation": False},
        {"attribute_to_layer_input": True},
    ):
        cams, scores = grad_cam.attribute_with_scores(images, [1, 2, 3], **flags)
        torch.testing.assert_close(cams, grad_cam.attribute(images, [1, 2, 3], **flags), rtol=0, atol=0)
        torch.testing.assert_close(scores, model(images).detach(), rtol=0, atol=0)


class TrunkWithoutGraph(nn.Module):
    """A backbone that runs under ``no_grad``, as feature extractors do, and a head that trains."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(4 * 36, 5))

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            activations = self.trunk(images)
        return self.head(activations)


def test_a_trunk_under_no_grad_is_explained_and_its_head_trained() -> None:
    model = TrunkWithoutGraph().double()
    images = torch.randn(3, 3, 8, 8, dtype=torch.double)
    got = BatchGradCam(model, model.trunk).attribute(images, target=1, differentiable=True)
    recorded = nn.Sequential(model.trunk, model.head)
    expected = BatchGradCam(recorded, model.trunk).attribute(images, target=1, differentiable=True)
    torch.testing.assert_close(got, expected)
    ours = torch.autograd.grad(got.square().sum(), model.head[1].weight)
    theirs = torch.autograd.grad(expected.square().sum(), model.head[1].weight)
    torch.testing.assert_close(ours, theirs)
    assert ours[0].abs().max() > 0
