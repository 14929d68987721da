"""BatchGradCam: Captum's values for all arguments and networks, and the same from a loop over samples."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torchvision
from captum.attr import LayerGradCam
from torch import Tensor, nn

from batchcam_captum import BatchGradCam, LayerCapture
from batchcam_captum.functional import CAM_METHODS, get_method, grad_cam_plus_plus
from tests.attribution.captum_parity import assert_close_to, assert_like_captum
from tests.models import (
    AddsInPlace,
    DenseNetOutput,
    InPlaceNet,
    Pair,
    RepeatedNet,
    ResidualNet,
    SmallCnn,
    TupleNet,
    TwoInputs,
    VectorNet,
    frozen,
    strong_heads,
)

FLAGS = [
    {"attribute_to_layer_input": at_input, "relu_attributions": relu, "attr_dim_summation": channel_sum}
    for at_input in (False, True)
    for relu in (False, True)
    for channel_sum in (False, True)
]
SHIFT = torch.tensor([0.5, -0.5, 1.0], dtype=torch.float64)


def images_of(samples: int = 3, height: int = 12, width: int = 10) -> Tensor:
    return torch.randn(samples, 3, height, width, dtype=torch.float64)


# ---- the arguments of attribute(), as in Captum ----

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("target", CLASS_TARGETS.values(), ids=CLASS_TARGETS)
def test_class_targets(target: Any, dtype: torch.dtype) -> None:
    model = SmallCnn().to(dtype)
    for flags in FLAGS:
        assert_like_captum(model, model.layer, images_of().to(dtype), dtype, target=target, **flags)


@pytest.mark.parametrize("target", PLACE_TARGETS.values(), ids=PLACE_TARGETS)
def test_targets_of_outputs_with_more_dimensions(target: Any) -> None:
    model = DenseNetOutput().double()
    for flags in FLAGS:
        assert_like_captum(model, model.layer, images_of(3, 8, 8), target=target, **flags)


@pytest.mark.parametrize("squeeze", [False, True], ids=["(N, 1)", "(N,)"])
def test_no_target_for_a_single_score(squeeze: bool) -> None:
    model = SmallCnn(num_classes=1).double()
    forward = (lambda x: model(x).squeeze(1)) if squeeze else model
    for flags in FLAGS:
        assert_like_captum(forward, model.layer, images_of(), target=None, **flags)


@pytest.mark.parametrize(
    "extra", [None, SHIFT, (SHIFT, 1.5, "flipped"), (None, 2.0)], ids=["none", "tensor", "tuple", "with_none"]
)
def test_several_inputs_and_further_arguments(extra: Any) -> None:
    model = TwoInputs().double()
    inputs = (images_of(3, 9, 9), images_of(3, 9, 9))
    for flags in FLAGS:
        assert_like_captum(
            model, model.layer, inputs, target=[0, 2, 4], additional_forward_args=extra, **flags
        )


def test_one_input_in_a_tuple_and_one_argument_that_is_no_tensor() -> None:
    model = SmallCnn().double()
    assert_like_captum(model, model.layer, (images_of(),), target=1)
    assert_like_captum(
        lambda x, factor: model(x) * factor, model.layer, images_of(), target=1, additional_forward_args=3
    )


def grad_outputs(of_length_one: bool) -> list[Tensor]:
    factors = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    return list(factors.unsqueeze(1) if of_length_one else factors)


GRAD_KWARGS: list[tuple[dict[str, Any], Any]] = [
    ({}, 1),
    ({"retain_graph": True}, 1),
    ({"create_graph": True}, [0, 1, 2]),
    ({"create_graph": False}, 1),
    ({"grad_outputs": grad_outputs(False)}, torch.tensor([0, 1, 2])),
    ({"grad_outputs": grad_outputs(True)}, (slice(2, 3),)),
    ({"grad_outputs": grad_outputs(False), "create_graph": True}, 1),
    ({"materialize_grads": True}, 1),
    ({"allow_unused": True}, 1),
]


@pytest.mark.parametrize(("grad_kwargs", "target"), GRAD_KWARGS)
def test_grad_kwargs(grad_kwargs: dict[str, Any], target: Any) -> None:
    model, before = SmallCnn().double(), dict(grad_kwargs)
    for flags in FLAGS:
        assert_like_captum(model, model.layer, images_of(), target=target, grad_kwargs=grad_kwargs, **flags)
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
    """An object that is no module, but has a model."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def scores(self, x: Tensor) -> Tensor:
        return self.model(x) * 2


@pytest.mark.parametrize(
    "kind", ["lambda", "bound_method", "forward_method", "partial", "data_parallel", "no_parameters"]
)
def test_kinds_of_forward_func(kind: str) -> None:
    model, images = SmallCnn().double(), images_of()
    forward = {
        "lambda": lambda x: model(x),
        "bound_method": Wrapped(model).scores,
        "forward_method": model.forward,
        "partial": functools.partial(model),
        "data_parallel": nn.DataParallel(model),
        "no_parameters": lambda: model(images),
    }[kind]
    assert_like_captum(forward, model.layer, images, target=[0, 3, 4])


def test_constructor_takes_device_ids_and_names() -> None:
    model, images = SmallCnn().double(), images_of()
    expected = LayerGradCam(model, model.layer, device_ids=[0]).attribute(images.clone(), 1)
    ours = BatchGradCam(model, "layer", [0])
    assert isinstance(ours, LayerGradCam)
    assert_close_to(ours.attribute(images, 1), expected, torch.float64)
    assert BatchGradCam(model, "tail.1").layer is model.tail[1]


# ---- networks, as in Captum ----

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
    "eval_dropout_beside_a_path": (lambda: ResidualNet(nn.Dropout(0.5).eval()), (3, 9, 9)),
    "residual_branch": (lambda: ResidualNet(nn.Conv2d(6, 6, 3, padding=1)), (3, 9, 9)),
}
ARGUMENTS: list[dict[str, Any]] = [
    {"target": 3},
    {"target": [4, 1, 2], "relu_attributions": True},
    {"target": torch.tensor([0, 2, 1]), "attribute_to_layer_input": True, "attr_dim_summation": False},
    {"target": [(1,), (2,), (0,)], "grad_kwargs": {"create_graph": True}},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("is_frozen", [False, True], ids=["trainable", "frozen"])
@pytest.mark.parametrize(("make", "shape"), SMALL.values(), ids=SMALL)
def test_small_networks(make: Any, shape: tuple[int, ...], is_frozen: bool, dtype: torch.dtype) -> None:
    # Of a frozen model a detached copy of the layer's output would miss the path around the layer.
    model = make().to(dtype).requires_grad_(not is_frozen)
    for arguments in ARGUMENTS:
        assert_like_captum(model, model.layer, torch.randn(3, *shape, dtype=dtype), dtype, **arguments)


@pytest.mark.filterwarnings("ignore:.*BatchNorm with batch statistics:UserWarning")
@pytest.mark.parametrize(
    ("model", "layer", "training"),
    [("resnet18", "layer3.0", False), ("resnet18", "layer3", True), ("densenet121", "features", False)],
)
def test_large_networks_in_float64(model: str, layer: str, training: bool) -> None:
    network = torchvision.models.get_model(model, num_classes=5)
    network = strong_heads(network).double().train(training)
    for arguments in ARGUMENTS[::2]:
        assert_like_captum(network, network.get_submodule(layer), images_of(3, 64, 64), **arguments)


@pytest.mark.parametrize("is_frozen", [False, True], ids=["trainable", "frozen"])
@pytest.mark.parametrize("at_input", [False, True], ids=["output", "input"])
def test_the_input_and_output_of_a_residual_block(at_input: bool, is_frozen: bool) -> None:
    model = ResidualNet(nn.Conv2d(6, 6, 3, padding=1)).double().requires_grad_(not is_frozen)
    assert_like_captum(
        model, model.block, images_of(2, 9, 9), target=[1, 0], attribute_to_layer_input=at_input
    )
    assert_like_captum(model, model.stem[0], images_of(2, 9, 9), target=[1, 0], attribute_to_layer_input=True)


def test_a_detached_copy_of_the_output_would_be_wrong() -> None:
    # So that the tests above are known to be able to fail.
    model, inputs = frozen(ResidualNet(nn.Identity()).double()), images_of(2, 9, 9)
    right = BatchGradCam(model, model.layer).attribute(inputs, target=1)
    model.layer.register_forward_hook(lambda module, received, returned: returned.detach().clone())
    wrong = BatchGradCam(model, model.layer).attribute(inputs, target=1)
    assert (right - wrong).abs().max() > 0.01 * right.abs().max()


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("is_frozen", [False, True], ids=["trainable", "frozen"])
def test_any_grad_mode_around_the_call(context: Any, is_frozen: bool) -> None:
    model, inputs = InPlaceNet().double().requires_grad_(not is_frozen), images_of(2, 9, 9)
    grad_cam = BatchGradCam(model, model.layer)
    expected = grad_cam.attribute(inputs, target=[1, 0])
    with context():
        made_inside = inputs + 0.0
        found = [grad_cam.attribute(inputs, target=[1, 0]), grad_cam.attribute(made_inside, target=[1, 0])]
        shifted = BatchGradCam(lambda x, y: model(x + y), model.layer)
        found.append(shifted.attribute(inputs, [1, 0], made_inside * 0))
        differentiable = BatchGradCam(model, "layer").attribute(made_inside, [1, 0], differentiable=True)
    for cams in found:
        assert not cams.is_inference()
        assert_close_to(cams, expected, torch.float64)
    if not is_frozen:
        differentiable.square().sum().backward()
        assert model.head.weight.grad.abs().max() > 0


def test_a_layer_that_returns_a_named_tuple_keeps_its_fields() -> None:
    # Captum hands on a plain tuple, so it can only run the twin that unpacks it.
    by_name, unpacked = TupleNet(Pair, by_name=True).double(), TupleNet(Pair).double()
    unpacked.load_state_dict(by_name.state_dict())
    inputs = images_of(2, 11, 11)
    assert_like_captum(unpacked, unpacked.layer, inputs, target=[1, 0])
    expected = BatchGradCam(unpacked, unpacked.layer).attribute(inputs, target=[1, 0])
    assert_close_to(BatchGradCam(by_name, by_name.layer).attribute(inputs, [1, 0]), expected, torch.float64)


def test_a_layers_tuple_may_hold_other_things() -> None:
    class Flagged(nn.Module):
        def forward(self, x: Tensor) -> list[Any]:
            return [x.tanh(), None, "flag"]

    model, flagged, inputs = SmallCnn().double(), Flagged(), images_of(2, 9, 9)
    expected = BatchGradCam(model, model.tail[0]).attribute(inputs, target=1)

    def forward(x: Tensor) -> Tensor:
        found = flagged(model.layer(model.stem(x)))
        assert type(found) is list
        assert found[1:] == [None, "flag"]
        return model.head(model.tail[1:](found[0]))

    assert_close_to(BatchGradCam(forward, flagged).attribute(inputs, target=1), expected, torch.float64)


def test_a_layer_that_runs_twice_warns_and_explains_the_last_run() -> None:
    model, inputs = RepeatedNet().double(), images_of(2, 9, 9)
    with pytest.warns(UserWarning, match=r"Conv2d: .* 2 times") as record:
        BatchGradCam(model, model.layer).attribute(inputs, target=1)
    assert [warning.filename for warning in record] == [__file__], "the warning points at the caller"
    with pytest.warns(UserWarning, match="2 times"):
        assert_like_captum(model, model.layer, inputs, target=[2, 0])


# ---- differentiable maps, and weightings: a loop over samples ----


def slow_cams(
    model: Any, images: Tensor, targets: list[int], method: Any = "grad_cam", **arguments: Any
) -> Tensor:
    """Compute the maps by definition, with their graph: one sample after the other, each with a gradient of its own."""
    maps = []
    for image, target in zip(images, targets, strict=True):
        kept: list[Tensor] = []

        def remember(_: Any, __: Any, returned: Tensor, kept: list[Tensor] = kept) -> Tensor:
            kept.append(returned)
            return returned.clone()

        handle = model.layer.register_forward_hook(remember)
        score = model(image[None])[0, target]
        handle.remove()
        (gradient,) = torch.autograd.grad(score, kept, create_graph=True)
        maps.append(get_method(method)(kept[0], gradient, **arguments))
    return torch.cat(maps)


def gradients_of(loss: Tensor, model: nn.Module) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters, materialize_grads=True), strict=True))


def assert_same_gradients(actual: Tensor, expected: Tensor, model: nn.Module) -> None:
    theirs = gradients_of(expected, model)
    assert theirs["head.weight"].abs().max() > 1e-4
    for name, gradient in gradients_of(actual, model).items():
        scale = theirs[name].abs().max() + 1e-12
        assert (gradient - theirs[name]).abs().max() <= 1e-11 * scale, name


@pytest.mark.parametrize(
    "arguments",
    [{"differentiable": True}, {"grad_kwargs": {"create_graph": True}}],
    ids=["flag", "grad_kwargs"],
)
@pytest.mark.parametrize(
    "name", ["plain", "batch_norm", "one_dimension", "three_dimensions", "in_place_relu", "identity_beside_a_path"]
)  # fmt: skip
def test_every_parameters_gradient_equals_a_loop_over_samples(name: str, arguments: dict[str, Any]) -> None:
    make, shape = SMALL[name]
    model = make().double().eval()
    images, targets = torch.randn(3, *shape, dtype=torch.double), [1, 4, 0]
    cams = BatchGradCam(model, model.layer).attribute(images, targets, **arguments)
    assert_same_gradients(cams.square().sum(), slow_cams(model, images, targets).square().sum(), model)


def test_a_wrongly_constant_channel_weight_would_be_seen() -> None:
    # Captum's default: the maps require a gradient and the trunk gets one, but the head gets none. This is the trap.
    model = SmallCnn()
    cams = LayerGradCam(model, model.layer).attribute(torch.randn(2, 3, 9, 9), target=1)
    cams.square().sum().backward()
    assert model.layer.weight.grad.abs().max() > 0
    assert model.head.weight.grad is None


@pytest.mark.parametrize("method", list(CAM_METHODS))
def test_every_weighting_in_value_and_gradient(method: str) -> None:
    model, images, target = SmallCnn().double(), images_of(3, 12, 12), [4, 0, 2]
    grad_cam = BatchGradCam(model, model.layer, method=method)
    by_channel = grad_cam.attribute(images, target, attr_dim_summation=False)
    expected = slow_cams(model, images, target, method, channel_sum=False)
    assert_close_to(by_channel, expected, torch.float64)
    cams = grad_cam.attribute(images, target, differentiable=True)
    expected = slow_cams(model, images, target, method)
    assert_close_to(cams, expected, torch.float64)
    assert_same_gradients(cams.square().sum(), expected.square().sum(), model)


def test_methods_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = SmallCnn().double(), images_of(3, 12, 12)
    with_epsilon = partial(grad_cam_plus_plus, eps=1e-6)
    cams = BatchGradCam(model, model.layer, method=with_epsilon).attribute(images, 1)
    assert_close_to(cams, slow_cams(model, images, [1] * 3, with_epsilon), torch.float64)
    monkeypatch.setattr(CAM_METHODS, "_entries", dict(CAM_METHODS._entries))

    @CAM_METHODS.register("squared")
    def squared(activations: Tensor, gradients: Tensor) -> Tensor:
        return (activations * gradients).square().sum(1, keepdim=True)

    grad_cam = BatchGradCam(model, model.layer, method="squared")
    expected = slow_cams(model, images, [2] * 3, squared)
    assert_close_to(grad_cam.attribute(images, 2), expected, torch.float64)
    assert_close_to(grad_cam.attribute_classes(images, [2]), expected, torch.float64)
    with pytest.raises(TypeError, match="channel_sum"):
        grad_cam.attribute(images, 2, attr_dim_summation=False)


@pytest.mark.parametrize("grad_kwargs", [None, {"retain_graph": True}, {"create_graph": False}])
def test_without_asking_everything_is_detached(grad_kwargs: dict[str, Any] | None) -> None:
    model = TupleNet()
    cams, scores = BatchGradCam(model, model.layer).attribute_with_scores(
        torch.randn(2, 3, 11, 11), 1, grad_kwargs=grad_kwargs
    )
    assert not any(tensor.requires_grad for tensor in (*cams, scores))


@pytest.mark.parametrize("flags", FLAGS, ids=lambda flags: "+".join(name for name, on in flags.items() if on))
def test_every_kind_of_map_reaches_the_head_and_comes_with_its_scores(flags: dict[str, bool]) -> None:
    model, images = SmallCnn(), torch.randn(3, 3, 9, 9)
    grad_cam = BatchGradCam(model, model.layer)
    cams, scores = grad_cam.attribute_with_scores(images, [0, 1, 2], differentiable=True, **flags)
    assert torch.equal(scores, model(images))
    torch.testing.assert_close(cams.detach(), grad_cam.attribute(images, [0, 1, 2], **flags))
    cams.square().sum().backward()
    assert model.head.weight.grad.abs().max() > 0


def test_a_frozen_trunk_trains_the_head_alone() -> None:
    model, images = SmallCnn().double(), images_of()
    (expected,) = torch.autograd.grad(slow_cams(model, images, [0, 1, 2]).square().sum(), model.head.weight)
    frozen(model.stem), frozen(model.layer)
    cams = BatchGradCam(model, model.layer).attribute(images, [0, 1, 2], differentiable=True)
    cams.square().sum().backward()
    assert_close_to(model.head.weight.grad, expected, torch.float64)
    assert model.layer.weight.grad is None


@pytest.mark.parametrize("differentiable", [False, True])
def test_scores_come_from_the_one_forward(differentiable: bool) -> None:
    model, returned = SmallCnn(dropout=0.5).train(), []
    model.register_forward_hook(lambda module, received, scores: returned.append(scores))
    cams, scores = BatchGradCam(model, model.layer).attribute_with_scores(
        torch.randn(3, 3, 9, 9), [0, 1, 2], differentiable=differentiable
    )
    (expected,) = returned
    assert torch.equal(scores, expected)
    assert scores.requires_grad == cams.requires_grad == differentiable


def test_scores_and_maps_train_together_in_one_backward() -> None:
    model, images, targets = SmallCnn().double(), images_of(), torch.tensor([0, 1, 2])
    cams, scores = BatchGradCam(model, model.layer).attribute_with_scores(
        images, targets, differentiable=True
    )
    together = nn.functional.cross_entropy(scores, targets) + cams.square().sum()
    apart = slow_cams(model, images, targets.tolist()).square().sum()
    assert_same_gradients(together, nn.functional.cross_entropy(model(images), targets) + apart, model)


def test_a_trunk_under_no_grad_is_explained_and_its_head_trained() -> None:
    class TrunkWithoutGraph(SmallCnn):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.layer(self.stem(x))
            return self.head(self.tail(x))

    model, recorded, images = TrunkWithoutGraph().double(), SmallCnn().double(), images_of()
    recorded.load_state_dict(model.state_dict())
    cams = BatchGradCam(model, model.layer).attribute(images, target=1, differentiable=True)
    expected = slow_cams(recorded, images, [1] * 3)
    assert_close_to(cams, expected, torch.float64)
    (ours,) = torch.autograd.grad(cams.square().sum(), model.head.weight)
    (theirs,) = torch.autograd.grad(expected.square().sum(), recorded.head.weight)
    assert_close_to(ours, theirs, torch.float64)


# ---- several layers ----


class Nested(nn.Module):
    """Layers one after the other, one inside another, and one on a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.Tanh())
        self.branch = nn.Conv2d(4, 6, 1)
        self.head = strong_heads(nn.Linear(6, 5))

    def forward(self, images: Tensor) -> Tensor:
        stem = self.first(images)
        return self.head((self.block(stem) + self.branch(stem)).tanh().mean((2, 3)))


class LateIdentity(nn.Module):
    """Another layer runs between two uses of the stem, the second of which goes through an Identity."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.before = nn.Conv2d(4, 4, 1)
        self.branch = nn.Conv2d(4, 4, 1)
        self.identity = nn.Identity()
        self.head = strong_heads(nn.Linear(4, 5))

    def forward(self, images: Tensor) -> Tensor:
        stem = self.stem(images)
        before = self.before(stem).tanh()
        return self.head((self.branch(stem) + self.identity(stem) * before).mean((2, 3)))


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("at_input", [False, True], ids=["output", "input"])
@pytest.mark.parametrize(
    ("make", "names"),
    [(Nested, ["branch", "block.0", "first", "block"]), (LateIdentity, ["branch", "identity"])],
)
def test_several_layers_give_the_map_of_each(
    make: Any, names: list[str], at_input: bool, differentiable: bool
) -> None:
    model, images = make().double().eval(), images_of(3, 8, 8)
    arguments = {"target": [0, 4, 2], "attribute_to_layer_input": at_input, "differentiable": differentiable}
    together = BatchGradCam(model, names).attribute(images, **arguments)
    assert isinstance(together, list)
    for name, cams in zip(names, together, strict=True):
        alone = BatchGradCam(model, name).attribute(images, **arguments)
        assert_close_to(cams, alone, torch.float64)
        if not differentiable:
            assert_like_captum(
                model, model.get_submodule(name), images, target=[0, 4, 2], attribute_to_layer_input=at_input
            )
            continue
        ours, theirs = (
            torch.autograd.grad(maps.square().sum(), model.head.weight, retain_graph=True)[0]
            for maps in (cams, alone)
        )
        assert_close_to(ours, theirs, torch.float64)


def test_several_layers_take_one_forward_and_one_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    model, forwards, gradients = Nested(), [], []
    model.register_forward_hook(lambda *_: forwards.append(1))
    original = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: gradients.append(1) or original(*a, **k))
    found = BatchGradCam(model, ["branch", "first"]).attribute(torch.randn(2, 3, 8, 8), target=0)
    assert (len(found), len(forwards), len(gradients)) == (2, 1, 1)
    assert len(BatchGradCam(model, ["block"]).attribute(torch.randn(2, 3, 8, 8), target=0)) == 1


# ---- a batch in pieces ----


def flat(found: Any) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else [tensor for entry in found for tensor in flat(entry)]


@pytest.mark.parametrize("size", [1, 2, 6, 7, 100])
@pytest.mark.parametrize(
    ("make", "layer", "target", "inputs", "arguments"),
    [
        (SmallCnn, "layer", 3, 1, None),
        (SmallCnn, "layer", [0, 1, 2, 3, 4, 0, 1], 1, None),
        (SmallCnn, "layer", torch.tensor([0, 1, 2, 3, 4, 0, -1]), 1, None),
        (SmallCnn, "layer", torch.tensor(2), 1, None),
        (DenseNetOutput, "layer", [(i % 5, i % 3, 2) for i in range(7)], 1, None),
        (TwoInputs, "layer", 1, 2, torch.linspace(-1, 1, 7).double()),
        (TwoInputs, "layer", 1, 2, (torch.linspace(-1, 1, 7).double(), 2.0, "flipped")),
        (TupleNet, "layer", 1, 1, None),
        (TupleNet, ["stem", "layer"], 1, 1, None),
    ],
)
def test_pieces_give_what_the_whole_batch_gives(
    make: Any, layer: Any, target: Any, inputs: int, arguments: Any, size: int
) -> None:
    model = make().double()
    images = tuple(images_of(7, 12, 12) for _ in range(inputs))
    grad_cam = BatchGradCam(model, layer)
    whole = grad_cam.attribute_with_scores(images, target, arguments)
    pieces = grad_cam.attribute_with_scores(images, target, arguments, internal_batch_size=size)
    assert type(pieces[0]) is type(whole[0])
    for actual, expected in zip(flat(pieces), flat(whole), strict=True):
        assert_close_to(actual, expected, torch.float64)


def test_pieces_are_no_larger_than_asked_for_and_draw_one_after_the_other() -> None:
    model, masks = SmallCnn(dropout=0.5).train(), []
    model.dropout.register_forward_hook(lambda _, __, output: masks.append(output == 0))
    images = torch.randn(1, 3, 12, 12).expand(5, -1, -1, -1)
    before = torch.get_rng_state()
    BatchGradCam(model, model.layer).attribute(images, 1, internal_batch_size=2)
    assert [len(mask) for mask in masks] == [2, 2, 1]
    assert not torch.equal(*masks[:2])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_differentiable_map_in_pieces() -> None:
    model, images = SmallCnn().double(), images_of(7, 12, 12)
    grad_cam = BatchGradCam(model, model.layer)
    whole, pieces = (
        grad_cam.attribute(images, 1, differentiable=True, internal_batch_size=size).square().sum()
        for size in (None, 2)
    )
    assert_same_gradients(pieces, whole, model)


@pytest.mark.parametrize("size", [None, 2])
@pytest.mark.parametrize("samples", [0, 1])
def test_a_batch_of_one_and_an_empty_batch(samples: int, size: int | None) -> None:
    model = SmallCnn()
    cams = BatchGradCam(model, "layer").attribute(
        torch.randn(samples, 3, 12, 12), 1, internal_batch_size=size
    )
    assert cams.shape == (samples, 1, 5, 5)


# ---- errors ----


@pytest.mark.parametrize(
    ("layer", "kind", "text"),
    [
        ("layers", ValueError, "^layer: .* layer$"),
        ("stem.7", ValueError, "^layer: .*stem.0, stem.1, stem.2"),
        ("nonsense", ValueError, "^layer: .*'nonsense'"),
        (None, TypeError, "^layer: .*NoneType"),
        (3, TypeError, "^layer: .*int"),
        ([], ValueError, "^layer: "),
        (["stem.0", "layer", "stem.0"], ValueError, "^layer: .*Conv2d .*position 2"),
    ],
)
def test_layers_that_do_not_fit(layer: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        BatchGradCam(SmallCnn(), layer)
    if kind is TypeError:
        with pytest.raises(TypeError, match=text):
            LayerCapture(layer)


@pytest.mark.parametrize(("method", "kind"), [("score_cam", ValueError), (3, TypeError)])
def test_what_is_no_method(method: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"^method: "):
        BatchGradCam(SmallCnn(), "layer", method=method)


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        ({"grad_kwargs": {"create_graph": False}, "differentiable": True}, ValueError, "create_graph"),
        ({"grad_kwargs": {"is_grads_batched": True}}, ValueError, "^grad_kwargs: .*is_grads_batched"),
        (
            {"grad_kwargs": {"grad_outputs": [torch.ones(())] * 4}, "internal_batch_size": 3},
            ValueError,
            "grad_outputs",
        ),
        ({"internal_batch_size": 0}, ValueError, "^internal_batch_size: "),
        ({"internal_batch_size": -1}, ValueError, "^internal_batch_size: "),
        ({"internal_batch_size": 2.0}, TypeError, "^internal_batch_size: "),
        ({"target": [1, 2, 3], "internal_batch_size": 3}, ValueError, "^target: "),
        ({"target": torch.tensor([1, 2, 3]), "internal_batch_size": 3}, ValueError, "^target: "),
        ({"inputs": [torch.randn(4, 3, 9, 9)]}, TypeError, "^inputs: "),
    ],
)
def test_arguments_that_do_not_fit(arguments: dict[str, Any], kind: type[Exception], text: str) -> None:
    model = SmallCnn()
    given = {"inputs": torch.randn(4, 3, 9, 9), "target": 1} | arguments
    for method in ("attribute", "attribute_with_scores"):
        with pytest.raises(kind, match=text):
            getattr(BatchGradCam(model, model.layer), method)(**given)


def without_the_layer(model: Any, x: Tensor) -> Tensor:
    return model.stem(x).mean((2, 3))


def around_the_layer(model: Any, x: Tensor) -> Tensor:
    model.layer(model.stem(x))
    return model.stem(x).mean((2, 3))


@pytest.mark.parametrize(
    ("forward", "target", "kind", "text"),
    [
        (without_the_layer, 1, RuntimeError, "^Conv2d: "),
        (around_the_layer, 1, RuntimeError, "^scores: "),
        (lambda model, x: model(x).detach(), 1, RuntimeError, "^scores: .*graph"),
        (lambda model, x: model(x).argmax(1), None, RuntimeError, "^scores: .*graph"),
        (lambda model, x: {"logits": model(x)}, 1, TypeError, "^forward_func: .*dict"),
        (lambda model, x: model(x).sum(), None, ValueError, "^target: "),
    ],
)
def test_forwards_that_do_not_fit(forward: Any, target: Any, kind: type[Exception], text: str) -> None:
    model = SmallCnn()
    with pytest.raises(kind, match=text):
        BatchGradCam(lambda x: forward(model, x), model.layer).attribute(torch.randn(2, 3, 9, 9), target)


def test_a_name_needs_a_module_a_map_needs_channels_and_an_input_floating_numbers() -> None:
    model, flat = SmallCnn(), nn.Flatten(0)
    with pytest.raises(TypeError, match="'layer'"):
        BatchGradCam(lambda x: model(x), "layer")
    with pytest.raises(ValueError, match=r"^Flatten: .*\(10,\)"):
        BatchGradCam(lambda x: flat(model(x)).reshape(2, 5), flat).attribute(torch.randn(2, 3, 9, 9), 1)
    words = nn.Sequential(nn.Embedding(10, 6), nn.Flatten(), nn.Linear(24, 5))
    with pytest.raises(TypeError, match=r"^Embedding: "):
        BatchGradCam(words, "0").attribute(torch.zeros(2, 4).long(), 1, attribute_to_layer_input=True)
