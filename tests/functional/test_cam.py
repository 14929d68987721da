"""Grad-CAM from activations and gradients."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from batchcam_captum.functional import CAM_METHODS, apply_method, channel_weights, get_method, grad_cam

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


def mean_activation(activations, gradients):
    """A user's own weighting: no channel_sum."""
    return activations.mean(1, keepdim=True)


def test_get_method():
    assert get_method("grad_cam") is grad_cam
    assert get_method(mean_activation) is mean_activation


def test_get_method_of_an_unknown_name():
    with pytest.raises(ValueError, match=r"method: expected one of .*'grad_cam', .*got 'gradcam'"):
        get_method("gradcam")


@pytest.mark.parametrize("method", [None, 3, ["grad_cam"]])
def test_get_method_of_another_kind(method):
    with pytest.raises(TypeError, match=r"method: expected a name \('grad_cam', .* got (NoneType|int|list)"):
        get_method(method)


def test_apply_method():
    activations, gradients = torch.randn(2, 3, 4, 5, 5)
    expected = grad_cam(activations, gradients)
    assert torch.equal(apply_method("grad_cam", activations, gradients), expected)
    assert torch.equal(apply_method(partial(grad_cam), activations, gradients), expected)
    assert torch.equal(
        apply_method(mean_activation, activations, gradients), activations.mean(1, keepdim=True)
    )
    shares = grad_cam(activations, gradients, channel_sum=False)
    assert torch.equal(apply_method("grad_cam", activations, gradients, channel_sum=False), shares)
    passes_on = lambda *tensors, **options: grad_cam(*tensors, **options)  # noqa: E731
    assert torch.equal(apply_method(passes_on, activations, gradients, channel_sum=False), shares)


@pytest.mark.parametrize("method", [mean_activation, partial(mean_activation)])
def test_shares_of_a_method_without_channel_sum(method):
    with pytest.raises(
        TypeError, match=r"method: expected a function with an argument channel_sum, got \w+ without"
    ):
        apply_method(method, torch.rand(2, 3, 4), torch.rand(2, 3, 4), channel_sum=False)


def test_what_a_method_returns_is_checked():
    tensors = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5)
    with pytest.raises(
        ValueError, match=r"expected a cam \(2, 1, 4, 5\) of .* got \(2, 4, 5\) from <lambda>"
    ):
        apply_method(lambda a, g: (a * g).sum(1), *tensors)
    with pytest.raises(TypeError, match="expected a tensor from <lambda>, got NoneType"):
        apply_method(lambda a, g: None, *tensors)


def test_registering_is_all_that_a_new_method_needs(monkeypatch):
    monkeypatch.setattr(CAM_METHODS, "_entries", dict(CAM_METHODS._entries))
    CAM_METHODS.register("mean_activation")(mean_activation)
    assert apply_method("mean_activation", torch.ones(2, 3, 4), torch.ones(2, 3, 4)).shape == (2, 1, 4)


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 2)], ids=["1-D", "2-D", "3-D"])
def test_a_cam_that_is_trained_has_the_values_and_the_derivatives_of_the_plain_one(shape):
    activations = torch.randn(2, 3, *shape, dtype=torch.float64, requires_grad=True)
    gradients = torch.randn(2, 3, *shape, dtype=torch.float64, requires_grad=True)
    weights = gradients.mean(tuple(range(2, gradients.dim())), keepdim=True)
    assert_close(grad_cam(activations, gradients), (weights * activations).sum(1, keepdim=True))
    assert torch.autograd.gradcheck(grad_cam, (activations, gradients))
    assert torch.autograd.gradgradcheck(grad_cam, (activations, gradients))
    # A frozen trunk, and channels last.
    assert torch.autograd.gradcheck(lambda g: grad_cam(activations.detach(), g), (gradients,))
    last = activations.detach().movedim(1, -1).contiguous().movedim(-1, 1)
    assert_close(grad_cam(last, gradients), grad_cam(activations, gradients))


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning"
)  # torch's own jvp
def test_a_trained_cam_goes_through_torch_func():
    activations, gradients = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4, requires_grad=True)
    expected = torch.autograd.grad(grad_cam(activations, gradients).square().sum(), gradients)[0]
    function = torch.func.grad(lambda g: grad_cam(activations, g).square().sum())
    assert_close(function(gradients.detach()), expected)
    assert_close(function(gradients), expected)
    direction = torch.randn_like(activations)
    _, slope = torch.func.jvp(lambda g: grad_cam(activations, g), (gradients,), (direction,))
    assert_close(slope, grad_cam(activations, direction))
    each = torch.func.vmap(lambda a, g: grad_cam(a[None], g[None])[0])(activations, gradients)
    assert_close(each, grad_cam(activations, gradients))
