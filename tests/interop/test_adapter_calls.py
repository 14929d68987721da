"""The adapter is used as pytorch-grad-cam is, and leaves nothing behind."""

from __future__ import annotations

import copy
import gc
import re
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytorch_grad_cam = pytest.importorskip("pytorch_grad_cam")
pytest.importorskip("timm")

import batchcam_captum.interop  # noqa: E402
from batchcam_captum.interop import EigenCAM, GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM  # noqa: E402
from tests.interop.adapter_networks import Network, assert_same_maps, both, classes, network  # noqa: E402
from tests.models import RepeatedNet, SmallCnn, VectorNet, frozen  # noqa: E402


@pytest.fixture
def plain() -> Network:
    return network("plain", samples=4)


TARGETS = classes(4, 1, 0, 2)


def hooks_of(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def test_swapping_the_import_is_enough() -> None:
    """The same lines, run once with each import."""
    code = """
from {package} import GradCAM, GradCAMPlusPlus
from pytorch_grad_cam.utils.image import show_cam_on_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

target_layers = [model.layer]
input_tensor = images
targets = [ClassifierOutputTarget(2)]
with GradCAM(model=model, target_layers=target_layers) as cam:
    grayscale_cam = cam(input_tensor=input_tensor, targets=targets)
    grayscale_cam = grayscale_cam[0, :]
    visualization = show_cam_on_image(rgb_img, grayscale_cam, use_rgb=True)
    model_outputs = cam.outputs

cam = GradCAMPlusPlus(model, target_layers)
cam.batch_size = 32
smooth = cam(input_tensor, targets, aug_smooth=True, eigen_smooth=True)
del cam
"""
    found = []
    for package in ["pytorch_grad_cam", "batchcam_captum.interop"]:
        given = network("plain", samples=1).to(torch.float64)
        names: dict[str, Any] = {"model": given.model, "images": given.images}
        names["rgb_img"] = np.full((16, 14, 3), 0.5, np.float32)
        exec(code.format(package=package), names)
        found.append(names)
    theirs, ours = found
    assert_same_maps(ours["grayscale_cam"][None], theirs["grayscale_cam"][None])
    assert_same_maps(ours["smooth"], theirs["smooth"])
    assert torch.equal(ours["model_outputs"], theirs["model_outputs"])
    assert np.abs(ours["visualization"].astype(int) - theirs["visualization"]).max() <= 1
    assert ours["visualization"].shape == (16, 14, 3)


def test_one_object_many_calls(plain: Network) -> None:
    model, _, images, _ = plain
    cam = GradCAM(model, plain.modules)
    first = cam(images, TARGETS)
    other = cam(images[:2].flip(3), None)
    assert other.shape == (2, 16, 14)
    assert cam.outputs.shape == (2, 5)
    with cam as entered:
        assert entered is cam
        np.testing.assert_array_equal(cam(images, TARGETS), first)
    np.testing.assert_array_equal(cam(images, TARGETS), first)
    np.testing.assert_array_equal(cam.forward(images, TARGETS), first)
    np.testing.assert_array_equal(copy.deepcopy(cam)(images, TARGETS), first)
    np.testing.assert_array_equal(LayerCAM(model, "layer")(images), LayerCAM(model, [model.layer])(images))
    larger = torch.nn.functional.pad(images, (2, 2, 2, 2))
    assert cam(larger, TARGETS).shape == (4, 20, 18)


def test_scores_of_the_last_call(plain: Network) -> None:
    for kind in (GradCAM, EigenCAM):
        cam = kind(plain.model, plain.modules)
        assert cam.outputs is None
        cam(plain.images, TARGETS)
        assert torch.equal(cam.outputs, plain.model(plain.images))
        assert not cam.outputs.requires_grad


@pytest.mark.parametrize("kind", [GradCAM, EigenCAM])
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(plain: Network, kind: Any, fails: bool) -> None:
    model, _, images, _ = plain
    given = images.clone()
    model.train()
    model.stem.eval()
    model.stem[1].train()
    modes = [module.training for module in model.modules()]
    assert 1 < sum(modes) < len(modes)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    grads = [parameter.grad for parameter in model.parameters()]
    buffers = copy.deepcopy(dict(model.named_buffers()))
    assert buffers, "a BatchNorm has statistics"
    hooks, rng = hooks_of(model), torch.get_rng_state()

    cam = kind(model, plain.modules)
    if fails:
        model.tail.register_forward_hook(lambda *_: (_ for _ in ()).throw(KeyError("broken")))
        hooks += 1
        with pytest.raises(KeyError, match="broken"):
            cam(images, TARGETS, aug_smooth=True)
    else:
        cam(images, TARGETS, aug_smooth=True, eigen_smooth=True)

    assert [module.training for module in model.modules()] == modes
    assert all(after.grad is before for after, before in zip(model.parameters(), grads, strict=True))
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    assert hooks_of(model) == hooks
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(images, given)
    assert images.grad is None
    assert not images.requires_grad


def test_maps_are_those_of_eval_mode(plain: Network) -> None:
    model, _, images, _ = plain
    with torch.no_grad():
        model.stem[1].running_var.fill_(0.1)
    expected = GradCAM(model, plain.modules)(images, TARGETS)
    model.train()
    np.testing.assert_array_equal(GradCAM(model, plain.modules)(images, TARGETS), expected)
    assert model.training
    assert_same_maps(*both("GradCAM", network("plain", samples=4).to(torch.float64), TARGETS))


def test_the_peer_keeps_hooks_mode_and_grad_where_this_does_not(plain: Network) -> None:
    model, _, images, _ = plain
    model.train()
    cam = pytorch_grad_cam.GradCAM(model, plain.modules)
    cam(images, TARGETS)
    assert hooks_of(model) == 2
    assert not model.training
    assert model.stem[0].weight.grad is not None
    assert cam.outputs.requires_grad


@pytest.mark.parametrize("kind", [GradCAM, EigenCAM])
def test_no_graph_is_kept(kind: Any) -> None:
    model = SmallCnn()
    seen: list[weakref.ref[Tensor]] = []
    model.tail.register_forward_hook(lambda module, given, returned: seen.append(weakref.ref(returned)))
    cam = kind(model, [model.layer])
    cam(torch.randn(2, 3, 16, 16), classes(4, 1))
    gc.collect()
    assert len(seen) == 1, "one forward"
    assert seen[0]() is None
    assert cam.outputs.grad_fn is None


def test_exceptions_come_out_of_the_with_block(plain: Network) -> None:
    """pytorch-grad-cam prints an IndexError and goes on."""
    with pytest.raises(IndexError, match="own"), GradCAM(plain.model, plain.modules):
        raise IndexError("the user's own")
    with pytest.raises(IndexError), GradCAM(plain.model, plain.modules) as cam:
        cam(plain.images, classes(99, 0, 0, 0))


def test_it_swallows_them_itself(plain: Network, capsys: pytest.CaptureFixture[str]) -> None:
    with pytorch_grad_cam.GradCAM(plain.model, plain.modules) as cam:
        cam(plain.images, classes(99, 0, 0, 0))
    assert "An exception occurred in CAM" in capsys.readouterr().out


def test_nothing_is_printed(plain: Network, capsys: pytest.CaptureFixture[str]) -> None:
    HiResCAM(plain.model, plain.modules)(plain.images, TARGETS, eigen_smooth=True)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", [GradCAM, EigenCAM])
def test_frozen_models_and_modes_without_gradients(plain: Network, kind: Any) -> None:
    """pytorch-grad-cam raises in all of them."""
    expected = kind(plain.model, plain.modules)(plain.images, TARGETS)
    with torch.no_grad():
        np.testing.assert_array_equal(kind(plain.model, plain.modules)(plain.images, TARGETS), expected)
    with torch.inference_mode():
        cam = kind(plain.model, plain.modules)
        np.testing.assert_array_equal(cam(plain.images.clone(), TARGETS), expected)
    assert not cam.outputs.is_inference()
    cam = kind(frozen(plain.model), plain.modules)
    np.testing.assert_allclose(cam(plain.images, TARGETS), expected, atol=1e-6)
    assert not any(parameter.requires_grad for parameter in plain.model.parameters())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Conv2d(6, 6, 3, stride=2))
        self.blocks = nn.ModuleList([nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)])
        self.head = nn.Linear(6 * 36, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x).tanh()
        return self.head(x.flatten(1))


@pytest.mark.parametrize("kind", ["GradCAM", "EigenCAM"])
@pytest.mark.parametrize("layers", ["stem", "blocks"])
def test_a_lone_sequential_or_module_list_is_the_list_of_its_children(kind: str, layers: str) -> None:
    torch.manual_seed(2)
    model, images = Net().double(), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    container = getattr(model, layers)
    with getattr(pytorch_grad_cam, kind)(model, container) as peer:
        expected = peer(images, classes(4, 1))
    model.zero_grad()
    cam = getattr(batchcam_captum.interop, kind)(model, container)
    assert cam.target_layers == list(container)
    assert_same_maps(cam(images, classes(4, 1)), expected)


def test_a_listed_sequential_other_modules_and_names_are_single_layers() -> None:
    torch.manual_seed(2)
    model, images = Net(), torch.randn(2, 3, 16, 16)
    whole = GradCAM(model, [model.stem])(images)
    assert np.abs(GradCAM(model, model.stem)(images) - whole).max() > 0.1
    np.testing.assert_array_equal(GradCAM(model, "stem")(images), whole)
    np.testing.assert_array_equal(GradCAM(model, model.stem[2])(images), whole)
    of_list = GradCAM(model, model.blocks)(images)
    np.testing.assert_array_equal(of_list, GradCAM(model, [model.blocks[0], "blocks.1"])(images))
    np.testing.assert_array_equal(of_list, GradCAM(model, iter(model.blocks))(images))


@pytest.mark.parametrize("name", ["get_cam_weights", "get_cam_image", "aggregate_multi_layers"])
def test_subclasses_that_override_what_is_not_called(name: str) -> None:
    with pytest.raises(
        TypeError, match=rf"Own: expected no {name}, .*BatchGradCam\(model, layers, method=fun"
    ):
        type("Own", (GradCAM,), {name: lambda *_: None})
    mixin = type("Mixin", (), {name: lambda *_: None})
    with pytest.raises(TypeError, match=rf"Own: expected no {name}"):
        type("Own", (mixin, EigenCAM), {})


def test_subclasses_that_override_forward(plain: Network) -> None:
    """It is called, once or for each of the augmented versions, as in pytorch-grad-cam."""

    def halved(base: Any) -> Any:
        class Halved(base):  # type: ignore[misc]
            def forward(self, *args: Any, **kwargs: Any) -> Any:
                return super().forward(*args, **kwargs) / 2

        return Halved

    images, layers = plain.to(torch.float64).images, plain.modules
    for smooth in (False, True):
        expected = halved(pytorch_grad_cam.GradCAM)(plain.model, layers)(images, TARGETS, aug_smooth=smooth)
        maps = halved(GradCAM)(plain.model, layers)(images, TARGETS, aug_smooth=smooth)
        assert 0.3 < maps.max() <= 0.5
        assert_same_maps(2 * maps, 2 * expected)


def test_device(plain: Network) -> None:
    cam = GradCAM(plain.model, plain.modules)
    assert cam.device == pytorch_grad_cam.GradCAM(plain.model, plain.modules).device == torch.device("cpu")
    plain.model.to("meta")
    assert cam.device == torch.device("meta"), "where the model is now"
    assert GradCAM(nn.Sequential(nn.ReLU()), ["0"]).device == torch.device("cpu")


class Bytes(nn.Module):
    """Converts its images by itself."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.float() / 255)


@pytest.mark.parametrize("kind", [GradCAM, EigenCAM])
def test_images_of_other_types(plain: Network, kind: Any) -> None:
    given = torch.randint(0, 256, (2, 3, 16, 14), dtype=torch.uint8)
    cam = kind(plain.model, plain.modules)
    for images, text in (
        (given, "type torch.float32, got torch.uint8; pass images.float()"),
        (given.long(), "type torch.float32, got torch.int64; pass images.float()"),
        (given.double(), "type torch.float32, got torch.float64; pass images.to(torch.float32)"),
    ):
        with pytest.raises(TypeError, match=re.escape(text)) as raised:
            cam(images, classes(4, 1))
        assert isinstance(raised.value.__cause__, RuntimeError)
    own = kind(Bytes(plain.model), plain.modules)
    np.testing.assert_array_equal(own(given, classes(4, 1)), cam(given.float() / 255, classes(4, 1)))
    np.testing.assert_array_equal(own(given.double(), classes(4, 1)), own(given, classes(4, 1)))


@pytest.mark.parametrize("kind", [GradCAM, EigenCAM])
def test_a_layer_that_runs_twice(kind: Any) -> None:
    model = RepeatedNet()
    with pytest.warns(UserWarning, match="the layer runs 2 times in one forward; its last run is explained"):
        assert kind(model, [model.layer])(torch.randn(2, 3, 16, 16), classes(4, 1)).shape == (2, 16, 16)


def test_no_parameters() -> None:
    model = nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert GradCAM(model, [model[0]])(torch.rand(2, 3, 8, 8)).shape == (2, 8, 8)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda m: GradCAM(m.forward, [m.layer]), TypeError, "model: expected a torch.nn.Module, got method"),
        (
            lambda m: GradCAM(m, 3),
            TypeError,
            "target_layers: expected a list of modules or of their names, got int",
        ),
        (lambda m: GradCAM(m, []), ValueError, "target_layers: expected at least one layer"),
        (lambda m: GradCAM(m, [3]), TypeError, "target_layers: expected a torch.nn.Module or its name"),
        (lambda m: GradCAM(m, [m.layer, "layer"]), ValueError, "target_layers: expected each layer once"),
        (
            lambda m: GradCAM(m, ["layr"]),
            ValueError,
            "target_layers: expected the name of a layer of SmallCnn, got 'layr'; it has",
        ),
        (lambda m: GradCAM(m, [m.layer], 3), TypeError, "reshape_transform: expected"),
        (lambda m: GradCAM(m, [m.layer], use_cuda=True), TypeError, "use_cuda"),
    ],
)
def test_constructor_errors(make: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)):
        make(SmallCnn())


@pytest.mark.parametrize(
    ("images", "error", "text"),
    [
        (np.zeros((1, 3, 16, 16), np.float32), TypeError, "input_tensor: expected a tensor, got ndarray"),
        (torch.zeros(3, 16, 16), ValueError, "input_tensor: expected images (N, C, H, W) or volumes"),
        (torch.zeros(0, 3, 16, 16), ValueError, "at least one, got (0, 3, 16, 16)"),
    ],
)
@pytest.mark.parametrize("kind", [GradCAM, EigenCAM])
def test_images_that_are_none(kind: Any, images: Any, error: type[Exception], text: str) -> None:
    model = SmallCnn()
    with pytest.raises(error, match=re.escape(text)):
        kind(model, [model.layer])(images)


@pytest.mark.parametrize("kind", [GradCAM, EigenCAM])
def test_layers_that_have_no_places(kind: Any) -> None:
    model = VectorNet()
    with pytest.raises(
        ValueError, match=r"target_layers: expected activations \(N, C, H, W\) from layer, .*reshape_tr"
    ):
        kind(model, [model.layer])(torch.rand(2, 3, 4, 4))
    tokens = network("vit")
    with pytest.raises(
        ValueError, match=r"target_layers: expected activations \(N, C, H, W\) from blocks.0.norm1"
    ):
        kind(tokens.model, tokens.layers)(tokens.images)
    with pytest.raises(
        ValueError,
        match=r"reshape_transform: expected \(3, C, \*spatial\) from the function, got \(9, 25, 8\)",
    ):
        kind(tokens.model, tokens.layers, lambda tokens: tokens.reshape(9, 25, 8))(tokens.images)


@pytest.mark.parametrize("kind", [GradCAM, EigenCAM])
def test_a_layer_that_is_not_reached(kind: Any) -> None:
    model = SmallCnn()
    with pytest.raises(
        RuntimeError, match=r"Conv2d: expected a layer that the forward .* belongs to the model"
    ):
        kind(model, [nn.Conv2d(3, 3, 3)])(torch.rand(2, 3, 16, 16))


def test_transforms_that_do_not_fit(plain: Network) -> None:
    class Smaller:
        def __init__(self, size: int) -> None:
            self.size = size

        def augment_image(self, image: Tensor) -> Tensor:
            return image[..., : self.size]

        def deaugment_mask(self, mask: Tensor) -> Tensor:
            return mask

    cam = GradCAMPlusPlus(plain.model, plain.modules, tta_transforms=[Smaller(14), Smaller(12)])
    with pytest.raises(
        ValueError, match=r"tta_transforms: expected .* of one size, got \[\(4, 16, 12\), \(4, 16, 14\)\]"
    ):
        cam(plain.images, aug_smooth=True)
    with pytest.raises(ValueError, match=r"tta_transforms: expected .*, got no transform"):
        GradCAM(plain.model, plain.modules, tta_transforms=[])(plain.images, aug_smooth=True)
