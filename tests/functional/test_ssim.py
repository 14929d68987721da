"""SSIM against torchmetrics and scikit-image, which are independent of each other."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from batchcam_captum.functional import ssim

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
    with pytest.raises(ValueError, match=f"odd number from 1 to the map's shortest side 12, got {window};"):
        ssim(*pair((12, 14)), window_size=window)


@pytest.mark.parametrize(("first", "second"), [((2, 1, 8), (2, 1, 9)), ((2, 8), (2, 8))])
def test_shapes_that_do_not_fit(first, second):
    with pytest.raises(ValueError, match=r"one shape \(N, C, \*spatial\), got \(2, "):
        ssim(torch.rand(first), torch.rand(second))


def test_flat_and_half_maps_stay_finite():
    """E[x²] − E[x]² is negative in half types; here it is computed in float32 and clamped."""
    flat = torch.full((2, 1, 8, 8), 0.7, dtype=torch.bfloat16, requires_grad=True)
    value = ssim(flat, torch.rand(2, 1, 8, 8).bfloat16())
    assert value.dtype == torch.float32
    value.sum().backward()
    assert value.isfinite().all()
    assert flat.grad.isfinite().all()
