"""``method=``: which weighting makes the map. The weightings' own values are tested in tests/functional."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from batchcam_captum import BatchGradCam
from batchcam_captum.functional import CAM_METHODS, get_method, grad_cam_plus_plus
from tests.models import SmallCnn, TupleNet

METHODS = ["grad_cam", "grad_cam_plus_plus", "xgrad_cam", "hires_cam", "layer_cam"]
IMAGES = (3, 3, 12, 12)


def by_sample(
    model: Any, layer: Any, images: Tensor, target: list[int], method: Any, **arguments: Any
) -> Tensor:
    """One sample after the other, with a hook and a gradient of its own."""
    maps = []
    for sample, index in zip(images, target, strict=True):
        kept: list[Tensor] = []
        handle = layer.register_forward_hook(lambda _, __, output, kept=kept: kept.append(output))
        score = model(sample[None])[0, index]
        handle.remove()
        (gradient,) = torch.autograd.grad(score, kept, create_graph=True)
        maps.append(get_method(method)(kept[0], gradient, **arguments))
    return torch.cat(maps)


def assert_close(got: Tensor, expected: Tensor) -> None:
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-11 * expected.abs().max().item())


@pytest.mark.parametrize("channel_sum", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_every_weighting(method: str, channel_sum: bool) -> None:
    model, images = SmallCnn().double(), torch.randn(IMAGES, dtype=torch.double)
    target = [4, 0, 2]
    got = BatchGradCam(model, model.layer, method=method).attribute(
        images, target, attr_dim_summation=channel_sum
    )
    expected = by_sample(model, model.layer, images, target, method, channel_sum=channel_sum)
    assert_close(got, expected.detach())


@pytest.mark.parametrize("method", METHODS)
def test_the_second_order_gradient_reaches_the_head(method: str) -> None:
    model, images = SmallCnn().double(), torch.randn(IMAGES, dtype=torch.double)
    target = [4, 0, 2]
    got = BatchGradCam(model, model.layer, method=method).attribute(images, target, differentiable=True)
    expected = by_sample(model, model.layer, images, target, method)
    weights = [model.head.weight, model.tail[1].weight, model.layer.weight]
    for ours, theirs in zip(
        *(torch.autograd.grad(cams.square().sum(), weights) for cams in (got, expected)), strict=True
    ):
        assert_close(ours, theirs)


def test_a_function_as_method() -> None:
    model, images = SmallCnn().double(), torch.randn(IMAGES, dtype=torch.double)
    with_epsilon = partial(grad_cam_plus_plus, eps=1e-6)
    got = BatchGradCam(model, model.layer, method=with_epsilon).attribute(images, 1)
    assert_close(got, by_sample(model, model.layer, images, [1] * 3, with_epsilon).detach())


def test_layers_with_several_tensors() -> None:
    model, images = TupleNet().double(), torch.randn(2, 3, 11, 11, dtype=torch.double)
    coarse, fine = BatchGradCam(model, model.layer, method="hires_cam").attribute(images, 1)
    only_coarse = BatchGradCam(model, model.layer.coarse, method="hires_cam").attribute(images, 1)
    assert_close(coarse, only_coarse)
    assert fine.shape[2:] != coarse.shape[2:]


def test_what_is_no_method() -> None:
    model = SmallCnn()
    with pytest.raises(ValueError, match=r"method: expected one of .*'hires_cam'.*, got 'score_cam'"):
        BatchGradCam(model, model.layer, method="score_cam")
    with pytest.raises(TypeError, match=r"method: expected a name .* got int"):
        BatchGradCam(model, model.layer, method=3)  # type: ignore[arg-type]


def test_a_method_of_ones_own_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CAM_METHODS, "_entries", dict(CAM_METHODS._entries))

    @CAM_METHODS.register("squared")
    def squared(activations: Tensor, gradients: Tensor) -> Tensor:
        return (activations * gradients).square().sum(1, keepdim=True)

    model, images = SmallCnn().double(), torch.randn(IMAGES, dtype=torch.double)
    grad_cam = BatchGradCam(model, model.layer, method="squared")
    assert_close(
        grad_cam.attribute(images, 2), by_sample(model, model.layer, images, [2] * 3, squared).detach()
    )
    assert_close(grad_cam.attribute_classes(images, [2]), grad_cam.attribute(images, 2))
    with pytest.raises(TypeError, match="channel_sum"):
        grad_cam.attribute(images, 2, attr_dim_summation=False)
