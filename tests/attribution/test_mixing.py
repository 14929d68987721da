"""The warning that a BatchNorm after the layer mixes the samples of a batch."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from batchcam_captum import BatchCamLoss, BatchGradCam, CamRegularizer

TEXT = r"^3: a BatchNorm with batch statistics after the explained layer .*; switch it .* explain a layer from 5 on"


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
        nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Flatten(), nn.Linear(4 * 36, 5),
    )  # fmt: skip


IMAGES, LABELS = torch.rand(4, 3, 10, 10), torch.arange(4)


def test_the_first_and_the_last_one_are_named_and_the_caller_is_blamed() -> None:
    model = network().train()
    with pytest.warns(UserWarning, match=TEXT) as record:
        BatchGradCam(model, model[2]).attribute(IMAGES, target=LABELS)
    assert record[0].filename == __file__


@pytest.mark.filterwarnings("ignore:.*a BatchNorm with batch statistics:UserWarning")
def test_the_warning_is_true() -> None:
    model = network().train().double()
    changes = []
    for layer in (2, 5):
        grad_cam = BatchGradCam(model, model[layer])
        cams, others = (
            grad_cam.attribute(IMAGES.double(), target) for target in ([0, 1, 2, 3], [0, 4, 4, 4])
        )
        changes.append((cams[0] - others[0]).abs().max() / cams[0].abs().max())
    assert changes[0] > 1e-3
    assert changes[1] < 1e-12


@pytest.mark.parametrize("layer", [5, 6])
def test_a_layer_after_the_last_one_is_fine(layer: int) -> None:
    model = network().train()
    BatchGradCam(model, model[layer]).attribute(IMAGES, target=LABELS)


def test_eval_mode_and_statistics_that_are_frozen_are_fine() -> None:
    model = network().eval()
    BatchGradCam(model, model[0]).attribute(IMAGES, target=LABELS)
    model.train()
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    BatchGradCam(model, model[0]).attribute(IMAGES, target=LABELS)


def test_a_regularizer_warns_once() -> None:
    model = network().train()
    regularizer = CamRegularizer(BatchGradCam(model, model[2]), BatchCamLoss(torch.rand(5, 1, 8, 8)))
    with pytest.warns(UserWarning, match=TEXT) as record, regularizer:
        model(IMAGES)
    assert record[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with regularizer:
            model(IMAGES)


def test_a_warning_that_is_an_error_leaves_no_hook() -> None:
    model = network().train()
    regularizer = CamRegularizer(BatchGradCam(model, model[2]), BatchCamLoss(torch.rand(5, 1, 8, 8)))
    with pytest.raises(UserWarning, match="BatchNorm"), regularizer:  # errors, as everywhere in these tests
        model(IMAGES)
    assert not model[2]._forward_hooks
    model(IMAGES)


@pytest.mark.parametrize(
    ("make", "block"),
    [
        (lambda: torchvision.models.resnet18(num_classes=5), "layer4"),
        (lambda: nn.Sequential(torchvision.models.resnet18(num_classes=5)), "0.layer4"),
        (lambda: torchvision.models.densenet121(num_classes=5), "features"),
    ],
    ids=["resnet", "wrapped resnet", "densenet"],
)
def test_the_layer_to_explain_is_one_that_no_path_leads_around(make: Any, block: str) -> None:
    model = make().train()
    early = next(module for module in model.modules() if isinstance(module, nn.MaxPool2d))
    images = torch.rand(4, 3, 64, 64)
    with pytest.warns(UserWarning, match=f"explain a layer from {block} on"):
        BatchGradCam(model, early).attribute(images, target=LABELS)
    BatchGradCam(model, block).attribute(images, target=LABELS)  # warnings are errors here


def test_small_images_find_the_way_out_that_is_advised() -> None:
    """Without it the advice turns in a circle: layer4 for the BatchNorm's sake, and an earlier layer for the map's size."""
    model = torchvision.models.resnet18(num_classes=5).train()
    images = torch.rand(4, 3, 32, 32)
    advice = r"with eval\(\), or explain a layer from layer4 on, where its maps have at least 4 x 4 .* a stem of stride 1"
    with pytest.warns(UserWarning, match=advice):
        BatchGradCam(model, "layer3").attribute(images, target=LABELS)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    regularizer = CamRegularizer(BatchGradCam(model, "layer4"), BatchCamLoss(torch.rand(5, 1, 32, 32)))
    with regularizer:
        scores = model(images)
    regularizer(scores, LABELS).backward()  # maps of 4 x 4, and no warning


def test_a_frozen_layer_before_a_head_that_trains_is_noticed() -> None:
    model = network().train()
    model[2].eval()
    with pytest.warns(UserWarning, match=TEXT):
        BatchGradCam(model, model[2]).attribute(IMAGES, target=LABELS)


def in_another_thread(run: Callable[[], Any]) -> None:
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


BESIDE: dict[str, Callable[[CamRegularizer, nn.Module], Any]] = {
    "evaluate": lambda regularizer, _: regularizer.evaluate(IMAGES, LABELS),
    "attribute": lambda regularizer, _: regularizer.grad_cam.attribute(IMAGES, target=LABELS),
    "teacher": lambda _, model: copy.deepcopy(model)(IMAGES),
    "thread": lambda _, model: in_another_thread(lambda: model(IMAGES)),
}


@pytest.mark.parametrize("beside", BESIDE)
def test_a_forward_beside_the_training_forward_is_none_after_the_layer(beside: str) -> None:
    model = network().train()
    regularizer = CamRegularizer(BatchGradCam(model, model[6]), BatchCamLoss(torch.rand(5, 1, 8, 8)))
    with regularizer:  # warnings are errors here
        model(IMAGES)
        BESIDE[beside](regularizer, model)


@pytest.mark.parametrize("beside", ["teacher", "thread"])
def test_a_forward_beside_the_training_forward_leaves_its_warning(beside: str) -> None:
    model = network().train()
    regularizer = CamRegularizer(BatchGradCam(model, model[2]), BatchCamLoss(torch.rand(5, 1, 8, 8)))

    def train() -> None:
        with regularizer:
            model(IMAGES)
            BESIDE[beside](regularizer, model)

    with pytest.warns(UserWarning, match=TEXT):
        train()
