"""The registry, the dtype of exact products, and reduction."""

from __future__ import annotations

import pytest
import torch

from batchcam_captum.functional import Registry, exact_matmul_dtype, reduce

VALUES = [1.0, 2.0, 6.0]


def test_registry_finds_and_lists_and_gives_a_name_once():
    shapes = Registry("shape")
    square = shapes.register("square")(lambda side: side * side)
    shapes.register("circle")(len)
    assert shapes["square"] is square
    assert list(shapes) == ["circle", "square"]
    assert "line" not in shapes
    assert shapes.register("square")(square) is square
    with pytest.raises(ValueError, match="'square'"):
        shapes.register("square")(print)
    assert shapes["square"] is square


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_products_of_float32_are_never_rounded_more(precision):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        expected = torch.float32 if precision == "highest" else torch.float64
        assert exact_matmul_dtype(torch.zeros(2)) == expected
        assert exact_matmul_dtype(torch.zeros(2).double()) == torch.float64
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("reduction", "counted", "weights", "expected"),
    [
        ("none", None, None, VALUES),
        ("mean", None, None, 3.0),
        ("sum", None, None, 9.0),
        ("none", [True, False, True], None, [1.0, 0.0, 6.0]),
        ("mean", [True, False, True], None, 3.5),
        ("sum", [True, False, True], None, 7.0),
        ("mean", [False] * 3, None, 0.0),
        ("mean", None, [1.0, 2.0, 1.0], 2.75),
        ("mean", [True, True, False], [1.0, 3.0, 9.0], 1.75),
    ],
)
def test_reduction_over_what_counts(reduction, counted, weights, expected):
    counted = None if counted is None else torch.tensor(counted)
    weights = None if weights is None else torch.tensor(weights)
    assert reduce(torch.tensor(VALUES), reduction, counted, weights).tolist() == expected


def test_what_does_not_count_may_be_anything():
    values = torch.tensor([1.0, torch.nan, torch.inf], requires_grad=True)
    total = reduce(values, "mean", torch.tensor([True, False, False]))
    total.backward()
    assert total == 1
    assert values.grad.tolist() == [1, 0, 0]


def test_nothing_to_reduce_gives_a_zero_with_a_graph():
    for counted in (None, torch.zeros(0, dtype=torch.bool)):
        values = torch.rand(0, requires_grad=True)
        for reduction in ("mean", "sum"):
            total = reduce(values, reduction, counted)
            assert total == 0
            total.backward()
    with pytest.raises(ValueError, match="reduction: expected"):
        reduce(torch.rand(3), "median")
