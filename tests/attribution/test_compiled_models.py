"""Compiled models: what is found, what is refused, and what really happens to hooks in and around compiled code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from batchcam_captum import BatchGradCam, LayerCapture

# torch's own warnings about hooks, tracing and TorchScript.
pytestmark = pytest.mark.filterwarnings("ignore")

IMAGES = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def forget_compiled_code() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.Tanh()),
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(4 * 36, 5)),
    )


def warm(model: Any) -> Any:
    """Compile with and without a graph, before there is any hook, as in a model that is in use."""
    model(IMAGES)
    with torch.no_grad():
        model(IMAGES)
    return model


def cams_of(model: Any, layer: nn.Module) -> Tensor:
    return BatchGradCam(model, layer).attribute(IMAGES, target=1)


def wrapped(model: nn.Module) -> object:
    return torch.compile(model, backend="aot_eager")


def in_place(model: nn.Module) -> object:
    model.compile(backend="aot_eager")
    return model


def compiled_forward(model: nn.Module) -> object:
    model.forward = torch.compile(model.forward, backend="aot_eager")
    return model


def function(model: nn.Module) -> object:
    return torch.compile(lambda images: model(images), backend="aot_eager")


@pytest.mark.parametrize("compiled", [wrapped, in_place, compiled_forward, function])
def test_a_layer_inside_compiled_code_runs_as_written(compiled: Callable[[nn.Module], object]) -> None:
    model, twin = network(), network()
    layer, whole = model[1], compiled(model)
    warm(whole)
    torch.testing.assert_close(cams_of(whole, layer), cams_of(twin, twin[1]), rtol=1e-5, atol=1e-7)


def test_a_layer_of_another_compiler() -> None:
    model = network()
    traced = torch.fx.symbolic_trace(model)  # calls its innermost modules, but not the containers
    inner = traced.get_submodule("1.0")
    torch.testing.assert_close(cams_of(traced, inner), cams_of(model, model[1][0]), rtol=1e-5, atol=1e-7)
    exported = torch.export.export(model, (IMAGES,)).module()
    for other, layer in (
        (torch.jit.trace(model, IMAGES), model[1]),
        (traced, traced.get_submodule("1")),
        (exported, exported.get_submodule("1")),
    ):
        with pytest.raises(RuntimeError, match="no run of it"):
            cams_of(other, layer)


def test_hooks_really_do_not_run_inside_compiled_code() -> None:
    """What is refused would go wrong: a model that has been compiled before."""
    model = network()
    compiled = warm(torch.compile(model, backend="aot_eager"))
    calls: list[nn.Module] = []
    with model[1].register_forward_hook(lambda module, *_: calls.append(module)):
        compiled(IMAGES)
    assert not calls


@pytest.mark.parametrize(("part", "in_place"), [(0, False), (1, False), (1, True), (2, False)])
def test_compiled_parts_around_the_layer_give_the_same_maps(part: int, in_place: bool) -> None:
    plain = network()
    expected = cams_of(plain, plain[1])
    model = network()
    if in_place:
        model[part].compile(backend="aot_eager")
    else:
        model[part] = torch.compile(model[part], backend="aot_eager")
    warm(model)
    tolerance = 1e-6 * expected.abs().max().item()
    torch.testing.assert_close(cams_of(model, model[1]), expected, rtol=0, atol=tolerance)
    with LayerCapture(model[1]) as capture:
        scores = model(IMAGES)
    torch.testing.assert_close(capture.activations, plain[:2](IMAGES))
    (gradient,) = torch.autograd.grad(scores[:, 1].sum(), capture.activations)
    assert gradient.abs().max() > 0


def test_a_compiled_trunk_can_be_trained_through() -> None:
    """Second order: the code before the layer is differentiated once."""
    model = network()
    model[0] = torch.compile(model[0], backend="aot_eager")
    warm(model)
    cams = BatchGradCam(model, model[1]).attribute(IMAGES, target=1, differentiable=True)
    cams.square().sum().backward()
    plain = network()
    BatchGradCam(plain, plain[1]).attribute(IMAGES, target=1, differentiable=True).square().sum().backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        if theirs.grad is None:
            assert ours.grad is None
            continue
        scale = theirs.grad.abs().max().item()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-5 * scale)


def test_compiled_code_after_the_layer_runs_as_written_where_it_has_to() -> None:
    # Compiled code may free what a second gradient needs, and has no second derivative; what it was compiled for comes first.
    expected, model = network(), network()
    model[2].compile(backend="aot_eager")
    model(IMAGES).sum().backward()
    got, written = BatchGradCam(model, model[0]), BatchGradCam(expected, expected[0])
    for _ in range(2):
        torch.testing.assert_close(got.attribute_classes(IMAGES), written.attribute_classes(IMAGES))
        torch.testing.assert_close(got.attribute(IMAGES, 1), written.attribute(IMAGES, 1))
        gradients = [
            torch.autograd.grad(
                grad_cam.attribute(IMAGES, 1, differentiable=True).square().sum(), net[1][0].weight
            )[0]
            for grad_cam, net in ((got, model), (written, expected))
        ]
        assert gradients[1].abs().max() > 0
        torch.testing.assert_close(*gradients)
