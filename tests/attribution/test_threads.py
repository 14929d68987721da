"""Calls from several threads at once on one shared model give what one call after the other gives."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from batchcam_captum import BatchGradCam, LayerCapture
from batchcam_captum.functional import CAM_METHODS
from tests.models import InPlaceNet, ResidualNet, SmallCnn

THREADS = 4
ROUNDS = 20


@pytest.fixture(autouse=True)
def many_switches() -> Iterator[None]:
    """Let threads take turns as often as Python can, so that whatever can go wrong does so in a few rounds."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def at_once(calls: list[Callable[[], Any]]) -> list[Any]:
    """Start all calls together, each in a thread of its own, and wait for them."""
    barrier = threading.Barrier(len(calls))

    def start(call: Callable[[], Any]) -> Any:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(start, call) for call in calls]]


def assert_as_in_turn(calls: list[Callable[[], Any]], rounds: int = ROUNDS) -> None:
    expected = [call() for call in calls]
    for first in expected:
        assert first.abs().max() > 1e-5
    for _ in range(rounds):
        for actual, wanted in zip(at_once(calls), expected, strict=True):
            # One thread of torch and one order of operations: the very same bits.
            assert actual.equal(wanted)


def shared_cnn() -> SmallCnn:
    return SmallCnn(norm=True).eval()


def test_other_inputs_targets_and_layers() -> None:
    model = shared_cnn()
    layers = [model.layer, model.stem, model.tail[1], model.layer]
    calls = []
    for position, layer in enumerate(layers):
        images = torch.randn(position + 1, 3, 12, 12)
        calls.append(
            lambda layer=layer, images=images, target=position: BatchGradCam(model, layer).attribute(
                images, target
            )
        )
    assert_as_in_turn(calls)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_one_attribution_for_all_threads() -> None:
    model = shared_cnn()
    grad_cam = BatchGradCam(model, "layer")
    batches = [torch.randn(size, 3, 12, 12) for size in (1, 2, 3, 4)]
    assert_as_in_turn(
        [lambda images=images: grad_cam.attribute(images, list(range(len(images)))) for images in batches]
    )


@pytest.mark.parametrize("method", list(CAM_METHODS))
def test_every_weighting_and_every_class(method: str) -> None:
    model = shared_cnn()
    images = torch.randn(THREADS, 3, 12, 12)
    grad_cam = BatchGradCam(model, ["stem", "layer"], method=method)
    calls = [
        lambda: grad_cam.attribute(images, 1)[1],
        lambda: grad_cam.attribute(images[:2], 2)[0],
        lambda: grad_cam.attribute_classes(images[2:])[1],
        lambda: grad_cam.attribute_classes(images[:1], [4, 0])[0],
    ]
    assert_as_in_turn(calls, 5)


@pytest.mark.parametrize(
    "build", [InPlaceNet, lambda: ResidualNet(nn.Identity()), lambda: ResidualNet(nn.Conv2d(6, 6, 1))],
    ids=["in_place", "identity", "residual"],
)  # fmt: skip
@pytest.mark.parametrize("is_frozen", [False, True])
def test_networks_that_are_run_again_or_write_in_place(build: Any, is_frozen: bool) -> None:
    model = build().requires_grad_(not is_frozen)
    batches = [torch.randn(2, 3, 9, 9) for _ in range(THREADS)]
    assert_as_in_turn(
        [lambda images=images: BatchGradCam(model, model.layer).attribute(images, 1) for images in batches],
        10,
    )


def test_differentiable_maps() -> None:
    model = shared_cnn()
    batches = [torch.randn(2, 3, 12, 12) for _ in range(THREADS)]

    def call(images: Tensor) -> Tensor:
        cams = BatchGradCam(model, model.layer).attribute(images, 1, differentiable=True)
        # Its own gradient, not .grad, to which all threads would add.
        (gradient,) = torch.autograd.grad(cams.square().sum(), model.head.weight)
        return gradient

    assert_as_in_turn([lambda images=images: call(images) for images in batches])


class AttentionNet(nn.Module):
    """Fused attention after the layer: differentiable maps switch its backend, which belongs to all threads."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 3, stride=3)
        self.qkv = nn.Linear(8, 24)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.layer(x).flatten(2).transpose(1, 2)).unsqueeze(1).chunk(3, 3)
        return self.head(
            nn.functional.scaled_dot_product_attention(9 * q, 9 * k, v).squeeze(1).square().mean(1)
        )


def test_differentiable_maps_with_attention() -> None:
    model = AttentionNet()
    batches = [torch.randn(2, 3, 12, 12) for _ in range(THREADS)]
    backends = torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.mem_efficient_sdp_enabled
    before = [enabled() for enabled in backends]

    def call(images: Tensor) -> Tensor:
        cams = BatchGradCam(model, model.layer).attribute(images, 1, differentiable=True)
        (gradient,) = torch.autograd.grad(cams.square().sum(), model.qkv.weight)
        return gradient

    assert_as_in_turn([lambda images=images: call(images) for images in batches])
    assert [enabled() for enabled in backends] == before == [True, True]


def test_a_training_step_beside_attributions() -> None:
    """Plain forwards and captures of other threads see no hook, mark or grad mode of an attribution."""
    model = shared_cnn()
    images = torch.randn(4, 3, 12, 12)

    def plain() -> Tensor:
        with torch.no_grad():
            scores = model(images)
        assert not scores.requires_grad
        return scores

    def captured() -> Tensor:
        with LayerCapture(model.layer) as capture:
            scores = model(images)
        (gradient,) = torch.autograd.grad(scores[:, 1].sum(), capture.activations)
        return gradient

    grad_cam = BatchGradCam(model, model.layer)
    assert_as_in_turn(
        [
            lambda: grad_cam.attribute(images, 1),
            lambda: grad_cam.attribute_classes(images[:2]),
            plain,
            captured,
        ]
    )


def test_an_error_in_one_thread_leaves_the_others_alone() -> None:
    model = shared_cnn()
    images = torch.randn(2, 3, 12, 12)
    grad_cam = BatchGradCam(model, model.layer)
    expected = grad_cam.attribute(images, 1)

    def fails() -> None:
        with pytest.raises(ValueError, match="target: expected indices"):
            grad_cam.attribute(images, 99)

    for _ in range(ROUNDS):
        first, second, *_ = at_once([lambda: grad_cam.attribute(images, 1)] * 2 + [fails] * 2)
        assert first.equal(expected)
        assert second.equal(expected)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_hook_that_is_just_being_removed() -> None:
    # torch takes a hook out of its dictionaries one after the other; a forward of another thread that has already listed the
    # hook then calls it without the keyword arguments.
    model = shared_cnn()
    images = torch.randn(2, 3, 12, 12)
    with LayerCapture(model.layer) as capture:
        with_kwargs = dict(model.layer._forward_hooks_with_kwargs)
        model.layer._forward_hooks_with_kwargs.clear()
        (others,) = at_once([lambda: model(images)])
        model.layer._forward_hooks_with_kwargs.update(with_kwargs)
        scores = model(images)
    assert scores.equal(others)
    assert capture.activations.shape[:2] == (2, 8)


def test_a_model_in_train_mode() -> None:
    # Batch statistics and dropout: calls wait for each other, and leave no trace of any of them.
    model = SmallCnn(norm=True, dropout=0.5).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    batches = [torch.randn(2, 3, 12, 12) for _ in range(THREADS)]
    random_state = torch.get_rng_state()
    calls = [
        lambda images=images: [BatchGradCam(model, "layer").attribute(images, 1) for _ in range(10)]
        for images in batches
    ]
    at_once(calls)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_another_thread_that_draws_random_numbers_is_left_alone() -> None:
    model = SmallCnn().eval()
    grad_cam = BatchGradCam(model, "layer")
    images = torch.randn(2, 3, 12, 12)
    done = threading.Event()

    def explain() -> None:
        while not done.is_set():
            grad_cam.attribute(images, 1)

    def draw() -> list[float]:
        torch.manual_seed(0)
        return [torch.randn(3000)[0].item() for _ in range(2000)]

    alone = draw()
    explaining = threading.Thread(target=explain)
    explaining.start()
    try:
        beside = draw()
    finally:
        done.set()
        explaining.join()
    assert beside == alone
