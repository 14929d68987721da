"""The one reduction ladder."""

from __future__ import annotations

import pytest
import torch

from batchcam_captum.functional import reduce

VALUES = [1.0, 2.0, 6.0]


@pytest.mark.parametrize(
    ("reduction", "counted", "expected"),
    [
        ("none", None, VALUES),
        ("mean", None, 3.0),
        ("sum", None, 9.0),
        ("none", [True, False, True], [1.0, 0.0, 6.0]),
        ("mean", [True, False, True], 3.5),
        ("sum", [True, False, True], 7.0),
        ("mean", [False] * 3, 0.0),
    ],
)
def test_reduction_over_what_counts(reduction, counted, expected):
    counted = None if counted is None else torch.tensor(counted)
    assert reduce(torch.tensor(VALUES), reduction, counted).tolist() == expected


def test_what_does_not_count_may_be_anything():
    values = torch.tensor([1.0, torch.nan, torch.inf], requires_grad=True)
    total = reduce(values, "mean", torch.tensor([True, False, False]))
    total.backward()
    assert total == 1
    assert values.grad.tolist() == [1, 0, 0]


@pytest.mark.parametrize("counted", [None, torch.zeros(0, dtype=torch.bool)])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_empty_batch_gives_a_zero_with_a_graph(reduction, counted):
    values = torch.rand(0, requires_grad=True)
    total = reduce(values, reduction, counted)
    assert total == 0
    total.backward()
    assert values.grad.shape == (0,)


def test_unknown_reduction():
    with pytest.raises(ValueError, match="reduction: expected 'none', 'mean' or 'sum', got 'median'"):
        reduce(torch.rand(3), "median")
