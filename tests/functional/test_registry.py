"""The registry behind distances, losses and methods."""

from __future__ import annotations

import pytest

from batchcam_captum.functional import Registry


def test_entries_are_found_listed_and_counted():
    shapes = Registry("shape")
    square = shapes.register("square")(lambda side: side * side)
    shapes.register("circle")(len)
    assert shapes["square"] is square
    assert list(shapes) == ["circle", "square"]
    assert len(shapes) == 2
    assert "square" in shapes
    assert "line" not in shapes


def test_a_name_is_given_once():
    shapes = Registry("shape")
    entry = shapes.register("square")(len)
    assert shapes.register("square")(entry) is entry
    with pytest.raises(ValueError, match="shape: the name 'square' is taken; choose another name"):
        shapes.register("square")(print)
    assert shapes["square"] is len
