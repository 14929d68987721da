"""The values of every argument combination equal Captum's."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn

from batchcam_captum import BatchGradCam
from tests.attribution.captum_parity import assert_like_captum
from tests.models import DenseNetOutput, SmallCnn, TwoInputs

DTYPES = [torch.float32, torch.float64]
FLAGS = [
    {"attribute_to_layer_input": at_input, "relu_attributions": relu, "attr_dim_summation": channel_sum}
    for at_input in (False, True)
    for relu in (False, True)
    for channel_sum in (False, True)
]


def flags_id(flags: dict[str, bool]) -> str:
    return (
        "+".join(name.split("_")[0 if name.startswith("relu") else -1] for name, on in flags.items() if on)
        or "none"
    )


CLASS_TARGETS = {
    "int": 3,
    "negative_int": -2,
    "one_element_tensor": torch.tensor([2]),
    "scalar_tensor": torch.tensor(4),
    "tensor": torch.tensor([4, 0, 1]),
    "list": [1, 1, 3],
    "tuple": (2,),
    "tuple_with_slice": (slice(1, 2),),
    "list_of_tuples": [(1,), (0,), (4,)],
    "list_of_slices": [(slice(1, 2),), (slice(0, 1),), (slice(4, None),)],
}

PLACE_TARGETS = {
    "tuple": (2, 0, 1),
    "negative_tuple": (-1, -2, -3),
    "tuple_with_slice": (2, slice(0, 1), 1),
    "trailing_slice": (1, 2, slice(2, 3)),
    "list_of_tuples": [(0, 1, 2), (4, 0, 0), (-1, 2, -1)],
    "list_of_tuples_with_slices": [(0, slice(1, 2), 2), (4, slice(0, 1), 0), (1, slice(2, None), 1)],
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("flags", FLAGS, ids=flags_id)
@pytest.mark.parametrize("target", CLASS_TARGETS.values(), ids=CLASS_TARGETS.keys())
def test_class_targets(target: Any, flags: dict[str, bool], dtype: torch.dtype) -> None:
    model = SmallCnn().to(dtype)
    assert_like_captum(
        model, model.layer, torch.randn(3, 3, 12, 10, dtype=dtype), dtype, target=target, **flags
    )


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8], ids=str)
def test_class_targets_of_smaller_integers_are_accepted_beyond_captum(dtype: torch.dtype) -> None:
    """Captum hands targets to ``torch.gather``; which types that takes, beside int64, depends on PyTorch's version."""
    model = SmallCnn()
    images, target = torch.randn(3, 3, 12, 10), torch.tensor([4, 0, 1])
    grad_cam = BatchGradCam(model, model.layer)
    expected = grad_cam.attribute(images, target=target)
    torch.testing.assert_close(grad_cam.attribute(images, target=target.to(dtype)), expected, rtol=0, atol=0)


@pytest.mark.parametrize("flags", FLAGS, ids=flags_id)
@pytest.mark.parametrize("target", PLACE_TARGETS.values(), ids=PLACE_TARGETS.keys())
def test_targets_of_outputs_with_more_dimensions(target: Any, flags: dict[str, bool]) -> None:
    model = DenseNetOutput().double()
    assert_like_captum(model, model.layer, torch.randn(3, 3, 8, 8).double(), target=target, **flags)


@pytest.mark.parametrize("flags", FLAGS, ids=flags_id)
@pytest.mark.parametrize("squeeze", [False, True], ids=["(N, 1)", "(N,)"])
def test_no_target_for_a_single_score(squeeze: bool, flags: dict[str, bool]) -> None:
    model = SmallCnn(num_classes=1).double()
    forward = (lambda x: model(x).squeeze(1)) if squeeze else model
    assert_like_captum(forward, model.layer, torch.randn(3, 3, 12, 10).double(), target=None, **flags)


EXTRA = {
    "none": None,
    "tensor": torch.tensor([0.5, -0.5, 1.0], dtype=torch.float64),
    "tuple": (torch.tensor([0.5, -0.5, 1.0], dtype=torch.float64), 1.5, "flipped"),
    "tuple_with_none": (None, 2.0),
}


@pytest.mark.parametrize("flags", FLAGS, ids=flags_id)
@pytest.mark.parametrize("extra", EXTRA.values(), ids=EXTRA.keys())
def test_several_inputs_and_further_arguments(extra: Any, flags: dict[str, bool]) -> None:
    model = TwoInputs().double()
    inputs = (torch.randn(3, 3, 9, 9).double(), torch.randn(3, 3, 9, 9).double())
    assert_like_captum(model, model.layer, inputs, target=[0, 2, 4], additional_forward_args=extra, **flags)


def test_a_single_further_argument_that_is_no_tensor() -> None:
    model = SmallCnn().double()
    assert_like_captum(
        lambda x, factor: model(x) * factor,
        model.layer,
        torch.randn(2, 3, 9, 9).double(),
        target=1,
        additional_forward_args=3,
    )


def test_a_tuple_with_one_input() -> None:
    model = SmallCnn().double()
    assert_like_captum(model, model.layer, (torch.randn(2, 3, 9, 9).double(),), target=1)


def grad_outputs(of_length_one: bool) -> list[Tensor]:
    factors = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    return list(factors.unsqueeze(1) if of_length_one else factors)


GRAD_KWARGS: dict[str, tuple[dict[str, Any], Any]] = {
    "empty": ({}, 1),
    "retain_graph": ({"retain_graph": True}, 1),
    "create_graph": ({"create_graph": True}, [0, 1, 2]),
    "no_create_graph": ({"create_graph": False}, 1),
    "grad_outputs": ({"grad_outputs": grad_outputs(False)}, torch.tensor([0, 1, 2])),
    "grad_outputs_of_slices": ({"grad_outputs": grad_outputs(True)}, (slice(2, 3),)),
    "grad_outputs_with_graph": ({"grad_outputs": grad_outputs(False), "create_graph": True}, 1),
    "materialize_grads": ({"materialize_grads": True}, 1),
    "allow_unused": ({"allow_unused": True}, 1),
    "not_allow_unused": ({"allow_unused": False}, 1),
}


@pytest.mark.parametrize("flags", FLAGS, ids=flags_id)
@pytest.mark.parametrize(("grad_kwargs", "target"), GRAD_KWARGS.values(), ids=GRAD_KWARGS.keys())
def test_grad_kwargs(grad_kwargs: dict[str, Any], target: Any, flags: dict[str, bool]) -> None:
    model = SmallCnn().double()
    before = dict(grad_kwargs)
    assert_like_captum(
        model,
        model.layer,
        torch.randn(3, 3, 12, 10).double(),
        target=target,
        grad_kwargs=grad_kwargs,
        **flags,
    )
    assert grad_kwargs == before


def test_materialize_grads_gives_zeros_where_the_scores_do_not_depend_on_the_layer() -> None:
    model = SmallCnn()

    def forward(x: Tensor) -> Tensor:
        model.layer(x[:, :1].expand(-1, 6, -1, -1))
        return model.stem(x).mean((2, 3))

    cams = BatchGradCam(forward, model.layer).attribute(
        torch.randn(2, 3, 9, 9), target=0, grad_kwargs={"materialize_grads": True}
    )
    assert cams.shape == (2, 1, 4, 4)
    assert cams.eq(0).all()


class Wrapped:
    """A forward_func that is the bound method of an object that is no module."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def scores(self, x: Tensor) -> Tensor:
        return self.model(x) * 2


@pytest.mark.parametrize(
    "kind", ["lambda", "bound_method", "forward_method", "partial", "data_parallel", "no_parameters"]
)
def test_kinds_of_forward_func(kind: str) -> None:
    model = SmallCnn().double()
    images = torch.randn(3, 3, 12, 10).double()
    forward = {
        "lambda": lambda x: model(x),
        "bound_method": Wrapped(model).scores,
        "forward_method": model.forward,
        "partial": functools.partial(model),
        "data_parallel": nn.DataParallel(model),
        "no_parameters": lambda: model(images),
    }[kind]
    assert_like_captum(forward, model.layer, images, target=[0, 3, 4])


def test_device_ids_are_accepted_as_in_captum() -> None:
    model = SmallCnn()
    images = torch.randn(2, 3, 9, 9)
    expected = LayerGradCam(model, model.layer, device_ids=[0]).attribute(images, 1)
    ours = BatchGradCam(model, model.layer, device_ids=[0])
    assert isinstance(ours, LayerGradCam)
    torch.testing.assert_close(ours.attribute(images, 1), expected.detach(), rtol=1e-5, atol=1e-7)
