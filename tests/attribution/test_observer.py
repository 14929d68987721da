"""Activations captured from somebody else's forward: the right tensors, of the right forward, and nothing left behind."""

from __future__ import annotations

import copy
import io
import pickle
import threading
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from batchcam_captum import BatchGradCam, CamRegularizer, LayerCapture, PrototypeLoss
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


def images_of(samples: int = 2) -> Tensor:
    return torch.randn(samples, 3, 9, 9)


def cams_from(capture: LayerCapture, scores: Tensor, target: int = 1) -> list[Tensor]:
    activations = capture.activations
    entries = activations if isinstance(activations, tuple) else (activations,)
    gradients = activation_gradients(scores[:, target], entries, create_graph=True)
    return [grad_cam(*pair) for pair in zip(entries, gradients, strict=True)]


def in_a_thread(run: Any) -> None:
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


@pytest.mark.parametrize("at_input", [False, True], ids=["output", "input"])
@pytest.mark.parametrize("is_frozen", [False, True], ids=["trainable", "frozen"])
@pytest.mark.parametrize(("make", "size"), MODELS.values(), ids=MODELS)
def test_captured_activations_give_the_maps_of_attribute(
    make: Any, size: int, is_frozen: bool, at_input: bool
) -> None:
    model = make().double().requires_grad_(not is_frozen)
    images = torch.randn(3, 3, size, size).double()
    expected = BatchGradCam(model, model.layer).attribute(images, 2, attribute_to_layer_input=at_input)
    with LayerCapture(model.layer, at_input=at_input) as capture:
        scores = model(images)
    theirs = expected if isinstance(expected, tuple) else (expected,)
    for cams, wanted in zip(cams_from(capture, scores, 2), theirs, strict=True):
        assert wanted.abs().max() > 1e-4
        torch.testing.assert_close(cams.detach(), wanted, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("make", [InPlaceNet, AddsInPlace])
def test_in_place_operators_after_the_layer_do_not_change_what_is_captured(make: Any) -> None:
    model, images = make(), images_of()
    with torch.no_grad():
        expected = model.layer(model.stem(images))
    with LayerCapture(model.layer) as capture:
        scores = model(images)
    assert capture.activations.equal(expected)
    scores.sum().backward()
    assert model.layer.weight.grad.abs().max() > 0


def test_a_capture_changes_no_score_and_no_gradient() -> None:
    model = SmallCnn(norm=True, dropout=0.5).double().train()
    images = images_of(3).double()

    def step(captured: bool) -> list[Tensor]:
        torch.manual_seed(5)
        twin = copy.deepcopy(model)
        capture = LayerCapture(twin.layer)
        if captured:
            with capture:
                scores = twin(images)
        else:
            scores = twin(images)
        scores.square().sum().backward()
        return [scores.detach(), *(p.grad for p in twin.parameters()), *twin.buffers()]

    assert all(map(torch.equal, step(True), step(False)))


def test_one_capture_serves_one_block_after_another_and_two_may_nest() -> None:
    model = SmallCnn()
    capture, other, later = (LayerCapture(layer) for layer in (model.layer, model.layer, model.tail[1]))
    for count in (2, 3):
        with capture, other, later:
            scores = model(images_of(count))
        for each in (capture, other, later):
            assert len(each.activations) == count
            assert cams_from(each, scores)[0].abs().max() > 0
    assert not model.layer._forward_hooks
    kept = capture.activations
    model(images_of())
    assert capture.activations is kept


def test_an_exception_removes_the_hook_and_undoes_the_mark() -> None:
    model = frozen(SmallCnn())
    capture = LayerCapture(model.layer)
    seen: list[Tensor] = []

    def fail(*_: Any) -> None:
        seen.append(capture.activations)
        raise ZeroDivisionError

    handle = model.tail.register_forward_hook(fail)
    with pytest.raises(ZeroDivisionError), capture:
        model(images_of())
    handle.remove()
    assert not model.layer._forward_hooks
    assert not seen[0].requires_grad
    with pytest.raises(RuntimeError, match="got none"):
        _ = capture.activations
    with capture:
        model(images_of())
    assert capture.activations.shape == seen[0].shape


@pytest.mark.parametrize("at_input", [False, True], ids=["output", "input"])
def test_a_frozen_trunk_is_marked_until_release(at_input: bool) -> None:
    model, images = SmallCnn(), images_of()
    frozen(model.stem), frozen(model.layer)
    with LayerCapture(model.stem[0] if at_input else model.layer, at_input=at_input) as capture:
        scores = model(images)
    activations = capture.activations
    assert (activations is images) == at_input
    assert activations.requires_grad
    cams_from(capture, scores)[0].square().sum().backward()
    assert model.head.weight.grad.abs().max() > 0
    capture.release()
    assert not activations.requires_grad
    images.requires_grad_()
    with LayerCapture(model.stem[0], at_input=True) as capture:
        model(images)
    capture.release()
    assert images.requires_grad, "it did before"


def test_nothing_is_held_after_release() -> None:
    model = SmallCnn()
    with LayerCapture(model.layer) as capture:
        model(images_of())
    held = weakref.ref(capture.activations)
    assert held() is not None
    capture.release()
    assert held() is None


def nested(model: Any, capture: LayerCapture) -> None:
    with capture, capture:
        pass


def second_forward(model: Any, capture: LayerCapture) -> None:
    with capture:
        model(images_of())
        model(images_of())


def inference(model: Any, capture: LayerCapture) -> None:
    with torch.inference_mode(), capture:
        model(images_of())


def not_run(model: Any, capture: LayerCapture) -> None:
    with capture:
        pass
    _ = capture.activations


def under_no_grad(model: Any, capture: LayerCapture) -> None:
    with torch.no_grad(), capture:
        scores = model(images_of())
    cams_from(capture, scores)


def freed(model: Any, capture: LayerCapture) -> None:
    with capture:
        scores = model(images_of())
    scores.sum().backward()
    cams_from(capture, scores)


def another_forward(model: Any, capture: LayerCapture) -> None:
    with capture:
        model(images_of())
    cams_from(capture, model(images_of()))


@pytest.mark.parametrize(
    ("misuse", "text"),
    [
        (nested, "nested"),
        (second_forward, "^Conv2d: .* second"),
        (inference, "inference_mode"),
        (not_run, "^Conv2d: .* got none"),
        (under_no_grad, "^scores: .*no_grad"),
        (freed, r"backward\(\)"),
        (another_forward, "another forward"),
    ],
)
def test_misuse(misuse: Any, text: str) -> None:
    model = SmallCnn()
    capture = LayerCapture(model.layer)
    with pytest.raises(RuntimeError, match=text):
        misuse(model, capture)
    assert not model.layer._forward_hooks
    with capture:
        scores = model(images_of())
    assert cams_from(capture, scores)[0].shape == (2, 1, 4, 4)


def test_a_layer_that_runs_twice_in_a_forward_is_refused() -> None:
    model = RepeatedNet()
    with pytest.raises(RuntimeError, match="second"), LayerCapture(model.layer):
        model(images_of())


class Returns(nn.Module):
    """Return what it was made with."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Any:
        return self.value


@pytest.mark.parametrize("value", [None, {"maps": torch.ones(1)}, torch.zeros(2, 1).long(), ()], ids=repr)
def test_a_layer_that_returns_no_floating_tensor(value: Any) -> None:
    model, odd = SmallCnn(), Returns(value)

    def forward(x: Tensor) -> Tensor:
        odd(x)
        return model(x)

    with pytest.raises(TypeError, match=rf"^Returns: .*{type(value).__name__}"):
        BatchGradCam(forward, odd).attribute(images_of(), 1)
    with pytest.raises(TypeError, match=rf"^Returns: .*{type(value).__name__}"), LayerCapture(odd):
        forward(images_of())
    assert not odd._forward_hooks


@pytest.mark.parametrize("position", ["before", "after"])
def test_forwards_of_attribute_inside_the_block_are_ignored(position: str) -> None:
    model = SmallCnn()
    images, others = images_of(), images_of(4)
    attribution = BatchGradCam(model, model.layer)
    expected = attribution.attribute(others, 1)
    with LayerCapture(model.layer) as capture:
        if position == "before":
            cams = attribution.attribute(others, 1)
        scores = model(images)
        if position == "after":
            cams = attribution.attribute(others, 1)
            with pytest.raises(ValueError, match="target"):
                attribution.attribute(others, 99)
    assert capture.activations.equal(model.layer(model.stem(images)))
    assert cams.equal(expected)
    assert cams_from(capture, scores)[0].shape == (2, 1, 4, 4)


@pytest.mark.parametrize("is_replica", [False, True], ids=["thread", "DataParallel's worker"])
def test_forwards_of_other_threads_are_ignored_but_for_those_of_data_parallel(is_replica: bool) -> None:
    model = SmallCnn()
    if is_replica:
        model.layer._is_replica = True  # as DataParallel marks replicas, which share the hooks
    with LayerCapture(model.layer) as capture:
        if not is_replica:
            model(images_of())
        in_a_thread(lambda: model(images_of(5)))
    assert len(capture.activations) == (5 if is_replica else 2)


def through_torch(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value)), through_torch]


@pytest.mark.parametrize("copied", COPIES, ids=["deepcopy", "pickle", "torch.save"])
def test_copies_of_an_open_model_and_of_a_held_capture_are_on_their_own(copied: Any) -> None:
    model, images = SmallCnn(), images_of()
    with LayerCapture(model.layer) as capture:
        scores = model(images)
        twin, replica = copied(model), copied(model)
        replica.layer._is_replica = True
        for _ in range(2):
            assert twin(images).equal(scores)
            assert replica(images).equal(scores)
    assert capture.activations.equal(model.layer(model.stem(images)))
    assert not twin.layer._forward_hooks
    with pytest.raises(RuntimeError, match="got none"):
        _ = copied(capture).activations
    assert len(capture.activations) == 2


def test_a_hook_that_another_thread_is_removing() -> None:
    # torch removes a hook from its dictionaries one after the other; a forward of another thread that has listed the hook
    # already then calls it without the keyword arguments.
    model, images = SmallCnn(), images_of()
    with LayerCapture(model.layer) as capture:
        with_kwargs = dict(model.layer._forward_hooks_with_kwargs)
        model.layer._forward_hooks_with_kwargs.clear()
        in_a_thread(lambda: model(images))
        model.layer._forward_hooks_with_kwargs.update(with_kwargs)
        model(images)
    assert capture.activations.shape[:2] == (2, 8)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_scripted_layer_is_refused_and_no_hook_is_left():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), torch.jit.script(nn.ReLU()), nn.Flatten(), nn.Linear(4 * 36, 3))
    images, labels = torch.rand(2, 1, 8, 8), torch.tensor([0, 1])
    regularizer = CamRegularizer(BatchGradCam(model, ["0", "1"]), PrototypeLoss(torch.rand(3, 1, 8, 8)))
    with pytest.raises(RuntimeError, match=r"^layer: .*TorchScript"):
        BatchGradCam(model, "1").attribute(images, labels)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"^layer: .*TorchScript"), regularizer:
            pass
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in (model, model[0]))


def test_a_regularizer_called_inside_its_block_warns_of_a_norm_that_mixes_samples():
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), *head)
    regularizer = CamRegularizer(BatchGradCam(model, "0"), PrototypeLoss(torch.rand(3, 1, 8, 8)))
    with pytest.warns(UserWarning, match="mixes the samples"), regularizer:
        regularizer(model(torch.rand(2, 1, 8, 8)), torch.tensor([0, 1]))
