"""A batch in pieces gives what the whole batch gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from batchcam_captum import BatchGradCam
from tests.models import DenseNetOutput, SmallCnn, TupleNet, TwoInputs

IMAGES = (7, 3, 12, 12)


def assert_same(got: Any, expected: Any) -> None:
    assert type(got) is type(expected)
    if isinstance(got, Tensor):
        assert expected.abs().max() > 1e-4
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-11 * expected.abs().max().item())
    else:
        assert len(got) == len(expected)
        for ours, theirs in zip(got, expected, strict=True):
            assert_same(ours, theirs)


@pytest.mark.parametrize("size", [1, 2, 3, 6, 7, 100])
@pytest.mark.parametrize(
    "target", [3, [0, 1, 2, 3, 4, 0, 1], torch.tensor([0, 1, 2, 3, 4, 0, -1]), torch.tensor(2)], ids=str
)
def test_targets_are_cut_with_the_inputs(size: int, target: Any) -> None:
    model, images = SmallCnn().double(), torch.randn(IMAGES, dtype=torch.double)
    grad_cam = BatchGradCam(model, model.layer)
    got = grad_cam.attribute_with_scores(images, target, internal_batch_size=size)
    assert_same(got, grad_cam.attribute_with_scores(images, target))


def test_tuples_as_targets() -> None:
    model, images = DenseNetOutput().double(), torch.randn(IMAGES, dtype=torch.double)
    grad_cam = BatchGradCam(model, model.layer)
    target = [(i % 5, i % 3, 2) for i in range(7)]
    got = grad_cam.attribute(images, target, internal_batch_size=3)
    assert_same(got, grad_cam.attribute(images, target))


def test_several_inputs_and_arguments() -> None:
    model = TwoInputs().double()
    images = tuple(torch.randn(IMAGES, dtype=torch.double) for _ in range(2))
    shift = torch.randn(7, dtype=torch.double)
    grad_cam = BatchGradCam(model, model.layer)
    for arguments in [(shift,), (shift, 2.0, "flipped"), shift]:
        got = grad_cam.attribute(images, 1, arguments, internal_batch_size=2)
        assert_same(got, grad_cam.attribute(images, 1, arguments))


@pytest.mark.parametrize("layers", [["stem", "layer"], "layer"], ids=["list", "single"])
def test_layers_with_several_tensors_and_several_layers(layers: Any) -> None:
    model, images = TupleNet().double(), torch.randn(IMAGES, dtype=torch.double)
    grad_cam = BatchGradCam(model, layers)
    assert_same(grad_cam.attribute(images, 1, internal_batch_size=3), grad_cam.attribute(images, 1))


def test_the_model_sees_no_more_than_asked_for() -> None:
    model, seen = SmallCnn(), []
    model.register_forward_pre_hook(lambda _, received: seen.append(len(received[0])))
    BatchGradCam(model, model.layer).attribute(torch.randn(IMAGES), 1, internal_batch_size=3)
    assert seen == [3, 3, 1]


def test_a_differentiable_map_in_pieces() -> None:
    model, images = SmallCnn().double(), torch.randn(IMAGES, dtype=torch.double)
    grad_cam = BatchGradCam(model, model.layer)
    gradients = []
    for size in (None, 2):
        cams = grad_cam.attribute(images, 1, differentiable=True, internal_batch_size=size)
        gradients.append(
            torch.autograd.grad(cams.square().sum(), list(model.parameters()), allow_unused=True)
        )
    # The last bias does not matter to any map.
    for whole, pieces in zip(*gradients, strict=True):
        assert (whole is None) == (pieces is None)
        if whole is not None:
            torch.testing.assert_close(pieces, whole)
    assert gradients[0][-2].abs().max() > 0


@pytest.mark.parametrize("size", [None, 2])
def test_a_batch_of_one_and_an_empty_batch(size: int | None) -> None:
    model = SmallCnn()
    grad_cam = BatchGradCam(model, model.layer)
    assert grad_cam.attribute(torch.randn(1, 3, 12, 12), 1, internal_batch_size=size).shape == (1, 1, 5, 5)
    assert grad_cam.attribute(torch.randn(0, 3, 12, 12), 1, internal_batch_size=size).shape == (0, 1, 5, 5)


@pytest.mark.parametrize(
    ("size", "kind", "message"),
    [
        (0, ValueError, "internal_batch_size: expected at least 1, got 0"),
        (-1, ValueError, "expected at least 1, got -1"),
        (2.0, TypeError, "expected an integer or None, got float"),
    ],
)
def test_sizes_that_do_not_fit(size: Any, kind: type[Exception], message: str) -> None:
    model = SmallCnn()
    with pytest.raises(kind, match=message):
        BatchGradCam(model, model.layer).attribute(torch.randn(IMAGES), 1, internal_batch_size=size)


def test_targets_of_another_length_are_refused_in_pieces_too() -> None:
    model = SmallCnn()
    grad_cam = BatchGradCam(model, model.layer)
    for target in ([1, 2, 3], torch.tensor([1, 2, 3])):
        with pytest.raises(ValueError, match="target: expected"):
            grad_cam.attribute(torch.randn(IMAGES), target, internal_batch_size=3)


def test_gradients_given_for_the_whole_batch_are_refused() -> None:
    model: nn.Module = SmallCnn()
    weights = [torch.ones(()) for _ in range(7)]
    with pytest.raises(ValueError, match="expected no grad_outputs with internal_batch_size"):
        BatchGradCam(model, model.layer).attribute(
            torch.randn(IMAGES), 1, grad_kwargs={"grad_outputs": weights}, internal_batch_size=3
        )


def test_the_pieces_draw_random_numbers_one_after_the_other() -> None:
    model, masks = SmallCnn(dropout=0.5).train(), []
    model.dropout.register_forward_hook(lambda _, __, output: masks.append(output == 0))
    images = torch.randn(1, 3, 12, 12).expand(4, -1, -1, -1)
    before = torch.get_rng_state()
    BatchGradCam(model, model.layer).attribute(images, 1, internal_batch_size=2)
    assert len(masks) == 2
    assert not torch.equal(*masks)
    assert torch.equal(torch.get_rng_state(), before)
