"""The numbers of two batches of maps, against SciPy, scikit-image and by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from batchcam_captum.interop.comparison import agreement

stats = pytest.importorskip("scipy.stats")


def pair(*shape, dtype=torch.float32):
    ours = torch.rand(3, 1, *shape, dtype=dtype)
    return ours, (ours + 0.1 * torch.randn_like(ours)).clamp(0, 1)


@pytest.mark.parametrize("shape", [(40,), (20, 24), (12, 13, 14)], ids=["1-D", "2-D", "3-D"])
def test_equals_scipy_and_scikit_image(shape):
    from skimage.metrics import structural_similarity

    ours, theirs = pair(*shape)
    found = agreement(ours, theirs, scale="unit")
    assert len(found.maps) == 3
    for index, numbers in enumerate(found.maps):
        a, b = (maps[index, 0].double().numpy() for maps in (ours, theirs))
        assert numbers.max_difference == np.abs(a - b).max()
        assert numbers.mean_difference == pytest.approx(np.abs(a - b).mean(), rel=1e-12)
        assert numbers.pearson == pytest.approx(stats.pearsonr(a.ravel(), b.ravel())[0], abs=1e-12)
        assert numbers.spearman == pytest.approx(stats.spearmanr(a.ravel(), b.ravel())[0], abs=1e-12)
        if min(shape) >= 20:  # scikit-image has one window for each sigma; ours is smaller on small maps
            similarity = structural_similarity(
                a, b, gaussian_weights=True, use_sample_covariance=False, data_range=1.0
            )
            assert numbers.ssim == pytest.approx(similarity, abs=1e-9)
        top = [set(np.argsort(map_.ravel())[-math.ceil(a.size / 5) :]) for map_ in (a, b)]
        assert numbers.top_overlap == pytest.approx(len(top[0] & top[1]) / len(top[0] | top[1]))
        assert not numbers.identical


def test_ties_have_their_mean_rank():
    ours = torch.tensor([0.0, 0.0, 0.0, 1.0, 2.0, 2.0, 5.0, 0.0]).reshape(1, 1, 2, 4)
    theirs = torch.tensor([3.0, 0.0, 1.0, 1.0, 2.0, 0.0, 5.0, 0.0]).reshape(1, 1, 2, 4)
    expected = stats.spearmanr(ours.ravel().numpy(), theirs.ravel().numpy())[0]
    assert agreement(ours, theirs, scale="raw").maps[0].spearman == pytest.approx(expected, abs=1e-12)


def test_order_of_equal_values_does_not_matter_to_the_top():
    """Of ten places two are the top: the highest, and half of each of the two that follow."""
    ours = torch.tensor([0.0, 9.0, 5.0, 5.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]).reshape(1, 1, 10)
    theirs = torch.tensor([0.0, 9.0, 5.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]).reshape(1, 1, 10)
    assert agreement(ours, ours.clone(), scale="raw").maps[0].top_overlap == 1.0
    # (1 + 1/2) of (1 + 1 + 1/2)
    assert agreement(ours, theirs, scale="raw").maps[0].top_overlap == pytest.approx(1.5 / 2.5)


def test_a_map_with_few_positive_places_shares_the_rest_among_its_zeros():
    ours = torch.zeros(1, 1, 10)
    ours[..., 3] = 1
    theirs = torch.zeros(1, 1, 10)
    theirs[..., 4] = 1
    # Each has one place, and a ninth of each of the other nine.
    expected = (1 / 9 + 1 / 9 + 8 / 9) / (1 + 1 + 8 / 9)
    assert agreement(ours, theirs, scale="unit").maps[0].top_overlap == pytest.approx(expected)


def test_a_whole_number_of_places_is_the_top():
    """0.2 · 35 is a little more than 7 in floating point."""
    ours = torch.arange(35.0).reshape(1, 1, 35)
    theirs = ours.clone()
    theirs[..., 27] = 100.0  # the eighth highest becomes the first
    assert agreement(ours, theirs, scale="raw").maps[0].top_overlap == pytest.approx(6 / 8)


def test_raw_maps_are_measured_by_their_own_size():
    ours, theirs = (maps.double() - 0.5 for maps in pair(8, 8))
    large, small = (agreement(factor * ours, factor * theirs, scale="raw") for factor in (1e3, 1e-200))
    assert large.maps[0].peak == pytest.approx(1e3 * float(max(ours[0].abs().max(), theirs[0].abs().max())))
    for a, b in zip(large.maps, small.maps, strict=True):
        for name in ("max_difference", "mean_difference", "ssim", "pearson", "spearman", "top_overlap"):
            assert getattr(a, name) == pytest.approx(getattr(b, name), rel=1e-10), name
    peak = max(float(ours[0].abs().max()), float(theirs[0].abs().max()))
    assert large.maps[0].max_difference == pytest.approx(float((ours[0] - theirs[0]).abs().max()) / peak)
    opposite = agreement(ours, -ours, scale="raw")
    assert opposite.max_difference == pytest.approx(2.0)
    assert opposite.summary()["pearson_min"] == pytest.approx(-1.0)


def test_unit_maps_keep_their_absolute_differences():
    ours = torch.full((1, 1, 4, 4), 0.01)
    assert agreement(ours, ours + 0.01, scale="unit").max_difference == pytest.approx(0.01)


def test_identical_means_every_bit():
    ours, _ = pair(6, 6)
    theirs = ours.clone()
    theirs[1, 0, 2, 3] = torch.nextafter(theirs[1, 0, 2, 3], torch.tensor(2.0))
    found = agreement(ours, theirs, scale="unit")
    assert [numbers.identical for numbers in found.maps] == [True, False, True]
    assert 0 < found.max_difference < 1.2e-7
    assert found.summary()["identical"] == 2
    assert found.maps[0].max_difference == 0
    assert found.maps[0].ssim == found.maps[0].top_overlap == 1.0
    assert found.maps[0].pearson == pytest.approx(1.0)


def test_constant_and_zero_maps_have_no_correlation_and_are_counted():
    ours = torch.stack(
        [torch.zeros(1, 5, 5), torch.zeros(1, 5, 5), torch.full((1, 5, 5), 0.1), torch.rand(1, 5, 5)]
    )
    theirs = torch.stack(
        [torch.zeros(1, 5, 5), torch.rand(1, 5, 5), torch.rand(1, 5, 5), torch.rand(1, 5, 5)]
    )
    for scale in ("unit", "raw"):
        found = agreement(ours, theirs, scale=scale)
        assert [numbers.pearson is None for numbers in found.maps] == [True, True, True, False]
        assert [numbers.spearman is None for numbers in found.maps] == [True, True, True, False]
        summary = found.summary()
        assert (summary["constant"], summary["zero_in_both"], summary["zero_in_one"]) == (3, 1, 1)
        assert summary["pearson_min"] == summary["pearson_mean"] == found.maps[3].pearson
        assert found.maps[0].max_difference == 0
        assert found.maps[0].ssim == 1


def test_maps_that_are_not_finite_have_no_numbers_and_are_counted():
    ours, theirs = pair(5, 5)
    theirs[0, 0, 1, 1] = math.nan
    ours[1], theirs[1] = math.nan, math.nan
    found = agreement(ours, theirs, scale="unit")
    assert [numbers.finite for numbers in found.maps] == [False, False, True]
    assert [numbers.identical for numbers in found.maps] == [False, True, False]
    assert found.summary()["not_finite"] == 2
    assert found.summary()["constant"] == 0
    assert found.max_difference == found.maps[2].max_difference
    json.dumps(found.as_dict(), allow_nan=False)


def test_nothing_to_compare_gives_nothing():
    found = agreement(torch.rand(0, 1, 4, 4), torch.rand(0, 1, 4, 4), scale="raw")
    assert found.max_difference is None
    assert found.summary()["maps"] == 0


def test_a_map_of_one_place_and_half_types_are_compared():
    found = agreement(torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 0.5), scale="unit")
    assert found.maps[0].max_difference == 0.5
    assert found.maps[0].top_overlap == 1
    half = torch.rand(2, 1, 7, 7).bfloat16()
    assert agreement(half, half.double(), scale="unit").summary()["identical"] == 2


@pytest.mark.parametrize("scale", ["unit", "raw"])
def test_identical_maps_have_a_likeness_of_one_and_not_of_nearly_one(scale):
    maps = torch.linspace(0.01, 1, 40).reshape(-1, 1, 1, 1).repeat(1, 1, 14, 14)
    maps[:, :, 0, 0] = 0  # of one value but for a corner
    summary = agreement(maps, maps.clone(), scale=scale).summary()
    assert [summary[f"{name}_min"] for name in ("ssim", "pearson", "spearman", "top_overlap")] == [1.0] * 4


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ((2, 1, 4, 4), (2, 1, 8, 8)),
        ((2, 4, 4), (2, 4, 4)),
        ((2, 3, 4), (2, 3, 4)),
        ((2, 1), (2, 1)),
        ((2, 1, 0), (2, 1, 0)),
    ],
)
def test_shapes_that_do_not_fit(ours, theirs):
    with pytest.raises(ValueError, match="agreement: expected"):
        agreement(torch.rand(ours), torch.rand(theirs), scale="unit")


def test_unknown_scale():
    with pytest.raises(ValueError, match="scale: expected 'unit' or 'raw', got 'percent'"):
        agreement(torch.rand(1, 1, 2, 2), torch.rand(1, 1, 2, 2), scale="percent")
