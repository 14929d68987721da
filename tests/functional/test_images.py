"""Images as maps: standardization undone, one channel, min–max."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from batchcam_captum.functional import image_maps, to_one_channel, undo_standardization


@pytest.mark.parametrize("channels", [1, 3])
def test_undoes_torchvisions_normalize(channels):
    transforms = pytest.importorskip("torchvision.transforms")
    mean, std = [0.1, 0.5, 0.8][:channels], [0.2, 0.3, 0.4][:channels]
    images = torch.rand(5, channels, 6, 7, dtype=torch.float64)
    standardized = transforms.Normalize(mean, std)(images)
    assert_close(undo_standardization(standardized, mean, std), images, rtol=1e-12, atol=1e-12)
    assert_close(to_one_channel(standardized, mean=mean, std=std), images.mean(1, keepdim=True))


@pytest.mark.parametrize("shape", [(9,), (4, 5), (3, 4, 5)], ids=["1-D", "2-D", "3-D"])
def test_one_number_for_all_channels_in_any_number_of_dimensions(shape):
    images = torch.rand(2, 3, *shape)
    for mean, std in ((0.5, 2.0), ([0.5], [2.0]), ([0.5] * 3, [2.0] * 3)):
        assert_close(undo_standardization(images, mean, std), images * 2 + 0.5)
    assert undo_standardization(images, None, None) is images


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16])
def test_other_dtypes_give_float32(dtype):
    images = (torch.rand(2, 3, 4, 4) * 200).to(dtype)
    assert to_one_channel(images).dtype == torch.float32
    assert_close(to_one_channel(images), images.float().mean(1, keepdim=True))


def test_image_maps_span_zero_to_one_and_flat_images_are_zero():
    images = torch.randn(3, 3, 5, 5) * 7
    images[1] = 0.4
    maps = image_maps(images)
    assert maps.amin((1, 2, 3)).tolist() == [0, 0, 0]
    assert maps.amax((1, 2, 3)).tolist() == [1, 0, 1]


@pytest.mark.parametrize(("name", "value"), [("mean", [0.1, 0.2]), ("std", [1.0, 1.0, 1.0, 1.0])])
def test_numbers_that_do_not_fit_the_channels(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected"):
        to_one_channel(torch.rand(2, 3, 4, 4), **{name: value})


def test_images_without_a_channel():
    with pytest.raises(ValueError, match="images: expected"):
        to_one_channel(torch.rand(2, 4))
