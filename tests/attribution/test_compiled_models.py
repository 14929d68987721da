"""Compiled models: what is found, what is refused, and what really happens to hooks in and around compiled code."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from batchcam_captum import BatchGradCam, LayerCapture
from batchcam_captum.attribution.compiled import (
    check_hooks_run,
    compiled_modules,
    eager_stance,
    hidden_layers,
)

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


def warm(model: nn.Module) -> nn.Module:
    """Compile with and without a graph, before there is any hook, as in a model that is in use."""
    model(IMAGES)
    with torch.no_grad():
        model(IMAGES)
    return model


def kinds(model: object) -> list[tuple[str, str]]:
    return [(part.name, part.kind) for part in compiled_modules(model)]


def cams_of(model: nn.Module, layer: nn.Module) -> Tensor:
    return BatchGradCam(model, layer).attribute(IMAGES, target=1)


def test_an_ordinary_model_has_none() -> None:
    model = network()
    assert compiled_modules(model) == []
    assert compiled_modules(lambda images: model(images)) == []
    check_hooks_run(model, [model[1]])


def test_a_wrapped_model() -> None:
    model = network()
    compiled = torch.compile(model, backend="eager")
    assert kinds(compiled) == [("OptimizedModule", "torch.compile")]
    with pytest.raises(
        RuntimeError,
        match=r"Sequential: .* inside OptimizedModule.* pass the original model, model\._orig_mod",
    ):
        check_hooks_run(compiled, [model[1]])
    check_hooks_run(compiled._orig_mod, [model[1]])


def test_a_wrapped_part_and_parts_inside_of_it() -> None:
    model = network()
    model[1][0] = torch.compile(model[1][0], backend="eager")
    model[1] = torch.compile(model[1], backend="eager")
    assert kinds(model) == [("1", "torch.compile")]
    assert "put the original back, 1._orig_mod" in str(hidden_layers(model, [model[1]._orig_mod[1]]))


def test_a_model_compiled_in_place() -> None:
    model = network()
    model.compile(backend="eager")
    assert kinds(model) == [("Sequential", "Module.compile()")]
    with pytest.raises(RuntimeError, match="set_stance"):
        check_hooks_run(model, [model[1]])


def test_a_compiled_forward_and_a_compiled_function() -> None:
    model = network()
    function = torch.compile(lambda images: model(images), backend="eager")
    assert [kind for _, kind in kinds(function)] == ["torch.compile"]
    assert "hooks do not run there" in str(hidden_layers(function, [model[1]]))
    model.forward = torch.compile(model.forward, backend="eager")
    assert kinds(model) == [("Sequential", "Module.compile()")]


def test_torchscript_export_and_fx() -> None:
    model = network()
    traced = torch.jit.trace(model, IMAGES)
    assert [kind for _, kind in kinds(traced)] == ["TorchScript"]
    assert "use the model that it was made of" in str(hidden_layers(traced, [model[1]]))
    exported = torch.export.export(model, (IMAGES,)).module()
    assert [kind for _, kind in kinds(exported)] == ["a traced graph"]
    assert "use the model that it was made of" in str(hidden_layers(exported, [exported.get_submodule("1")]))
    graph = torch.fx.symbolic_trace(model)  # calls its innermost modules, but not the containers
    inner, outer = graph.get_submodule("1.0"), graph.get_submodule("1")
    assert hidden_layers(graph, [inner]) is None
    assert hidden_layers(graph, [outer]) is not None
    expected = cams_of(model, model[1][0])
    torch.testing.assert_close(
        cams_of(graph, inner), expected, rtol=0, atol=1e-6 * expected.abs().max().item()
    )


def test_hooks_really_do_not_run_inside_compiled_code() -> None:
    """What is refused would go wrong: a model that has been compiled before."""
    model = network()
    compiled = warm(torch.compile(model, backend="aot_eager"))
    assert hidden_layers(compiled, [model[1]]) is not None
    calls: list[nn.Module] = []
    handle = model[1].register_forward_hook(lambda module, *_: calls.append(module))
    compiled(IMAGES)
    handle.remove()
    assert not calls


@pytest.mark.parametrize("part", [0, 1, 2], ids=["before", "the layer itself", "after"])
@pytest.mark.parametrize("in_place", [False, True], ids=["wrapped", "in place"])
def test_compiled_parts_around_the_layer_give_the_same_maps(part: int, in_place: bool) -> None:
    plain = network()
    expected = cams_of(plain, plain[1])
    model = network()
    if in_place:
        model[part].compile(backend="aot_eager")
    else:
        model[part] = torch.compile(model[part], backend="aot_eager")
    warm(model)
    check_hooks_run(model, [model[1]])
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


@pytest.mark.parametrize("in_place", [False, True], ids=["wrapped", "in place"])
def test_with_compiling_switched_off_everything_works(in_place: bool) -> None:
    model = network()
    expected = cams_of(model, model[1])
    if in_place:
        model.compile(backend="eager")
        compiled = model
    else:
        compiled = torch.compile(model, backend="eager")
    warm(compiled)
    with eager_stance():
        check_hooks_run(compiled, [model[1]])
        actual = cams_of(compiled, model[1])
    torch.testing.assert_close(actual, expected)
    assert hidden_layers(compiled, [model[1]]) is not None


@pytest.mark.parametrize("backend", ["aot_eager"])
def test_compiled_code_after_the_layer_runs_as_written_where_it_has_to(backend: str) -> None:
    # Compiled code may free what a second gradient needs, and has no second derivative; what it was compiled for comes first.
    expected, model = network(), network()
    model[2].compile(backend=backend)
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
