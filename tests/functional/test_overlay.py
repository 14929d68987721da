"""Cams over images."""

import pytest
import torch
from torch.testing import assert_close

from batchcam_captum import functional
from batchcam_captum.functional.overlay import colors, gray_or_color, overlay


def test_colors_are_those_of_viridis():
    from matplotlib import colormaps

    values = torch.linspace(0, 1, 301)
    expected = torch.tensor(colormaps["viridis"](values.numpy())[:, :3], dtype=torch.float32)
    given = colors(values.reshape(1, 1, 1, -1))[0, :, 0].T
    assert (given - expected).abs().max() < 0.03
    assert_close(
        colors(torch.tensor([-1.0, 2.0]).reshape(2, 1, 1, 1)).reshape(2, 3),
        expected[[0, -1]],
        atol=0.001,
        rtol=0,
    )


def test_the_map_covers_where_it_is_strong_and_nothing_where_it_is_not():
    images = torch.rand(2, 1, 8, 8) * 5 - 2  # standardised
    cams = torch.full((2, 1, 8, 8), -1.0)
    cams[0, 0, 3, 4] = 7.0
    pictures = overlay(images, cams, opacity=0.5)
    shown = gray_or_color(images)
    assert pictures.shape == (2, 3, 8, 8)
    assert shown.amin() == 0
    assert shown.amax() == 1
    yellow = colors(torch.ones(1, 1, 1, 1)).reshape(3)
    assert_close(pictures[0, :, 3, 4], 0.5 * shown[0, :, 3, 4] + 0.5 * yellow)
    pictures[0, :, 3, 4] = shown[0, :, 3, 4]
    assert_close(pictures, shown)  # the second cam is dead


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_any_image_becomes_a_picture(dtype, channels):
    images, cams = (
        torch.randn(3, channels, 12, 9).to(dtype),
        torch.randn(3, 1, 4, 3, requires_grad=True).to(dtype),
    )
    pictures = overlay(images, cams)
    assert pictures.shape == (3, 3, 12, 9)
    assert pictures.dtype == torch.float32
    assert not pictures.requires_grad
    assert pictures.min() >= 0
    assert pictures.max() <= 1
    if channels != 3:
        gray = gray_or_color(images)
        assert torch.equal(gray[:, 0], gray[:, 2])


@pytest.mark.parametrize(
    "shapes", [((2, 3, 8, 8), (3, 1, 4, 4)), ((2, 3, 8, 8), (2, 2, 4, 4)), ((2, 3, 8), (2, 1, 4))]
)
def test_what_does_not_fit_is_refused(shapes):
    with pytest.raises(ValueError, match=r"overlay: expected images \(N, C, H, W\)"):
        overlay(*map(torch.rand, shapes))


@pytest.mark.parametrize("opacity", [-0.1, 1.5, float("nan")])
def test_opacity_out_of_range(opacity):
    with pytest.raises(ValueError, match="opacity: expected a number from 0 to 1, got"):
        overlay(torch.rand(1, 1, 8, 8), torch.rand(1, 1, 4, 4), opacity=opacity)


def test_the_function_is_among_the_functional_ones():
    assert functional.overlay is overlay
    assert "overlay" in functional.__all__
