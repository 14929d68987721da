"""Which weighting the losses of a regulariser take."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from batchcam_captum import BatchGradCam, CamRegularizer, PrototypeLoss
from batchcam_captum.functional import hires_cam
from tests.models import SmallCnn

LABELS = torch.tensor([0, 3, 1, 4])


def regularized(model: SmallCnn, images: Tensor, grad_cam_method: str, loss: PrototypeLoss) -> Tensor:
    regularizer = CamRegularizer(BatchGradCam(model, model.layer, method=grad_cam_method), loss)
    with regularizer:
        scores = model(images)
    return regularizer(scores, LABELS)


@pytest.fixture
def prototypes() -> Tensor:
    return torch.rand(5, 1, 12, 12, dtype=torch.double)


@pytest.mark.parametrize(
    ("of_grad_cam", "of_loss", "used"),
    [
        ("grad_cam", None, "grad_cam"),
        ("hires_cam", None, "hires_cam"),
        ("hires_cam", "layer_cam", "layer_cam"),
        ("grad_cam", hires_cam, "hires_cam"),
    ],
)
def test_the_losses_choice_comes_before_that_of_the_grad_cam(
    of_grad_cam: str, of_loss: object, used: str, prototypes: Tensor
) -> None:
    model, images = SmallCnn().double(), torch.randn(4, 3, 14, 14, dtype=torch.double)
    loss = PrototypeLoss(prototypes)
    loss.method = of_loss  # type: ignore[assignment]
    got = regularized(model, images, of_grad_cam, loss)
    cams = BatchGradCam(model, model.layer, method=used).attribute(images, LABELS, differentiable=True)
    expected = PrototypeLoss(prototypes)(cams, LABELS)
    torch.testing.assert_close(got, expected)
    for ours, theirs in zip(
        *(torch.autograd.grad(value, model.head.weight) for value in (got, expected)), strict=True
    ):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours, theirs)


def test_weightings_share_a_gradient(monkeypatch: pytest.MonkeyPatch, prototypes: Tensor) -> None:
    model: nn.Module = SmallCnn().double()
    losses = {name: PrototypeLoss(prototypes) for name in ("first", "same", "other")}
    losses["same"].method, losses["other"].method = "hires_cam", "grad_cam"
    regularizer = CamRegularizer(BatchGradCam(model, "layer", method="hires_cam"), losses)
    gradients = []
    original = torch.autograd.grad

    def counting(*args: object, **kwargs: object) -> object:
        if "create_graph" in kwargs:  # not the first step's try of a second derivative
            gradients.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", counting)
    with regularizer:
        scores = model(torch.randn(4, 3, 14, 14, dtype=torch.double))
    regularizer(scores, LABELS)
    assert len(gradients) == 1
    assert regularizer.values["first"] == regularizer.values["same"] != regularizer.values["other"]
