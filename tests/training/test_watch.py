"""The training forward is told from what runs beside it inside of the block."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from batchcam_captum import BatchCamLoss, BatchGradCam, CamRegularizer
from batchcam_captum.functional import Samples
from batchcam_captum.losses import CamLoss
from tests.models import SmallCnn

LABELS = torch.arange(10) % 5


class Tokens(nn.Module):
    """The layer returns (N, H·W, C): the grid is known from the image alone."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, 8, 1)
        self.layer = nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        return self.head(self.layer(tokens).relu().mean(1))


class Shape(CamLoss):
    """Notes the shape of the cams."""

    def per_sample(self, samples: Samples) -> Tensor:
        self.shape = tuple(samples.cams.shape)
        return samples.cams.square().flatten(1).mean(1)


def in_another_thread(regularizer: CamRegularizer, images: Tensor) -> None:
    thread = threading.Thread(target=lambda: regularizer.grad_cam.forward_func(images))
    thread.start()
    thread.join()


BESIDE: dict[str, Callable[[CamRegularizer, Tensor], Any]] = {
    "evaluate": lambda regularizer, images: regularizer.evaluate(images, LABELS[: len(images)]),
    "attribute": lambda regularizer, images: regularizer.grad_cam.attribute(images, target=0),
    "thread": in_another_thread,
}


@pytest.mark.parametrize("beside", BESIDE)
def test_the_grid_of_tokens_is_that_of_the_training_images(beside: str) -> None:
    model, loss = Tokens(), Shape()
    regularizer = CamRegularizer(BatchGradCam(model, model.layer, reshape="tokens"), loss)
    with regularizer:
        scores = model(torch.rand(10, 1, 4, 9))
        BESIDE[beside](regularizer, torch.rand(10, 1, 6, 6))  # as many tokens
    regularizer(scores, LABELS)
    assert loss.shape == (10, 1, 4, 9)


@pytest.fixture
def group() -> Iterator[None]:
    dist.init_process_group(
        "gloo", store=dist.HashStore(), rank=0, world_size=1, timeout=datetime.timedelta(seconds=30)
    )
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("option", ["static_graph", "find_unused_parameters"])
@pytest.mark.parametrize("beside", BESIDE)
def test_the_scores_are_those_of_the_training_forward(option: str, beside: str) -> None:
    torch.manual_seed(0)
    model = SmallCnn()
    wrapped = DistributedDataParallel(model, **{option: True})
    regularizer = CamRegularizer(BatchGradCam(model, model.layer), BatchCamLoss(torch.rand(5, 1, 4, 4)))
    images = torch.randn(10, 3, 9, 9)
    with regularizer:
        scores = wrapped(images)
        BESIDE[beside](regularizer, images[:4])
    value = regularizer(scores, LABELS)
    (scores.square().mean() + value).backward()
    with regularizer:
        scores = model(images)
    expected = regularizer(scores, LABELS)
    assert_close(value, expected)
    assert model.head.weight.grad is not None


def test_a_hook_that_changes_the_gradient_of_the_activations_counts() -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Softplus())
    model = nn.Sequential(layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    held: list[Tensor] = []
    layer.register_forward_hook(lambda _, __, output: held.append(output))
    regularizer = CamRegularizer(BatchGradCam(model, layer), BatchCamLoss(torch.rand(5, 1, 7, 7)))
    images, values = torch.randn(10, 3, 9, 9), []
    for hooked in (False, True):
        held.clear()
        with regularizer:
            scores = model(images)
        if hooked:
            held[0].register_hook(lambda gradient: -gradient)
        values.append(regularizer(scores, LABELS).item())
    assert values[0] != values[1]
