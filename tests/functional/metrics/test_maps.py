"""How a cam spreads over its pixels, and how alike the cams of a class are."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from sklearn.metrics.pairwise import cosine_similarity
from torch.testing import assert_close

from batchcam_captum.functional import class_coherence, entropy, sparsity
from batchcam_captum.functional.metrics.maps import coherence, coherence_sums


def half_gini(cam):
    """Half the mean absolute difference of two pixels, divided by the mean: another form of the Gini index."""
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
    assert_close(entropy(cams), expected / math.log(28))
    assert_close(entropy(cams.bfloat16()), entropy(cams.bfloat16().float()), rtol=0, atol=0)


def test_the_ends_of_the_ranges():
    point = torch.zeros(1, 1, 4, 4)
    point[0, 0, 2, 1] = 3
    flat, dead = torch.full_like(point, 0.2), -torch.rand(1, 1, 4, 4)
    cams = torch.cat([point, flat, torch.zeros_like(point), dead])
    assert_close(sparsity(cams), torch.tensor([1 - 1 / 16, 0, 0, 0]), rtol=0, atol=1e-6)
    assert_close(entropy(cams), torch.tensor([0.0, 1, 1, 1]))
    assert entropy(torch.ones(1, 1, 1)).tolist() == [1]


def test_no_graph_and_equal_values_in_inference_mode_and_under_autocast():
    cams = torch.randn(3, 1, 5, 5, requires_grad=True)
    expected = entropy(cams), sparsity(cams)
    assert not any(value.requires_grad for value in expected)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert_close((entropy(cams), sparsity(cams)), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("cams", "error"),
    [
        (torch.ones(2, 1, 4, 4, dtype=torch.int64), TypeError),
        (torch.ones(2, 4, 4), ValueError),
        (torch.ones(2, 3, 4, 4), ValueError),
        (torch.full((2, 1, 4, 4), torch.inf), ValueError),
    ],
)
def test_bad_cams(cams, error):
    with pytest.raises(error, match="cams"):
        sparsity(cams)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_coherence_equals_the_mean_over_all_pairs(dims):
    cams, labels = torch.randn(30, 1, *[4] * dims), torch.arange(30) % 4
    cams[4] = 0  # dead: cosine 0 with every other of class 0
    labels[1::4] = torch.tensor([1, 2, 2, 2, 2, 2, 2, -100])  # class 1 keeps a single one
    values = class_coherence(cams, labels, 5)
    for c in (0, 2, 3):
        own = cams[labels == c].clamp(min=0).flatten(1).numpy()
        cosines = cosine_similarity(own)
        pairs = len(own) * (len(own) - 1)
        assert values[c].item() == pytest.approx((cosines.sum() - cosines.trace()) / pairs, abs=1e-6)
    assert values.isnan().tolist() == [False, True, False, False, True]


def test_coherence_from_one_to_nothing():
    one = torch.rand(1, 1, 4, 4)
    other = torch.zeros(4, 1, 4, 4)
    other.view(4, 16)[range(4), range(4)] = 1  # nothing in common
    cams = torch.cat([one * torch.tensor([1e-9, 1.0, 1e9]).view(3, 1, 1, 1), other, -one, -one])
    labels = torch.tensor([0] * 3 + [1] * 4 + [2] * 2)
    assert_close(class_coherence(cams, labels, 3), torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))


def test_coherence_sums_of_batches_add_up():
    cams, labels = torch.randn(20, 1, 3, 5), torch.arange(20) % 3
    parts = [coherence_sums(cams[i::2], labels[i::2], 3) for i in (0, 1)]
    together = [first + second for first, second in zip(*parts, strict=True)]
    assert_close(coherence(*together), class_coherence(cams, labels, 3), rtol=1e-12, atol=0)


def test_coherence_refuses_soft_labels():
    with pytest.raises(TypeError, match="labels"):
        class_coherence(torch.randn(4, 1, 4, 4), torch.rand(4, 3), 3)
