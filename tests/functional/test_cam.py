"""Grad-CAM from activations and gradients."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from batchcam_captum.functional import CAM_METHODS, channel_weights, grad_cam

SHAPES = [(), (7,), (4, 5), (3, 4, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=["vector", "1-D", "2-D", "3-D"])
def test_grad_cam_equals_a_loop_over_samples_and_channels(shape):
    activations, gradients = torch.randn(2, 3, 4, *shape, dtype=torch.float64)
    cams, shares = grad_cam(activations, gradients), grad_cam(activations, gradients, channel_sum=False)
    assert cams.shape == (3, 1, *shape)
    for i in range(3):
        products = [g.mean() * a for a, g in zip(activations[i], gradients[i], strict=True)]
        assert_close(cams[i, 0], sum(products))
        assert_close(shares[i], torch.stack(products))
        assert_close(channel_weights(gradients)[i].flatten(), gradients[i].reshape(4, -1).mean(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_give_float32_with_or_without_autocast(dtype):
    activations, gradients = torch.randn(2, 3, 4, 5, 5).to(dtype)
    cams = grad_cam(activations, gradients)
    assert cams.dtype == torch.float32
    assert torch.equal(cams, grad_cam(activations.float(), gradients.float()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(grad_cam(activations, gradients), cams)


def test_small_half_gradients_do_not_vanish_in_the_mean():
    gradients = torch.full((1, 1, 64, 64), 6e-8, dtype=torch.float16)
    assert grad_cam(torch.ones(1, 1, 64, 64).half(), gradients).abs().min() > 5e-8


def test_shapes_that_differ():
    with pytest.raises(ValueError, match=r"one shape, got \(2, 3, 4, 4\) and \(2, 3, 5, 5\)"):
        grad_cam(torch.rand(2, 3, 4, 4), torch.rand(2, 3, 5, 5))


def test_grad_cam_is_a_method_by_name():
    assert CAM_METHODS["grad_cam"] is grad_cam
