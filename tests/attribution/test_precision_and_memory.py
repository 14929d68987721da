"""Half precision gives float32 maps."""

from __future__ import annotations

import pytest
import torch

from batchcam_captum import BatchGradCam
from tests.models import SmallCnn


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("differentiable", [False, True])
def test_autocast_gives_float32_maps(dtype: torch.dtype, differentiable: bool) -> None:
    model = SmallCnn()
    images = torch.randn(3, 3, 12, 12)
    attribution = BatchGradCam(model, model.layer)
    expected = attribution.attribute(images, [0, 1, 2])
    with torch.autocast("cpu", dtype=dtype):
        cams, scores = attribution.attribute_with_scores(images, [0, 1, 2], differentiable=differentiable)
    assert cams.dtype == torch.float32
    assert scores.dtype == dtype, "the forward itself runs as the caller wants it"
    assert relative_error(cams.detach(), expected) < 0.05
    if differentiable:
        cams.square().sum().backward()
        assert model.head.weight.grad.abs().max() > 0


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_casts_that_autocast_has_cached_without_a_graph_do_no_harm(context: type) -> None:
    model = SmallCnn()
    images = torch.randn(3, 3, 12, 12)
    attribution = BatchGradCam(model, model.layer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with context():
            model(images)
            attribution.attribute(images, 1)
        attribution.attribute(images, 1, differentiable=True).square().sum().backward()
    assert model.head.weight.grad.abs().max() > 0


def test_a_bfloat16_model_gives_float32_maps() -> None:
    model = SmallCnn()
    images = torch.randn(3, 3, 12, 12)
    expected = BatchGradCam(model, model.layer).attribute(images, 1)
    model.bfloat16()
    cams = BatchGradCam(model, model.layer).attribute(images.bfloat16(), 1)
    assert cams.dtype == torch.float32
    assert relative_error(cams, expected) < 0.1


def test_float64_stays() -> None:
    model = SmallCnn().double()
    assert (
        BatchGradCam(model, model.layer).attribute(torch.randn(1, 3, 9, 9).double(), 1).dtype == torch.float64
    )
