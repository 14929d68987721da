"""select_target against Captum's own selection, over many shapes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from captum._utils.common import _select_targets
from torch import Tensor

from batchcam_captum.attribution import select_target

SHAPES = [
    (1,),
    (4,),
    (1, 1),
    (1, 3),
    (4, 1),
    (4, 3),
    (3, 3),
    (4, 3, 2),
    (1, 3, 2),
    (2, 3, 4, 5),
    (3, 1, 1),
    (2, 2, 1, 3),
]


def targets_for(shape: tuple[int, ...]) -> Iterator[Any]:
    """Every kind of target, of every length that could fit, in range."""
    samples, sizes = shape[0], shape[1:]
    yield None
    if not sizes:
        return
    yield from range(-sizes[0], sizes[0])
    yield torch.tensor(sizes[0] - 1)
    yield torch.tensor([[0]])
    yield torch.randint(sizes[0], (samples,))
    yield torch.randint(sizes[0], (samples,)).tolist()
    for length in range(1, len(sizes) + 1):
        indices = [
            tuple(int(torch.randint(-size, size, ())) for size in sizes[:length]) for _ in range(samples)
        ]
        yield indices
        yield indices[0]
        for places in itertools.product([False, True], repeat=length):
            with_slices = [_with_slices(entry, sizes, places) for entry in indices]
            yield with_slices
            yield with_slices[0]
            yield tuple(
                slice(None) if sliced else index for index, sliced in zip(indices[0], places, strict=True)
            )


def _with_slices(
    indices: tuple[int, ...], sizes: tuple[int, ...], places: tuple[bool, ...]
) -> tuple[int | slice, ...]:
    """The same indices, some of them as slices of length one."""
    return tuple(
        slice(index % size, index % size + 1) if sliced else index
        for index, size, sliced in zip(indices, sizes, places, strict=False)
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_selection_is_captums(shape: tuple[int, ...]) -> None:
    output = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    selected = 0
    for target in targets_for(shape):
        try:
            expected = _select_targets(output, target)
            assert expected[0].numel() == 1  # what Captum's gradient demands afterwards
        except (AssertionError, IndexError, RuntimeError):
            with pytest.raises(ValueError, match=r"^target: expected"):
                select_target(output, target)
            continue
        actual = select_target(output, target)
        assert actual.shape == expected.shape, target
        assert actual.equal(expected), target
        selected += 1
    assert selected > 0


def test_most_targets_that_captum_rejects_are_rejected_and_most_others_are_not() -> None:
    # The comparison above shows nothing if it only ever takes one of its branches.
    output = torch.rand(4, 3, 2)
    fits = [_fits(output, target) for target in targets_for((4, 3, 2))]
    assert 5 < sum(fits) < len(fits) - 5


def _fits(output: Tensor, target: Any) -> bool:
    try:
        select_target(output, target)
    except ValueError:
        return False
    return True


NEGATIVE = [[-1, 0, -3, 2], torch.tensor([-1, 0, -3, 2]), torch.tensor([-1, 0, -3, 2], dtype=torch.int32)]


@pytest.mark.parametrize("target", NEGATIVE, ids=["list", "tensor", "int32"])
def test_negative_indices_count_from_the_end_for_each_sample(target: Any) -> None:
    output = torch.rand(4, 3)
    expected = output[torch.arange(4), torch.tensor([2, 0, 0, 2])]
    assert select_target(output, target).equal(expected)


@pytest.mark.parametrize(
    "target", [np.int64(1), [np.int64(1)] * 4, [(np.int32(1),)] * 4, (np.int64(1),)], ids=str
)
def test_numpy_integers_are_integers(target: Any) -> None:
    output = torch.rand(4, 3)
    assert select_target(output, target).equal(output[:, 1])


@pytest.mark.parametrize(
    "target", [1, (1,), [1, 0, 2], [(1,), (0,), (2,)], torch.tensor([1, 0, 2]), torch.tensor(1)], ids=str
)
def test_the_graph_reaches_the_output(target: Any) -> None:
    output = torch.rand(3, 3, requires_grad=True)
    select_target(output, target).sum().backward()
    assert output.grad.sum() == 3
    assert output.grad.sum(1).eq(1).all()


def test_an_empty_batch_selects_nothing() -> None:
    for target in (1, [], torch.zeros(0, dtype=torch.long)):
        assert select_target(torch.rand(0, 3), target).shape == (0,)
