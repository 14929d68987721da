"""How much of the map a cam fills."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from batchcam_captum.functional import entropy, sparsity


def half_gini(cam):
    """Half the mean absolute difference of two pixels, divided by the mean: another way to write the Gini index."""
    a = cam.clamp(min=0).flatten()
    return (a[:, None] - a[None]).abs().mean() / (2 * a.mean())


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_sparsity_equals_half_the_relative_mean_difference(dims):
    cams = torch.randn(6, 1, *[5] * dims, dtype=torch.float64)
    assert_close(sparsity(cams), torch.stack([half_gini(cam) for cam in cams]))
    assert_close(sparsity(1e-20 * cams.float()), sparsity(cams).float())


def test_entropy_equals_scipys():
    cams = torch.randn(6, 1, 4, 7)
    expected = torch.from_numpy(stats.entropy(cams.clamp(min=0).flatten(1).numpy(), axis=1))
    assert_close(entropy(cams, relative=False), expected)
    assert_close(entropy(cams), expected / math.log(28))
    assert_close(entropy(cams.bfloat16()), entropy(cams.bfloat16().float()), rtol=0, atol=0)


def test_the_ends_of_the_ranges():
    point = torch.zeros(1, 1, 4, 4)
    point[0, 0, 2, 1] = 3
    flat, dead = torch.full_like(point, 0.2), -torch.rand(1, 1, 4, 4)
    cams = torch.cat([point, flat, torch.zeros_like(point), dead])
    assert_close(sparsity(cams), torch.tensor([1 - 1 / 16, 0, 0, 0]), rtol=0, atol=1e-6)
    assert_close(entropy(cams, relative=False), torch.tensor([0, 1, 1, 1]) * math.log(16))
    assert_close(entropy(cams), torch.tensor([0.0, 1, 1, 1]))
    assert entropy(torch.ones(1, 1, 1), relative=True).tolist() == [1]
    counted = torch.tensor([True, False, True, True])
    for metric in (sparsity, entropy):
        assert metric(cams, counted=counted).isnan().tolist() == [False, True, False, False]


def test_in_inference_mode_and_under_autocast_the_values_are_the_same():
    cams = torch.randn(3, 1, 5, 5, requires_grad=True)
    expected = entropy(cams), sparsity(cams)
    assert not any(value.requires_grad for value in expected)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        again = entropy(cams), sparsity(cams)
    for value, other in zip(expected, again, strict=True):
        assert torch.equal(value, other)


@pytest.mark.parametrize(
    ("cams", "error", "message"),
    [
        (torch.ones(2, 1, 4, 4, dtype=torch.int64), TypeError, "cams: expected floating cams"),
        (torch.ones(2, 4, 4), ValueError, r"got \(2, 4, 4\); call cams.unsqueeze\(1\)"),
        (torch.ones(2, 3, 4, 4), ValueError, "measure the cams of one score at a time"),
        (torch.full((2, 1, 4, 4), torch.inf), ValueError, "cams: expected finite numbers"),
    ],
)
def test_bad_cams(cams, error, message):
    with pytest.raises(error, match=message):
        sparsity(cams)
