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

THREADS, ROUNDS = 4, 10


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


def assert_as_in_turn(model: nn.Module, calls: list[Callable[[], Any]], rounds: int = ROUNDS) -> None:
    expected = [call() for call in calls]
    assert all(first.abs().max() > 1e-5 for first in expected)
    for _ in range(rounds):
        # One thread of torch and one order of operations: the very same bits.
        assert all(map(torch.equal, at_once(calls), expected))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def shared_cnn() -> SmallCnn:
    return SmallCnn(norm=True).eval()


def test_other_inputs_targets_and_layers_and_one_attribution_for_all() -> None:
    model = shared_cnn()
    layers = [model.layer, model.stem, model.tail[1], model.layer]
    batches = [torch.randn(size, 3, 12, 12) for size in (1, 2, 3, 4)]
    together = BatchGradCam(model, "layer")
    for of_layer in (lambda layer: BatchGradCam(model, layer), lambda _: together):
        assert_as_in_turn(
            model,
            [
                lambda layer=layer, images=images, target=target, of=of_layer: of(layer).attribute(
                    images, target
                )
                for target, (layer, images) in enumerate(zip(layers, batches, strict=True))
            ],
        )


@pytest.mark.parametrize("method", list(CAM_METHODS))
def test_every_weighting_and_every_class(method: str) -> None:
    model, images = shared_cnn(), torch.randn(THREADS, 3, 12, 12)
    grad_cam = BatchGradCam(model, ["stem", "layer"], method=method)
    calls = [
        lambda: grad_cam.attribute(images, 1)[1],
        lambda: grad_cam.attribute(images[:2], 2)[0],
        lambda: grad_cam.attribute_classes(images[2:])[1],
        lambda: grad_cam.attribute_classes(images[:1], [4, 0])[0],
    ]
    assert_as_in_turn(model, calls, 3)


class AttentionNet(nn.Module):
    """Fused attention after the layer: differentiable maps switch its backend, which belongs to all threads."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 3, stride=3)
        self.qkv = nn.Linear(8, 24)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.layer(x).flatten(2).transpose(1, 2)).unsqueeze(1).chunk(3, 3)
        mixed = nn.functional.scaled_dot_product_attention(9 * q, 9 * k, v)
        return self.head(mixed.squeeze(1).square().mean(1))


#: Networks that are run again or write in place, and one with attention; each frozen or not.
NETWORKS: dict[str, Any] = {
    "plain": shared_cnn,
    "in_place": InPlaceNet,
    "identity": lambda: ResidualNet(nn.Identity()),
    "frozen identity": lambda: ResidualNet(nn.Identity()).requires_grad_(False),
    "frozen in_place": lambda: InPlaceNet().requires_grad_(False),
    "attention": AttentionNet,
}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_maps_and_gradients(make: Any) -> None:
    model = make()
    batches = [torch.randn(2, 3, 12, 12) for _ in range(THREADS)]
    backends = torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.mem_efficient_sdp_enabled

    def call(images: Tensor) -> Tensor:
        cams = BatchGradCam(model, model.layer).attribute(images, 1)
        if not model.head.weight.requires_grad:
            return cams
        maps = BatchGradCam(model, model.layer).attribute(images, 1, differentiable=True)
        # Its own gradient, not .grad, to which all threads would add.
        (gradient,) = torch.autograd.grad(maps.square().sum(), model.head.weight)
        return torch.cat([cams.flatten(), gradient.flatten()])

    assert_as_in_turn(model, [lambda images=images: call(images) for images in batches])
    assert [enabled() for enabled in backends] == [True, True]


def test_a_training_step_beside_attributions() -> None:
    """Plain forwards and captures of other threads see no hook, mark or grad mode of an attribution."""
    model, images = shared_cnn(), torch.randn(4, 3, 12, 12)
    grad_cam = BatchGradCam(model, model.layer)

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

    def fails() -> Tensor:
        with pytest.raises(ValueError, match="target"):
            grad_cam.attribute(images, 99)
        return torch.ones(1)

    calls = [lambda: grad_cam.attribute(images, 1), lambda: grad_cam.attribute_classes(images[:2])]
    assert_as_in_turn(model, [*calls, plain, captured])
    assert_as_in_turn(model, [*calls, fails, fails])


def test_a_model_in_train_mode() -> None:
    # Batch statistics and dropout: calls wait for each other, and leave no trace of any of them.
    model = SmallCnn(norm=True, dropout=0.5).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    batches = [torch.randn(2, 3, 12, 12) for _ in range(THREADS)]
    random_state = torch.get_rng_state()
    at_once(
        [
            lambda images=images: [BatchGradCam(model, "layer").attribute(images, 1) for _ in range(10)]
            for images in batches
        ]
    )
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_another_thread_that_draws_random_numbers_is_left_alone() -> None:
    grad_cam, images = BatchGradCam(SmallCnn().eval(), "layer"), torch.randn(2, 3, 12, 12)
    done = threading.Event()

    def explain() -> None:
        while not done.is_set():
            grad_cam.attribute(images, 1)

    def draw() -> list[float]:
        torch.manual_seed(0)
        return [torch.randn(3000)[0].item() for _ in range(1000)]

    alone = draw()
    explaining = threading.Thread(target=explain)
    explaining.start()
    try:
        beside = draw()
    finally:
        done.set()
        explaining.join()
    assert beside == alone
