"""rectify, normalize, resize, dead cams: at any scale, in any number of dimensions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from batchcam_captum.functional import dead_cams, dead_fraction, normalize, prepare, rectify, resize

SHAPES = [(12,), (5, 6), (3, 4, 5)]
IDS = ["1-D", "2-D", "3-D"]


@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
@pytest.mark.parametrize("method", ["max", "minmax"])
@pytest.mark.parametrize("scale", [1e-30, 1e-11, 1e-5, 1e6])
def test_scale_of_a_cam_changes_neither_the_result_nor_the_relative_gradient(scale, method, shape):
    cams = torch.randn(4, 1, *shape)
    maps = torch.rand(4, 1, *shape)

    def result_and_gradient(cams):
        cams = cams.clone().requires_grad_()
        normalized = normalize(rectify(cams), method)
        (gradient,) = torch.autograd.grad((normalized - maps).square().sum(), cams)
        return normalized, gradient

    expected, expected_gradient = result_and_gradient(cams)
    normalized, gradient = result_and_gradient(cams * scale)
    assert_close(normalized, expected)
    assert_close(gradient * scale, expected_gradient, rtol=1e-4, atol=1e-4)
    assert normalized.amax() == 1


@pytest.mark.parametrize("method", ["max", "minmax"])
@pytest.mark.parametrize("cams", [torch.zeros(2, 1, 4, 4), -torch.rand(2, 1, 4, 4)], ids=["zero", "negative"])
def test_nothing_positive_gives_zeros_and_a_zero_gradient(cams, method):
    cams = cams.clone().requires_grad_()
    for maps in (normalize(rectify(cams), method), prepare(cams, method).maps):
        (gradient,) = torch.autograd.grad(maps.sum(), cams)
        assert (maps == 0).all()
        assert (gradient == 0).all()


def test_flat_map_has_no_minmax():
    assert (normalize(torch.full((1, 1, 4, 4), 0.3), "minmax") == 0).all()
    assert (normalize(torch.full((1, 1, 4, 4), 0.3), "max") == 1).all()


def test_minmax_of_a_signed_cam_spans_zero_to_one():
    cams = torch.randn(3, 1, 4, 4)
    low, high = cams.amin((1, 2, 3), True), cams.amax((1, 2, 3), True)
    assert_close(normalize(cams, "minmax"), (cams - low) / (high - low))


@pytest.mark.parametrize("method", ["max", "minmax", "none"])
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
)
def test_half_types_are_computed_in_float32(dtype, expected, method):
    cams = torch.rand(2, 1, 4, 4, dtype=dtype)
    assert normalize(cams, method).dtype == expected
    assert prepare(cams, method).maps.dtype == expected
    assert_close(normalize(cams, method), normalize(cams.to(expected), method))


def test_unknown_normalization():
    with pytest.raises(ValueError, match="normalization: expected"):
        normalize(torch.rand(1, 1, 4, 4), "l2")


@pytest.mark.parametrize("scale", [1e-30, 1e-11, 1.0, 1e6])
@pytest.mark.parametrize(
    ("highest", "dead"), [(0.5, False), (1.1e-3, False), (0.9e-3, True), (0.0, True), (-0.1, True)]
)
def test_dead_is_relative_to_the_largest_absolute_value(highest, dead, scale):
    cams = torch.full((1, 1, 4, 4), -1.0)
    cams[0, 0, 2, 1] = highest
    assert dead_cams(cams * scale).item() is dead


def test_dead_maps_are_zero_and_get_no_gradient():
    cams = torch.randn(3, 1, 4, 4)
    cams[1] = -1
    cams[1, 0, 0, 0] = 1e-4  # positive, but nothing to speak of
    cams.requires_grad_()
    maps, dead = prepare(cams)
    assert dead.tolist() == [False, True, False]
    assert (maps[1] == 0).all()
    assert (maps.amax((1, 2, 3)) == torch.tensor([1.0, 0.0, 1.0])).all()
    (gradient,) = torch.autograd.grad(maps.square().sum(), cams)
    assert (gradient[1] == 0).all()
    assert gradient[0].abs().max() > 0


def test_dead_fraction_is_their_share():
    cams = torch.stack([torch.ones(1, 4, 4), -torch.ones(1, 4, 4), torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
    assert dead_fraction(cams) == 0.5
    assert dead_fraction(cams[:0]) == 0


@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_empty_batches_pass_through(shape):
    cams = torch.rand(0, 1, *shape, requires_grad=True)
    size = tuple(side + 2 for side in shape)
    maps = resize(prepare(cams).maps, size)
    assert maps.shape == (0, 1, *size)
    maps.sum().backward()
    assert dead_cams(cams).shape == (0,)


@pytest.mark.parametrize(
    ("shape", "linear"), list(zip(SHAPES, ["linear", "bilinear", "trilinear"], strict=True)), ids=IDS
)
def test_auto_resizes_by_area_where_nothing_grows_and_linearly_otherwise(shape, linear):
    maps = torch.rand(2, 1, *shape)
    smaller = (*shape[:-1], shape[-1] - 1)
    mixed = (shape[0] + 1, *(side - 1 for side in shape[1:]))
    assert resize(maps, shape) is maps
    assert torch.equal(resize(maps, smaller), F.interpolate(maps, size=smaller, mode="area"))
    expected = F.interpolate(maps, size=mixed, mode=linear, align_corners=False)
    assert torch.equal(resize(maps, mixed), expected)


def test_area_is_the_mean_over_blocks():
    maps = torch.rand(1, 1, 6, 6)
    assert_close(resize(maps, (3, 2))[0, 0, 1, 1], maps[0, 0, 2:4, 3:6].mean())


@pytest.mark.parametrize(
    ("shape", "size"), [((2, 1, 4, 4), (4,)), ((2, 1), ()), ((2, 1, 2, 2, 2, 2), (1, 1, 1, 1))]
)
def test_resize_names_a_number_of_dimensions_that_does_not_fit(shape, size):
    with pytest.raises(ValueError, match="resize: expected"):
        resize(torch.rand(shape), size)


def test_resize_names_an_unknown_mode():
    with pytest.raises(ValueError, match="mode: expected"):
        resize(torch.rand(1, 1, 4, 4), (2, 2), "cubic")
