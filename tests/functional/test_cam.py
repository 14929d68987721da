"""The weightings: against the papers' formulas place by place, by hand, and where denominators vanish."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from batchcam_captum.functional import (
    CAM_METHODS,
    CONSTANT_GRADIENT_WEIGHTS,
    apply_method,
    channel_weights,
    get_method,
    grad_cam,
    grad_cam_plus_plus,
    normalize,
    rectify,
    xgrad_cam,
)
from tests import reference_cams

NAMES = ["grad_cam", "grad_cam_plus_plus", "xgrad_cam", "hires_cam", "layer_cam"]
WITH_EPS = [*[(name, None) for name in NAMES], ("grad_cam_plus_plus", 1e-6), ("xgrad_cam", 1e-7)]
SHAPES = [(), (7,), (4, 5), (3, 4, 2)]

with_eps = pytest.mark.parametrize(("name", "eps"), WITH_EPS)
every = pytest.mark.parametrize("name", NAMES)


def example(*shape, dtype=torch.float64):
    """Activations as a ReLU leaves them (zeros, one channel all zero), gradients of both signs with zeros."""
    activations, gradients = torch.randn(2, *shape, dtype=dtype)
    activations = activations.relu()
    activations[:, 1] = 0
    gradients[:, 2] = 0
    gradients[0, 0] = -gradients[0, 0].abs()
    # One channel at least that no weighting leaves out.
    activations[:, 3], gradients[:, 3] = 0.1 + activations[:, 3], 0.1 + gradients[:, 3].abs()
    return activations, gradients


def method_of(name, eps):
    return partial(CAM_METHODS[name], eps=eps) if eps else CAM_METHODS[name]


def assert_like(actual, expected, tolerance):
    """Relative to each map's largest absolute value."""
    peaks = expected.abs().flatten(1).amax(1)
    assert peaks.min() > 0, "an all-zero reference shows nothing"
    error = (actual.double() - expected).abs().flatten(1).amax(1) / peaks
    assert error.max() <= tolerance, f"{error.max().item()} of the maximum"


def test_all_are_registered():
    assert set(NAMES) <= set(CAM_METHODS)


@pytest.mark.parametrize("shape", SHAPES, ids=["vector", "1-D", "2-D", "3-D"])
@with_eps
def test_equals_the_formula_place_by_place(name, eps, shape):
    method = method_of(name, eps)
    activations, gradients = example(3, 6, *shape)
    expected = reference_cams.cams(name, activations, gradients, eps or 0.0)
    assert_like(method(activations, gradients), expected, 1e-12)
    assert_like(method(activations.float(), gradients.float()), expected, 2e-5)
    shares = method(activations, gradients, channel_sum=False)
    assert shares.shape == activations.shape
    for channel in range(6):
        one = slice(channel, channel + 1)
        expected = reference_cams.cams(name, activations[:, one], gradients[:, one], eps or 0.0)
        assert_close(shares[:, one], expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("signed", [False, True], ids=["relu", "signed"])
@every
def test_signed_activations(name, signed):
    # Sums of signed activations come near zero and below: that is where the denominators' signs matter.
    activations, gradients = torch.randn(2, 8, 5, 3, 3, dtype=torch.float64)
    activations = activations if signed else activations.relu()
    expected = reference_cams.cams(name, activations, gradients)
    assert_like(CAM_METHODS[name](activations, gradients), expected, 1e-9)


def test_by_hand():
    activations = torch.tensor([[[1.0, 3.0], [2.0, 2.0]]])
    gradients = torch.tensor([[[2.0, -1.0], [0.0, 1.0]]])
    # Grad-CAM++: α = 1 / (2 + g ΣA): channel 0 1/10 · 2, channel 1 1/6 · 1
    assert_close(
        grad_cam_plus_plus(activations, gradients),
        torch.tensor([[[0.2 + 1 / 3, 0.6 + 1 / 3]]]),
        rtol=1e-6,
        atol=0,
    )
    # XGrad-CAM: channel 0 (1·2 − 3·1)/4, channel 1 2/4
    assert_close(xgrad_cam(activations, gradients), torch.tensor([[[-0.25 + 1, -0.75 + 1]]]))
    assert_close(CAM_METHODS["hires_cam"](activations, gradients), torch.tensor([[[2.0, -1.0]]]))
    assert_close(CAM_METHODS["layer_cam"](activations, gradients), torch.tensor([[[2.0, 2.0]]]))


@pytest.mark.parametrize("scale", [1e-8, 1e-15, 1e8])
@every
def test_scaling_the_gradients_changes_no_normalized_map(name, scale):
    activations, gradients = example(3, 6, 4, 5, dtype=torch.float32)
    if (
        name == "grad_cam_plus_plus"
    ):  # its formula holds g · ΣA: the activations have to shrink as the gradients grow
        small = CAM_METHODS[name](activations / scale, gradients * scale)
    else:
        small = CAM_METHODS[name](activations, gradients * scale)
    expected = normalize(rectify(CAM_METHODS[name](activations, gradients)))
    assert expected.amax() == 1
    assert_close(normalize(rectify(small)), expected, rtol=0, atol=1e-5)


@every
def test_scaling_the_activations_changes_no_normalized_map(name):
    activations, gradients = example(3, 6, 4, 5, dtype=torch.float32)
    if name == "grad_cam_plus_plus":
        gradients = gradients * 1e-6  # where the formula is homogeneous in A
    expected = normalize(rectify(CAM_METHODS[name](activations, gradients)))
    assert_close(
        normalize(rectify(CAM_METHODS[name](activations * 1e-11, gradients))), expected, rtol=0, atol=1e-4
    )


def test_grad_cam_plus_plus_of_vanishing_gradients_tends_to_half_their_positive_part():
    activations, gradients = example(3, 6, 4, 5, dtype=torch.float32)
    expected = (gradients.relu().sum((2, 3), keepdim=True) / 2 * activations).sum(1, keepdim=True)
    cams = grad_cam_plus_plus(activations, gradients * 1e-20)
    assert_close(cams * 1e20, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("eps", [None, 1e-6, 0.0])
def test_a_vanishing_denominator_of_grad_cam_plus_plus_gives_no_weight(eps):
    # 2 g² + g³ ΣA = 0 for g = 1 and ΣA = −2.
    activations = torch.tensor([[[-3.0, 1.0], [1.0, 1.0]]], requires_grad=True)
    gradients = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]], requires_grad=True)
    cams = grad_cam_plus_plus(activations, gradients, eps=eps)
    if eps == 1e-6:
        assert cams.abs().max() > 1e5
    else:
        assert_close(cams, torch.full((1, 1, 2), 0.5))
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(cams.sum(), (activations, gradients)))


@pytest.mark.parametrize("scale", [1.0, 1e-11])
def test_a_channel_without_a_sum_has_no_weight_in_xgrad_cam(scale):
    torch.manual_seed(1)
    activations, gradients = torch.randn(2, 4, 3, 8, 8)
    activations = torch.nn.functional.instance_norm(activations)
    activations[:, 0] += 0.5
    activations = (activations * scale).requires_grad_()
    gradients.requires_grad_()
    shares = xgrad_cam(activations, gradients, channel_sum=False)
    assert torch.all(shares[:, 1:] == 0)
    assert shares[:, 0].abs().amax() > 0.1 * scale
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(shares.sum(), (activations, gradients)))


@with_eps
def test_both_arguments_get_the_numerical_gradient(name, eps):
    method = method_of(name, eps)
    # Away from the kink of relu at zero, where the numerical gradient is none.
    activations = torch.rand(2, 3, 2, 2, dtype=torch.float64) + 0.5
    gradients = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    gradients = gradients + 0.2 * gradients.sign()
    activations.requires_grad_()
    gradients.requires_grad_()
    assert torch.autograd.gradcheck(method, (activations, gradients))
    assert torch.autograd.gradgradcheck(method, (activations, gradients))


@pytest.mark.parametrize("zero", ["activations", "gradients", "both"])
@with_eps
def test_zeros_give_finite_values_and_gradients(name, eps, zero):
    method = method_of(name, eps)
    activations, gradients = torch.randn(2, 2, 3, 4, 4)
    if zero != "gradients":
        activations.zero_()
    if zero != "activations":
        gradients.zero_()
    activations.requires_grad_()
    gradients.requires_grad_()
    cams = method(activations, gradients)
    assert torch.all(cams == 0)
    by = torch.autograd.grad(cams.sum(), (activations, gradients), create_graph=True)
    assert all(torch.isfinite(value).all() for value in by)
    if zero == "gradients" and name in {"grad_cam", "xgrad_cam", "hires_cam"}:
        assert by[1].abs().max() > 0  # the way out of a zero map
    again = torch.autograd.grad(
        sum(v.square().sum() for v in by), (activations, gradients), allow_unused=True
    )
    assert all(torch.isfinite(value).all() for value in again if value is not None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every
def test_half_types_give_float32_with_or_without_autocast(name, dtype):
    activations, gradients = (tensor.to(dtype) for tensor in example(3, 4, 5, 5))
    cams = CAM_METHODS[name](activations, gradients)
    assert cams.dtype == torch.float32
    assert torch.equal(cams, CAM_METHODS[name](activations.float(), gradients.float()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(CAM_METHODS[name](activations, gradients), cams)


@every
def test_shapes_that_differ(name):
    with pytest.raises(ValueError, match=f"{name}: expected"):
        CAM_METHODS[name](torch.rand(2, 3, 4, 4), torch.rand(2, 3, 5, 5))


@pytest.mark.parametrize("method", [grad_cam_plus_plus, xgrad_cam])
@pytest.mark.parametrize("eps", [-1e-6, float("nan")])
def test_negative_eps(method, eps):
    with pytest.raises(ValueError, match="eps: expected"):
        method(torch.rand(1, 2, 3), torch.rand(1, 2, 3), eps=eps)


def test_which_weightings_have_constant_gradient_weights():
    listed = {name for name in NAMES if CAM_METHODS[name] in CONSTANT_GRADIENT_WEIGHTS}
    assert listed == {"grad_cam", "hires_cam", "layer_cam"}


@pytest.mark.parametrize("method", CONSTANT_GRADIENT_WEIGHTS, ids=lambda method: method.__name__)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_constant_gradients(method, dtype):
    activations, same = torch.randn(3, 6, 4, 5).to(dtype), torch.randn(3, 6).to(dtype)
    weights = CONSTANT_GRADIENT_WEIGHTS[method](same)
    assert weights.shape == (3, 6)
    expected = method(activations, same[:, :, None, None].expand(3, 6, 4, 5))
    assert weights.dtype == expected.dtype
    wide = activations.to(expected.dtype)
    assert_close(torch.einsum("nk,nkij->nij", weights, wide)[:, None], expected, rtol=1e-5, atol=1e-6)


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


def test_small_half_gradients_do_not_vanish_in_the_mean():
    gradients = torch.full((1, 1, 64, 64), 6e-8, dtype=torch.float16)
    assert grad_cam(torch.ones(1, 1, 64, 64).half(), gradients).abs().min() > 5e-8


def mean_activation(activations, gradients):
    """A user's own weighting: no channel_sum."""
    return activations.mean(1, keepdim=True)


def test_get_method():
    assert get_method("grad_cam") is grad_cam
    assert get_method(mean_activation) is mean_activation


def test_get_method_of_an_unknown_name():
    with pytest.raises(ValueError, match="method: expected"):
        get_method("gradcam")


@pytest.mark.parametrize("method", [None, 3, ["grad_cam"]])
def test_get_method_of_another_kind(method):
    with pytest.raises(TypeError, match="method: expected"):
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
    with pytest.raises(TypeError, match=r"method: expected.*channel_sum"):
        apply_method(method, torch.rand(2, 3, 4), torch.rand(2, 3, 4), channel_sum=False)


def test_what_a_method_returns_is_checked():
    tensors = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5)
    with pytest.raises(ValueError, match="method: expected"):
        apply_method(lambda a, g: (a * g).sum(1), *tensors)
    with pytest.raises(TypeError, match="method: expected"):
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
