"""The values on every kind of network equal Captum's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from batchcam_captum import BatchGradCam
from tests.attribution.captum_parity import assert_close_to, assert_like_captum, fresh
from tests.models import (
    AddsInPlace,
    InPlaceNet,
    Pair,
    RepeatedNet,
    ResidualNet,
    SmallCnn,
    TupleNet,
    VectorNet,
    frozen,
    strong_heads,
)

SMALL: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "plain": (SmallCnn, (3, 16, 14)),
    "batch_norm": (lambda: SmallCnn(norm=True), (3, 16, 14)),
    "one_dimension": (lambda: SmallCnn(dims=1), (3, 30)),
    "three_dimensions": (lambda: SmallCnn(dims=3), (3, 9, 10, 11)),
    "in_place_relu": (InPlaceNet, (3, 9, 9)),
    "in_place_add": (AddsInPlace, (3, 9, 9)),
    "tuple_valued": (TupleNet, (3, 11, 11)),
    "list_valued": (lambda: TupleNet(list), (3, 11, 11)),
    "vector_valued": (VectorNet, (3, 4, 4)),
    "identity_beside_a_path": (lambda: ResidualNet(nn.Identity()), (3, 9, 9)),
    "eval_dropout_beside_a_path": (lambda: ResidualNet(nn.Dropout(0.5)), (3, 9, 9)),
    "residual_branch": (lambda: ResidualNet(nn.Conv2d(6, 6, 3, padding=1)), (3, 9, 9)),
}

LARGE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=5), "layer4"),
    "resnet18_middle": (lambda: torchvision.models.resnet18(num_classes=5), "layer3.0"),
    "densenet121": (lambda: torchvision.models.densenet121(num_classes=5), "features"),
    "convnext_tiny": (lambda: torchvision.models.convnext_tiny(num_classes=5), "features"),
    "convnextv2_atto": (lambda: timm.create_model("convnextv2_atto", num_classes=5), "stages.3"),
}

REDUCED = [
    {"target": 3},
    {"target": [4, 1, 2], "relu_attributions": True},
    {"target": torch.tensor([0, 2, 1]), "attribute_to_layer_input": True, "attr_dim_summation": False},
    {"target": [(1,), (2,), (0,)], "grad_kwargs": {"create_graph": True}},
]
REDUCED_IDS = ["int", "list+relu", "tensor+input+channels", "tuples+create_graph"]


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("is_frozen", [False, True], ids=["trainable", "frozen"])
@pytest.mark.parametrize("arguments", REDUCED, ids=REDUCED_IDS)
@pytest.mark.parametrize(("make", "shape"), SMALL.values(), ids=SMALL.keys())
def test_small_networks(
    make: Callable[[], nn.Module],
    shape: tuple[int, ...],
    arguments: dict[str, Any],
    is_frozen: bool,
    dtype: torch.dtype,
    train: bool,
) -> None:
    model = make().to(dtype).train(train)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    if is_frozen:
        # Here the marks matter: a detached copy of the layer's output would miss the path around the layer.
        frozen(model)
    inputs = torch.randn(3, *shape, dtype=dtype)
    assert_like_captum(model, model.layer, inputs, dtype, **arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("make", "layer"), LARGE.values(), ids=LARGE.keys())
def test_large_networks(make: Callable[[], nn.Module], layer: str, dtype: torch.dtype) -> None:
    model = strong_heads(make()).to(dtype).eval()
    inputs = torch.randn(3, 3, 64, 64, dtype=dtype)
    for arguments in REDUCED:
        assert_like_captum(model, model.get_submodule(layer), inputs, dtype, **arguments)


@pytest.mark.filterwarnings(
    "ignore:.*a BatchNorm with batch statistics after the explained layer:UserWarning"
)
def test_train_mode_of_a_large_network() -> None:
    model = strong_heads(torchvision.models.resnet18(num_classes=5)).double()
    assert_like_captum(model, model.layer3, torch.randn(2, 3, 64, 64).double(), target=[1, 4])


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("is_frozen", [False, True], ids=["trainable", "frozen"])
def test_any_grad_mode_around_the_call(context: Callable[[], Any], is_frozen: bool) -> None:
    model = InPlaceNet().double()
    if is_frozen:
        frozen(model)
    inputs = torch.randn(2, 3, 9, 9).double()
    expected = BatchGradCam(model, model.layer).attribute(inputs, target=[1, 0])
    with context():
        actual = BatchGradCam(model, model.layer).attribute(inputs, target=[1, 0])
        inside = BatchGradCam(model, model.layer).attribute(inputs + 0.0, target=[1, 0])
        extra = BatchGradCam(lambda x, y: model(x + y), model.layer).attribute(inputs, [1, 0], inputs * 0)
    for cams in (actual, inside, extra):
        assert not cams.is_inference()
        assert_close_to(cams, expected, torch.float64)
    if context is not torch.inference_mode:
        with context():
            assert_like_captum(model, model.layer, inputs, target=[1, 0])


def test_inference_mode_can_be_differentiated_afterwards() -> None:
    model = SmallCnn()
    with torch.inference_mode():
        images = torch.randn(2, 3, 9, 9)
        cams = BatchGradCam(model, model.layer).attribute(images, target=1, differentiable=True)
    cams.square().sum().backward()
    assert model.head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("is_frozen", [False, True], ids=["trainable", "frozen"])
@pytest.mark.parametrize("at_input", [False, True], ids=["output", "input"])
def test_the_input_and_output_of_a_residual_block(at_input: bool, is_frozen: bool) -> None:
    model = ResidualNet(nn.Conv2d(6, 6, 3, padding=1)).double()
    if is_frozen:
        frozen(model)
    inputs = torch.randn(2, 3, 9, 9).double()
    assert_like_captum(model, model.block, inputs, target=[1, 0], attribute_to_layer_input=at_input)


def test_the_input_of_the_first_layer() -> None:
    model = SmallCnn().double()
    inputs = torch.randn(2, 3, 9, 9).double()
    assert_like_captum(model, model.stem[0], inputs, target=1, attribute_to_layer_input=True)


def test_marking_is_what_makes_a_frozen_residual_network_right() -> None:
    # The slow twin that a detached copy of the layer's output amounts to, so that the tests above are known to be able to fail.
    model = frozen(ResidualNet(nn.Identity()).double())
    inputs = torch.randn(2, 3, 9, 9).double()
    right = BatchGradCam(model, model.layer).attribute(inputs, target=1)
    handle = model.layer.register_forward_hook(lambda module, received, returned: returned.detach().clone())
    wrong = BatchGradCam(model, model.layer).attribute(inputs, target=1)
    handle.remove()
    assert (right - wrong).abs().max() > 0.01 * right.abs().max()


def test_a_layer_that_returns_a_named_tuple_keeps_its_fields() -> None:
    # Captum hands on a plain tuple, so it can only run the twin that unpacks it.
    by_name, unpacked = TupleNet(Pair, by_name=True).double(), TupleNet(Pair).double()
    unpacked.load_state_dict(by_name.state_dict())
    inputs = torch.randn(2, 3, 11, 11).double()
    assert_like_captum(unpacked, unpacked.layer, inputs, target=[1, 0])
    expected = BatchGradCam(unpacked, unpacked.layer).attribute(fresh(inputs), target=[1, 0])
    actual = BatchGradCam(by_name, by_name.layer).attribute(fresh(inputs), target=[1, 0])
    assert_close_to(actual, expected, torch.float64)


@pytest.mark.parametrize("kind", [tuple, list, Pair])
def test_a_layers_container_keeps_its_type(kind: Any) -> None:
    model = TupleNet(kind)
    handed_on: list[Any] = []

    def forward(x: Tensor) -> Tensor:
        handed_on.append(model.layer(model.stem(x)))
        return model(x)

    with pytest.warns(UserWarning, match="runs 2 times"):
        BatchGradCam(forward, model.layer).attribute(torch.randn(2, 3, 11, 11), target=1)
    assert type(handed_on[0]) is kind


def test_a_tensor_and_a_flag_in_a_layers_tuple() -> None:
    class Flagged(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, None, str]:
            return x.tanh(), None, "flag"

    model = SmallCnn().double()
    plain = BatchGradCam(model, model.tail[0])
    inputs = torch.randn(2, 3, 9, 9).double()
    expected = plain.attribute(inputs, target=1)
    flagged = Flagged()

    def forward(x: Tensor) -> Tensor:
        maps, nothing, flag = flagged(model.layer(model.stem(x)))
        assert nothing is None
        assert flag == "flag"
        return model.head(model.tail[1:](maps))

    actual = BatchGradCam(forward, flagged).attribute(inputs, target=1)
    assert_close_to(actual, expected, torch.float64)


@pytest.mark.parametrize("method", ["attribute", "attribute_with_scores"])
def test_a_layer_that_runs_twice_warns_and_explains_the_last_run(method: str) -> None:
    model = RepeatedNet().double()
    inputs = torch.randn(2, 3, 9, 9).double()
    grad_cam = BatchGradCam(model, model.layer)
    with pytest.warns(
        UserWarning, match=r"Conv2d: the layer runs 2 times in one forward; its last run"
    ) as record:
        getattr(grad_cam, method)(inputs, target=1)
    assert [warning.filename for warning in record] == [__file__], "the warning points at the caller"
    with pytest.warns(UserWarning, match="as in Captum"):
        assert_like_captum(model, model.layer, inputs, target=[2, 0])
