"""GuidedBatchGradCam against Captum's GuidedGradCam, and what it leaves as it was."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from captum.attr import GuidedGradCam
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.models import resnet18

from batchcam_captum import BatchGradCam, BinaryTarget, GuidedBatchGradCam
from tests.attribution.captum_parity import as_tuple, assert_close_to, fresh
from tests.models import InPlaceNet, TupleNet, frozen

pytestmark = pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU activations")


def loud(model: nn.Module) -> nn.Module:
    """Weights that neither shrink nor blow up what passes, so that the product of two gradients does not vanish."""
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return model


class ReluNet(nn.Module):
    """ReLU modules before and after the layer; in 1, 2 or 3 dimensions, of one input or of two."""

    def __init__(self, dims: int = 2, num_classes: int = 5) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        self.stem = nn.Sequential(conv(3, 6, 3), nn.ReLU())
        self.layer = conv(6, 8, 3)
        self.tail = nn.Sequential(nn.ReLU(inplace=True), conv(8, 4, 3), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(4, num_classes)
        loud(self)

    def forward(self, x: Tensor, y: Tensor | None = None, factor: float = 1.0) -> Tensor:
        maps = self.tail(self.layer(self.stem(x if y is None else x - y)))
        return self.head(maps.flatten(2).square().mean(2)) * factor


def small_resnet() -> nn.Module:
    model = resnet18(num_classes=5)
    model.layer = model.layer3
    return loud(model)


NETS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "1-D": (lambda: ReluNet(1), (3, 12)),
    "2-D": (ReluNet, (3, 12, 11)),
    "3-D": (lambda: ReluNet(3), (3, 8, 7, 9)),
    "in_place": (lambda: loud(InPlaceNet()), (3, 9, 9)),
    "frozen": (lambda: frozen(ReluNet()), (3, 9, 9)),
    "resnet": (small_resnet, (3, 32, 32)),
}


def assert_like_captums(model: nn.Module, inputs: Any, *arguments: Any, **named: Any) -> None:
    expected = GuidedGradCam(model, model.layer).attribute(fresh_recorded(inputs), *arguments, **named)
    actual = GuidedBatchGradCam(model, model.layer).attribute(fresh(inputs), *arguments, **named)
    assert_close_to(actual, expected, torch.float64)
    assert not any(tensor.requires_grad for tensor in as_tuple(actual))


def fresh_recorded(inputs: Any) -> Any:
    """Captum warns where an input does not require a gradient yet."""
    copies = tuple(tensor.requires_grad_() for tensor in as_tuple(fresh(inputs)))
    return copies if isinstance(inputs, tuple) else copies[0]


@pytest.mark.parametrize("name", NETS)
def test_the_values_are_captums(name: str) -> None:
    build, shape = NETS[name]
    model = build().double().eval()
    for target in [1, [0, 4, 2], torch.tensor([1, 4, 3])] if name == "2-D" else [[0, 4, 2]]:
        assert_like_captums(model, torch.randn(3, *shape).double(), target)


@pytest.mark.parametrize("at_input", [False, True])
@pytest.mark.parametrize("mode", ["nearest", "bilinear", "area"])
def test_every_argument(mode: str, at_input: bool) -> None:
    model = ReluNet().double().eval()
    images = torch.randn(3, 3, 12, 11).double()
    assert_like_captums(model, images, 2, interpolate_mode=mode, attribute_to_layer_input=at_input)


def test_several_inputs_and_further_arguments() -> None:
    model = ReluNet().double().eval()
    images = torch.randn(2, 3, 12, 12).double(), torch.randn(2, 3, 12, 12).double()
    assert_like_captums(model, images, 2)
    assert_like_captums(model, images, 2, additional_forward_args=3.0)
    assert_like_captums(model, images[:1], 2, additional_forward_args=(images[1], 2.0))


def test_an_input_that_the_map_does_not_fit() -> None:
    model = ReluNet().double().eval()
    forward = model.forward
    model.forward = lambda x, scale: forward(x) * scale
    inputs = torch.randn(2, 3, 12, 12).double(), torch.rand(2, 1).double()
    with pytest.warns(UserWarning, match="Couldn't appropriately interpolate"):
        image, scale = GuidedBatchGradCam(model, "layer").attribute(inputs, 2)
    assert image.shape == (2, 3, 12, 12)
    assert scale.numel() == 0


@pytest.mark.parametrize("method", ["grad_cam_plus_plus", "layer_cam"])
def test_other_weightings_names_and_targets(method: str) -> None:
    model = ReluNet(num_classes=1).double().eval()
    images = torch.randn(3, 3, 12, 12).double()
    target = BinaryTarget([1, 1, 1])
    guided = GuidedBatchGradCam(model, "layer", method=method).attribute(
        images, target, interpolate_mode="bilinear"
    )
    cams = BatchGradCam(model, "layer", method=method).attribute(images, 0, relu_attributions=True)
    # The other factor, guided backpropagation, from Captum's own with a map that is known.
    plain = GuidedGradCam(model, model.layer).attribute(
        images.clone().requires_grad_(), 0, interpolate_mode="bilinear"
    )
    plain_cams = BatchGradCam(model, "layer").attribute(images, 0, relu_attributions=True)
    assert guided.abs().max() > 1e-4
    torch.testing.assert_close(
        guided * interpolate(plain_cams, (12, 12), mode="bilinear"),
        plain.detach() * interpolate(cams, (12, 12), mode="bilinear"),
    )


def test_the_output_picker_serves_both_halves() -> None:
    class Net(ReluNet):
        def forward(self, x: Tensor) -> Any:
            return {"aux": super().forward(x) * 2, "logits": super().forward(x)}

    model = Net().double().eval()
    images = torch.randn(3, 3, 12, 12).double()
    with warnings.catch_warnings(action="ignore"):  # the layer runs twice
        picked = GuidedBatchGradCam(model, "layer", output="logits").attribute(images, 1)
    plain = ReluNet().double().eval()
    plain.load_state_dict(model.state_dict())
    expected = GuidedGradCam(plain, plain.layer).attribute(images.clone().requires_grad_(), 1)
    assert_close_to(picked, expected, torch.float64)


@pytest.mark.parametrize("fails", [False, True])
def test_a_call_leaves_everything_as_it_was(fails: bool) -> None:
    model = ReluNet().train()
    model.stem.add_module("norm", nn.BatchNorm2d(6))
    images = torch.randn(3, 3, 12, 12)
    images_before, state = images.clone(), {name: value.clone() for name, value in model.state_dict().items()}
    guided = GuidedBatchGradCam(model, "layer")
    random = torch.get_rng_state()
    if fails:
        with pytest.raises(ValueError, match="target: expected indices"):
            guided.attribute(images, 7)
    else:
        guided.attribute(images, 2)
    assert torch.get_rng_state().equal(random)
    assert images.equal(images_before)
    assert not images.requires_grad
    assert images.grad is None
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(value.equal(state[name]) for name, value in model.state_dict().items())
    assert not any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
        for module in model.modules()
    )
    assert guided.guided_backprop.backward_hooks == []


def test_both_halves_see_the_same_dropout_mask() -> None:
    model = ReluNet().train()
    images = torch.randn(3, 3, 12, 12)
    seen: list[Tensor] = []
    model.tail[3].register_forward_hook(lambda module, args, output: seen.append(output == 0))
    GuidedBatchGradCam(model, "layer").attribute(images, 2)
    *_, first, second = seen
    assert first.equal(second)
    assert 0 < first.sum() < first.numel()


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients_around_it(context: Any) -> None:
    model = ReluNet().double().eval()
    images = torch.randn(3, 3, 12, 12).double()
    expected = GuidedBatchGradCam(model, "layer").attribute(images, 1)
    with context():
        actual = GuidedBatchGradCam(model, "layer").attribute(images * 1, 1)
    assert expected.abs().max() > 1e-4
    assert actual.equal(expected)


def test_what_it_cannot_take() -> None:
    model = ReluNet()
    with pytest.raises(ValueError, match=r"^layer: .* got a list of 2"):
        GuidedBatchGradCam(model, ["layer", "stem"])
    with pytest.raises(TypeError, match=r"^model: .* got function"):
        GuidedBatchGradCam(lambda x: x, model.layer)
    with pytest.raises(ValueError, match=r"^layer: .* got 'lair'"):
        GuidedBatchGradCam(model, "lair")
    several = TupleNet()
    with pytest.raises(AssertionError, match="multiple inputs"):
        GuidedBatchGradCam(several, several.layer).attribute(torch.randn(2, 3, 9, 9), 1)


def test_it_is_captums_too() -> None:
    guided = GuidedBatchGradCam(ReluNet(), "layer")
    assert isinstance(guided, GuidedGradCam)
    assert isinstance(guided.grad_cam, BatchGradCam)
    assert not guided.has_convergence_delta()
