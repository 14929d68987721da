"""Distances, by hand."""

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
)

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
def test_distance_is_one_number_a_pair_symmetric_and_zero_on_equal_maps(name, shape):
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
    with pytest.raises(ValueError, match=r"distance: expected one of 'cosine', 'l1', .*got 'L1'"):
        get_distance("L1")
