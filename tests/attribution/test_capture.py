"""LayerCapture: a layer's activations from somebody else's forward."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from batchcam_captum import BatchGradCam, LayerCapture
from batchcam_captum.functional import activation_gradients, grad_cam
from tests.models import (
    AddsInPlace,
    InPlaceNet,
    RepeatedNet,
    ResidualNet,
    SmallCnn,
    TupleNet,
    VectorNet,
    frozen,
)

MODELS = {
    "plain": (SmallCnn, 9),
    "in_place_relu": (InPlaceNet, 9),
    "in_place_add": (AddsInPlace, 9),
    "residual": (lambda: ResidualNet(nn.Identity()), 9),
    "vector": (VectorNet, 4),
    "tuple": (TupleNet, 11),
}


def cams_from(capture: LayerCapture, scores: Tensor, target: int) -> list[Tensor]:
    activations = capture.activations
    entries = activations if isinstance(activations, tuple) else (activations,)
    gradients = activation_gradients(scores[:, target], entries, create_graph=True)
    return [grad_cam(*pair) for pair in zip(entries, gradients, strict=True)]


@pytest.mark.parametrize("at_input", [False, True], ids=["output", "input"])
@pytest.mark.parametrize("is_frozen", [False, True], ids=["trainable", "frozen"])
@pytest.mark.parametrize(("make", "size"), MODELS.values(), ids=MODELS.keys())
def test_captured_activations_give_the_maps_of_attribute(
    make: Callable[[], nn.Module], size: int, is_frozen: bool, at_input: bool
) -> None:
    model = make().double()
    if is_frozen:
        frozen(model)
    images = torch.randn(3, 3, size, size).double()
    expected = BatchGradCam(model, model.layer).attribute(images, 2, attribute_to_layer_input=at_input)
    with LayerCapture(model.layer, at_input=at_input) as capture:
        scores = model(images)
    actual = cams_from(capture, scores, 2)
    for ours, theirs in zip(actual, expected if isinstance(expected, tuple) else (expected,), strict=True):
        assert theirs.abs().max() > 1e-4
        torch.testing.assert_close(ours.detach(), theirs, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("make", [InPlaceNet, AddsInPlace])
def test_what_is_captured_is_what_the_layer_returned(make: Callable[[], nn.Module]) -> None:
    model = make()
    images = torch.randn(2, 3, 9, 9)
    with torch.no_grad():
        expected = model.layer(model.stem(images))
    with LayerCapture(model.layer) as capture:
        scores = model(images)
    assert capture.activations.equal(expected)
    scores.sum().backward()
    assert model.layer.weight.grad.abs().max() > 0


def test_the_capture_changes_no_score_and_no_gradient() -> None:
    model = SmallCnn(norm=True, dropout=0.5).double().train()
    images = torch.randn(3, 3, 9, 9).double()

    def step(captured: bool) -> list[Tensor]:
        torch.manual_seed(5)
        twin = copy.deepcopy(model)
        if captured:
            with LayerCapture(twin.layer):
                scores = twin(images)
        else:
            scores = twin(images)
        scores.square().sum().backward()
        return [scores.detach(), *(p.grad for p in twin.parameters()), *twin.buffers()]

    for with_capture, without in zip(step(True), step(False), strict=True):
        torch.testing.assert_close(with_capture, without, rtol=0, atol=0)


def test_a_cam_loss_and_the_task_loss_go_backward_together() -> None:
    model = SmallCnn()
    with LayerCapture(model.layer) as capture:
        scores = model(torch.randn(2, 3, 9, 9))
    (cams,) = cams_from(capture, scores, 1)
    gradient = torch.autograd.grad(cams.square().sum(), model.head.weight, retain_graph=True)[0]
    assert gradient.abs().max() > 0
    (scores.sum() + cams.square().sum()).backward()


def test_the_hook_is_gone_after_the_block() -> None:
    model = SmallCnn()
    with LayerCapture(model.layer) as capture:
        assert len(model.layer._forward_hooks) == 1
        model(torch.randn(2, 3, 9, 9))
    assert not model.layer._forward_hooks
    kept = capture.activations
    model(torch.randn(2, 3, 9, 9))
    assert capture.activations is kept


def test_after_an_exception_hook_and_tensors_are_gone() -> None:
    model = frozen(SmallCnn())
    capture = LayerCapture(model.layer)
    seen: list[Tensor] = []

    def fail(*_: Any) -> None:
        seen.append(capture.activations)
        raise ZeroDivisionError

    handle = model.tail.register_forward_hook(fail)
    with pytest.raises(ZeroDivisionError), capture:
        model(torch.randn(2, 3, 9, 9))
    handle.remove()
    assert not model.layer._forward_hooks
    assert not seen[0].requires_grad, "the mark is undone"
    with pytest.raises(RuntimeError, match="got none"):
        _ = capture.activations
    with capture:
        model(torch.randn(2, 3, 9, 9))
    assert capture.activations.shape == seen[0].shape


def test_the_same_capture_serves_one_block_after_another() -> None:
    model = SmallCnn()
    capture = LayerCapture(model.layer)
    for count in (2, 3):
        with capture:
            model(torch.randn(count, 3, 9, 9))
        assert len(capture.activations) == count


def test_nested_re_entry_raises_and_cleans_up() -> None:
    model = SmallCnn()
    capture = LayerCapture(model.layer)
    with (
        pytest.raises(RuntimeError, match=r"expected a capture that is not open, got a nested one"),
        capture,
        capture,
    ):
        pass
    assert not model.layer._forward_hooks


def test_two_captures_may_nest() -> None:
    model = SmallCnn()
    with (
        LayerCapture(model.layer) as outer,
        LayerCapture(model.layer) as inner,
        LayerCapture(model.tail[1]) as later,
    ):
        scores = model(torch.randn(2, 3, 9, 9))
    for capture in (outer, inner, later):
        (cams,) = cams_from(capture, scores, 1)
        assert cams.abs().max() > 0


def test_a_second_call_of_the_model_in_a_block_raises() -> None:
    model = SmallCnn()
    images = torch.randn(2, 3, 9, 9)
    text = "^Conv2d: .* a second one"
    with pytest.raises(RuntimeError, match=text), LayerCapture(model.layer):
        _ = model(images), model(images)
    assert not model.layer._forward_hooks


def test_a_layer_that_runs_twice_in_a_forward_raises() -> None:
    model = RepeatedNet()
    with (
        pytest.raises(RuntimeError, match="a second one"),
        LayerCapture(model.layer),
    ):
        model(torch.randn(2, 3, 9, 9))


def test_no_forward_is_an_error_that_says_so() -> None:
    capture = LayerCapture(SmallCnn().layer)
    text = r"^Conv2d: expected one forward through this layer inside the with block, got none; call the model inside"
    with pytest.raises(RuntimeError, match=text):
        _ = capture.activations
    with pytest.raises(RuntimeError, match=text), capture:
        _ = capture.activations
    with capture:
        pass
    with pytest.raises(RuntimeError, match=text):
        _ = capture.activations


@pytest.mark.parametrize("at_input", [False, True], ids=["output", "input"])
def test_a_frozen_trunk_is_marked_and_released(at_input: bool) -> None:
    model = SmallCnn()
    layer = model.stem[0] if at_input else model.layer
    frozen(model.stem), frozen(model.layer)
    images = torch.randn(2, 3, 9, 9)
    with LayerCapture(layer, at_input=at_input) as capture:
        scores = model(images)
    activations = capture.activations
    assert (activations is images) == at_input
    assert activations.requires_grad
    (cams,) = cams_from(capture, scores, 1)
    cams.square().sum().backward()
    assert model.head.weight.grad.abs().max() > 0
    capture.release()
    assert not activations.requires_grad
    assert not images.requires_grad


def test_release_keeps_a_gradient_requirement_that_was_there() -> None:
    model = frozen(SmallCnn())
    images = torch.randn(2, 3, 9, 9, requires_grad=True)
    with LayerCapture(model.stem[0], at_input=True) as capture:
        model(images)
    capture.release()
    assert images.requires_grad


def test_inference_mode_is_an_error_that_names_the_remedy() -> None:
    model = SmallCnn()
    with (
        pytest.raises(
            RuntimeError, match=r"got one under torch.inference_mode\(\); run the forward outside of it"
        ),
        torch.inference_mode(),
        LayerCapture(model.layer),
    ):
        model(torch.randn(2, 3, 9, 9))
    assert not model.layer._forward_hooks


@pytest.mark.parametrize("is_frozen", [False, True], ids=["trainable", "frozen"])
def test_a_gradient_of_a_forward_under_no_grad_is_a_clear_error(is_frozen: bool) -> None:
    model = SmallCnn()
    if is_frozen:
        frozen(model)
    with torch.no_grad(), LayerCapture(model.layer) as capture:
        scores = model(torch.randn(2, 3, 9, 9))
    assert capture.activations.shape == (2, 8, 4, 4)
    with pytest.raises(
        RuntimeError, match=r"^scores: expected scores with a graph, .*outside torch.no_grad\(\)"
    ):
        activation_gradients(scores[:, 1], (capture.activations,))


def test_a_graph_that_is_freed_is_a_clear_error() -> None:
    model = SmallCnn()
    with LayerCapture(model.layer) as capture:
        scores = model(torch.randn(2, 3, 9, 9))
    scores.sum().backward()
    with pytest.raises(RuntimeError, match=r"an earlier backward\(\) has freed; add all terms to one loss"):
        activation_gradients(scores[:, 1], (capture.activations,))


def test_scores_of_another_forward_are_a_clear_error() -> None:
    model = SmallCnn()
    images = torch.randn(2, 3, 9, 9)
    with LayerCapture(model.layer) as capture:
        model(images)
    with pytest.raises(RuntimeError, match=r"got scores of another forward, or of a path around this layer"):
        activation_gradients(model(images)[:, 1], (capture.activations,))


def test_nothing_is_held_after_release() -> None:
    model = SmallCnn()
    with LayerCapture(model.layer) as capture:
        scores = model(torch.randn(2, 3, 9, 9))
    held = weakref.ref(capture.activations)
    del scores
    gc.collect()
    assert held() is not None
    capture.release()
    gc.collect()
    assert held() is None
