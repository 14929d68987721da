"""Labels as weights, and means over the samples of each class."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from batchcam_captum.functional import ValueChecks, class_means, class_sums, class_weights

K = 4
LABELS = torch.tensor([0, 3, 3, -100, 1, 3])


@pytest.mark.parametrize("shape", [(), (5,), (1, 3, 4)])
def test_sums_and_means_equal_a_loop(shape):
    values = torch.randn(6, *shape, dtype=torch.float64)
    belongs = class_weights(LABELS, K)
    means, counts = class_means(values, belongs.weights)
    assert counts.tolist() == [1, 1, 0, 3]
    for c in range(K):
        own = [value for value, label in zip(values, LABELS, strict=True) if label == c]
        total = sum(own, torch.zeros(shape, dtype=torch.float64))
        assert_close(class_sums(values, belongs.weights)[c], total)
        assert_close(means[c], total / max(len(own), 1))


def test_soft_labels_weigh():
    values, soft = torch.randn(6, 5, dtype=torch.float64), torch.rand(6, K, dtype=torch.float64)
    means, counts = class_means(values, class_weights(soft, K, dtype=torch.float64).weights)
    for c in range(K):
        weighted = sum(w * value for w, value in zip(soft[:, c], values, strict=True))
        assert_close(means[c], weighted / soft[:, c].sum())
        assert_close(counts[c], soft[:, c].sum())


def test_hard_labels_equal_floating_one_hot_rows():
    labels = torch.tensor([0, 3, 3, 1])
    hard, soft = class_weights(labels, K), class_weights(F.one_hot(labels, K).float(), K)
    assert torch.equal(hard.weights, soft.weights)
    assert torch.equal(hard.counted, soft.counted)
    maps = torch.rand(K, 1, 3, 3)
    assert torch.equal(hard.pick(maps), soft.pick(maps))
    assert torch.equal(hard.pick(maps), maps[labels])


@pytest.mark.parametrize("ignored", [-100, 255, 2])
def test_ignored_samples_have_no_weight(ignored):
    labels = LABELS.where(LABELS != -100, ignored)
    belongs = class_weights(labels, K, ignore_index=ignored)
    assert belongs.counted.tolist() == [True, True, True, False, True, True]
    assert belongs.weights.sum(1).tolist() == [1, 1, 1, 0, 1, 1]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_integers_of_any_width(dtype):
    assert class_weights(torch.tensor([0, 3], dtype=dtype), K).indices.tolist() == [0, 3]


def test_empty_batch():
    means, counts = class_means(torch.rand(0, 1, 3), class_weights(torch.zeros(0).long(), K).weights)
    assert means.shape == (K, 1, 3)
    assert not means.any()
    assert not counts.any()


@pytest.mark.parametrize(
    ("labels", "n", "kind", "text"),
    [
        (torch.eye(4).long(), None, ValueError, "labels: expected"),
        (torch.zeros(4).long(), 5, ValueError, "labels: expected"),
        (torch.tensor(3), None, ValueError, "labels: expected"),
        (torch.rand(4, 3), None, ValueError, "labels: expected"),
        (torch.rand(4), None, ValueError, "labels: expected"),
        (torch.tensor([0, 4, -1]), None, ValueError, r"labels: expected.*-1, 4"),
        (torch.ones(4).bool(), None, TypeError, "labels: expected"),
        (torch.ones(4).cfloat(), None, TypeError, "labels: expected"),
    ],
)  # fmt: skip
def test_labels_that_do_not_fit(labels, n, kind, text):
    with pytest.raises(kind, match=text):
        class_weights(labels, K, num_samples=n)


def test_out_of_range_labels_count_nowhere_where_the_check_is_deferred():
    class Deferred(ValueChecks):
        def require(self, holds, message, detail=None):
            self.failed = not holds.all()

    checks = Deferred()
    belongs = class_weights(torch.tensor([0, 9, -5]), K, checks=checks)
    assert checks.failed
    assert belongs.counted.tolist() == [True, False, False]
    assert belongs.weights.sum() == 1
