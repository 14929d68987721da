"""How alike the cams of a class are."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity
from torch.testing import assert_close

from batchcam_captum.functional import CoherenceSums, class_coherence, coherence_of, coherence_sums


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_equals_the_mean_over_all_pairs(dims):
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


def test_from_one_to_nothing():
    one = torch.rand(1, 1, 4, 4)
    other = torch.zeros(4, 1, 4, 4)
    other.view(4, 16)[range(4), range(4)] = 1  # nothing in common
    cams = torch.cat([one * torch.tensor([1e-9, 1.0, 1e9]).view(3, 1, 1, 1), other, -one, -one])
    labels = torch.tensor([0] * 3 + [1] * 4 + [2] * 2)
    assert_close(class_coherence(cams, labels, 3), torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))


def test_sums_of_batches_add_up():
    cams, labels = torch.randn(20, 1, 3, 5), torch.arange(20) % 3
    parts = [coherence_sums(cams[i::2], labels[i::2], 3) for i in (0, 1)]
    together = CoherenceSums(*(first + second for first, second in zip(*parts, strict=True)))
    assert_close(coherence_of(together), class_coherence(cams, labels, 3), rtol=1e-12, atol=0)


def test_soft_labels_are_refused():
    with pytest.raises(TypeError, match=r"labels: expected class indices \(4,\), got torch.float32 \(4, 3\)"):
        class_coherence(torch.randn(4, 1, 4, 4), torch.rand(4, 3), 3)
