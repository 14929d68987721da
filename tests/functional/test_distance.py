"""Distances by hand; SSIM against scikit-image and torchmetrics, which are independent of each other."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from batchcam_captum.functional import (
    DISTANCES,
    cosine_distance,
    cosine_similarity,
    get_distance,
    l1_distance,
    l2_distance,
    ssim,
)

SHAPES = {"1-D": (40,), "2-D": (17, 20), "3-D": (13, 14, 15)}


def pair(shape, channels=1):
    first = torch.rand(3, channels, *shape, dtype=torch.float64)
    return first, (first + 0.3 * torch.randn_like(first)).clamp(0, 1)


@pytest.mark.parametrize(("window", "sigma"), [(11, 1.5), (9, 1.2), (7, 0.8)])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_equals_scikit_image(shape, window, sigma):
    from skimage.metrics import structural_similarity

    first, second = pair(shape)
    expected = [
        structural_similarity(
            a[0].numpy(),
            b[0].numpy(),
            gaussian_weights=True,
            sigma=sigma,
            win_size=window,
            use_sample_covariance=False,
            data_range=1.0,
        )
        for a, b in zip(first, second, strict=True)
    ]
    actual = ssim(first, second, window_size=window, sigma=sigma)
    assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("window", "sigma"), [(11, 1.5), (9, 1.2), (7, 0.8)])
@pytest.mark.parametrize("shape", [SHAPES["2-D"], SHAPES["3-D"]], ids=["2-D", "3-D"])
def test_equals_torchmetrics(shape, window, sigma, channels):
    from torchmetrics.functional.image import structural_similarity_index_measure

    first, second = pair(shape, channels)
    # Like scikit-image it takes the side from sigma: int(3.5 sigma + 0.5) * 2 + 1.
    assert int(3.5 * sigma + 0.5) * 2 + 1 == window
    _, image = structural_similarity_index_measure(
        first,
        second,
        gaussian_kernel=True,
        sigma=sigma,
        kernel_size=window,  # only the padding of the third dimension
        data_range=1.0,
        reduction="none",
        return_full_image=True,
    )
    # It pads by reflection and averages over the rim too; ours takes the windows that lie inside.
    inside = slice(window // 2, -(window // 2))
    expected = image[(..., *[inside] * len(shape))].flatten(1).mean(1)
    actual = ssim(first, second, window_size=window, sigma=sigma)
    assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_symmetric_and_one_on_equal_maps(shape):
    first, second = pair(shape)
    assert torch.equal(ssim(first, second), ssim(second, first))
    assert_close(ssim(first, first), torch.ones(3, dtype=torch.float64))
    assert (ssim(first, second) < 0.95).all()


@pytest.mark.parametrize(
    ("shortest", "window"), [(3, 3), (4, 3), (5, 3), (7, 3), (8, 5), (14, 7), (19, 9), (20, 11), (64, 11)]
)
def test_default_window_fits_the_map(shortest, window):
    first, second = pair((shortest, shortest + 3))
    assert torch.equal(ssim(first, second), ssim(first, second, window_size=window))


def test_data_range_scales_the_constants():
    first, second = pair((12, 12))
    assert_close(ssim(255 * first, 255 * second, data_range=255.0), ssim(first, second))


@pytest.mark.parametrize("window", [4, 13, 0, -3])
def test_window_that_does_not_fit(window):
    with pytest.raises(ValueError, match="window_size: expected"):
        ssim(*pair((12, 14)), window_size=window)


@pytest.mark.parametrize(("first", "second"), [((2, 1, 8), (2, 1, 9)), ((2, 8), (2, 8))])
def test_shapes_that_do_not_fit(first, second):
    with pytest.raises(ValueError, match="ssim: expected"):
        ssim(torch.rand(first), torch.rand(second))


def test_flat_and_half_maps_stay_finite():
    """E[x²] − E[x]² is negative in half types; here it is computed in float32 and clamped."""
    flat = torch.full((2, 1, 8, 8), 0.7, dtype=torch.bfloat16, requires_grad=True)
    value = ssim(flat, torch.rand(2, 1, 8, 8).bfloat16())
    assert value.dtype == torch.float32
    value.sum().backward()
    assert value.isfinite().all()
    assert flat.grad.isfinite().all()


FIRST = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]], [[[0.0, 0.0], [0.0, 0.0]]]])
SECOND = torch.tensor([[[[1.0, 0.0], [0.0, 2.0]]], [[[1.0, 2.0], [0.0, 2.0]]]])


@pytest.mark.parametrize(
    ("distance", "expected"),
    [
        (l1_distance, [7 / 4, 5 / 4]),
        (l2_distance, [17 / 4, 9 / 4]),
        (cosine_distance, [1 - 9 / (30 * 5) ** 0.5, 1.0]),
    ],
)
def test_by_hand(distance, expected):
    assert_close(distance(FIRST, SECOND), torch.tensor(expected))


@pytest.mark.parametrize("shape", [(12,), (6, 6), (5, 5, 5)], ids=["1-D", "2-D", "3-D"])
@pytest.mark.parametrize("name", ["l1", "l2", "ssim", "cosine"])
def test_distance_is_one_number_per_pair_symmetric_and_zero_on_equal_maps(name, shape):
    distance = get_distance(name)
    first, second = torch.rand(2, 3, 1, *shape, dtype=torch.float64)
    values = distance(first, second)
    assert values.shape == (3,)
    assert (values > 0).all()
    assert_close(values, distance(second, first))
    assert_close(distance(first, first), torch.zeros(3, dtype=torch.float64))
    assert_close(values, torch.cat([distance(first[i : i + 1], second[i : i + 1]) for i in range(3)]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["l1", "l2", "ssim", "cosine"])
def test_half_maps_are_compared_in_float32_with_or_without_autocast(name, dtype):
    first, second = torch.rand(2, 3, 1, 6, 6).to(dtype)
    expected = get_distance(name)(first.float(), second.float())
    assert torch.equal(get_distance(name)(first, second), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(get_distance(name)(first, second), expected)


@pytest.mark.parametrize("name", ["l1", "l2", "ssim", "cosine"])
def test_empty_batch(name):
    assert get_distance(name)(torch.rand(0, 1, 6, 6), torch.rand(0, 1, 6, 6)).shape == (0,)


@pytest.mark.parametrize("scale", [1e-30, 1e-11, 1e6, 1e30])
def test_cosine_does_not_depend_on_scale_and_has_a_finite_gradient(scale):
    first, second = torch.randn(2, 3, 1, 5, 5)
    scaled = (first * scale).requires_grad_()
    value = cosine_similarity(scaled, second)
    assert_close(value, torch.nn.functional.cosine_similarity(first.flatten(1), second.flatten(1)))
    (gradient,) = torch.autograd.grad(value.sum(), scaled)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


def test_cosine_of_a_zero_map_is_zero_with_a_zero_gradient():
    cams = torch.zeros(2, 1, 4, 4, requires_grad=True)
    value = cosine_similarity(cams, torch.rand(2, 1, 4, 4))
    (gradient,) = torch.autograd.grad(value.sum(), cams)
    assert (value == 0).all()
    assert (gradient == 0).all()


def test_distance_by_name_or_itself():
    assert get_distance("l1") is l1_distance
    assert get_distance(l2_distance) is l2_distance
    assert set(DISTANCES) >= {"l1", "l2", "ssim", "cosine"}
    with pytest.raises(ValueError, match="distance: expected"):
        get_distance("L1")
