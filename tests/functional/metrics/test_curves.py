"""Orders of pixels, rank correlation and areas, against SciPy, scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import auc
from torch.testing import assert_close

from batchcam_captum.functional import (
    area_under_curve,
    pixel_ranks,
    rank_correlation,
)


def tied_maps(seed):
    """Return rectified, rounded maps, with most values tied."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(5, 1, 6, 7, generator=generator) * 2).round().relu()


def test_rank_correlation_equals_scipys_with_ties():
    first, second = tied_maps(0), tied_maps(1) + tied_maps(0)
    expected = [
        stats.spearmanr(one, other).statistic
        for one, other in zip(first.flatten(1).numpy(), second.flatten(1).numpy(), strict=True)
    ]
    assert_close(rank_correlation(first, second), torch.tensor(expected).float())
    assert min(expected) > 0.2  # so that a wrong sign or a constant could not pass


def test_a_constant_map_has_no_rank_correlation():
    maps = torch.rand(2, 1, 3, 3)
    assert_close(rank_correlation(maps, torch.full_like(maps, 0.3)), torch.zeros(2), rtol=0, atol=0)


def test_order_of_distinct_pixels_is_from_the_largest_down():
    maps = torch.randn(3, 1, 4, 5)
    order = maps.flatten(1).argsort(descending=True)
    assert_close(pixel_ranks(maps).argsort(1), order)


def test_equal_pixels_are_in_a_random_order_that_does_not_depend_on_the_batch():
    maps = torch.zeros(2, 1, 20, 20)
    maps[1, :, 5:8] = 1.0
    ranks = pixel_ranks(maps)
    assert_close(ranks.sort(1).values, torch.arange(400).expand(2, 400))
    assert set(ranks[1].reshape(20, 20)[5:8].flatten().tolist()) == set(range(60))
    # The first half of an all-zero map's order is spread over the map.
    top = (ranks[0] < 200).reshape(20, 20).float()
    assert 0.3 < top[:10].mean() < 0.7
    assert 0.3 < top[:, :10].mean() < 0.7
    assert_close(pixel_ranks(maps[1:]), ranks[1:])
    assert not torch.equal(pixel_ranks(maps, seed=1), ranks)


def test_area_equals_scikit_learns():
    positions = torch.tensor([0.0, 0.1, 0.5, 1.0], dtype=torch.float64)
    curves = torch.randn(3, 4, dtype=torch.float64)
    expected = [auc(positions, curve) for curve in curves]
    assert_close(area_under_curve(curves, positions), torch.tensor(expected, dtype=torch.float64))
    expected = [auc(np.linspace(0, 1, 4), curve) for curve in curves]
    assert_close(area_under_curve(curves), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: rank_correlation(torch.zeros(2, 3), torch.zeros(2, 4)), "second"),
        (lambda: area_under_curve(torch.zeros(2, 1)), "curves"),
        (lambda: area_under_curve(torch.zeros(2, 3), torch.zeros(2)), "positions"),
    ],
)
def test_shapes_that_do_not_fit(call, name):
    with pytest.raises(ValueError, match=name):
        call()
