"""The adapter gives pytorch-grad-cam's maps, is called as it is, and leaves nothing behind."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from batchcam_captum import interop
from batchcam_captum.interop import EigenCAM, GradCAM, HiResCAM, to_pytorch_grad_cam
from tests.interop.networks import (
    METHODS,
    NETWORKS,
    Network,
    assert_same_maps,
    both,
    classes,
    network,
    pytorch_grad_cam,
)
from tests.models import RepeatedNet, SmallCnn, VectorNet, frozen

BOTH_KINDS = pytest.mark.parametrize("kind", [GradCAM, EigenCAM])
TARGETS = classes(4, 1, 0, 2)


@pytest.fixture
def plain() -> Network:
    return network("plain", samples=4)


@pytest.fixture(scope="module")
def resnet() -> Network:
    return network("resnet").to(torch.float64)


# Values


@pytest.fixture(scope="module", params=NETWORKS)
def given(request: pytest.FixtureRequest) -> Network:
    return network(request.param)


@pytest.mark.parametrize("name", METHODS)
def test_maps(given: Network, name: str) -> None:
    assert_same_maps(*both(name, given.to(torch.float64), classes(4, 1, 0)))


# Where several channels are zero the sign of a principal component is arbitrary, in both libraries.
@pytest.mark.parametrize("name", ["GradCAM", "LayerCAM", "EigenGradCAM", "EigenCAM"])
@pytest.mark.parametrize("kind", ["plain", "resnet", "vit", "volumes"])
def test_eigen_smooth(kind: str, name: str) -> None:
    given = network(kind).to(torch.float64)
    assert_same_maps(*both(name, given, classes(4, 1, 0), eigen_smooth=True))


@pytest.mark.parametrize("name", ["EigenCAM", "EigenGradCAM"])
def test_eigen_cams_project_by_themselves(resnet: Network, name: str) -> None:
    maps, expected = both(name, resnet, classes(4, 1, 0))
    assert_same_maps(maps, expected)
    np.testing.assert_array_equal(both(name, resnet, classes(4, 1, 0), eigen_smooth=True)[0], maps)


def principal(channels: Tensor) -> Tensor:
    """The projection by the eigenvectors of the covariance, up to its sign."""
    rows = channels.double().flatten(2).transpose(1, 2)
    rows = rows - rows.mean(1, keepdim=True)
    _, vectors = torch.linalg.eigh(rows.transpose(1, 2) @ rows)
    return (rows @ vectors[..., -1:]).transpose(1, 2).reshape(len(channels), 1, *channels.shape[2:])


@pytest.mark.parametrize("shape", [(2, 5, 4, 6), (2, 40, 3, 3), (3, 6, 2, 3, 4), (1, 1, 4, 4)])
def test_eigen_cam_is_the_first_principal_component(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    images = torch.randn(shape)
    model = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(images[0].numel(), 3))
    component = principal(images)
    found = EigenCAM(model, ["0"])(images)
    of_signs = [to_pytorch_grad_cam(sign * component, shape[2:]) for sign in (1, -1)]
    for row in range(len(images)):
        assert min(np.abs(found[row] - maps[row]).max() for maps in of_signs) < 1e-4
        assert found[row].max() > 0.9


def test_nan_counts_as_zero_in_a_principal_component() -> None:
    images = torch.randn(1, 4, 3, 3)
    holed = images.clone()
    holed[0, 2, 1, 1] = torch.nan
    model = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(36, 3))
    cam = EigenCAM(model, ["0"])
    np.testing.assert_array_equal(cam(holed), cam(holed.nan_to_num(0)))
    assert holed.isnan().sum() == 1


@pytest.mark.parametrize("name", ["GradCAM", "EigenCAM"])
@pytest.mark.parametrize("kind", ["plain", "volumes"])
def test_aug_smooth(kind: str, name: str) -> None:
    given = network(kind, samples=2).to(torch.float64)
    maps, expected = both(name, given, classes(4, 1), aug_smooth=True)
    assert maps.max() < 0.9999, "a mean of maps with different peaks"
    assert_same_maps(maps, expected)


def test_aug_smooth_with_eigen_smooth_and_the_highest_score(plain: Network) -> None:
    given = plain.to(torch.float64)
    assert_same_maps(*both("GradCAM", given, None, aug_smooth=True, eigen_smooth=True))


def test_transforms_of_ttach(plain: Network) -> None:
    tta = pytest.importorskip("ttach")
    given = plain.to(torch.float64)
    transforms = tta.Compose([tta.VerticalFlip(), tta.Multiply([1, 1.5])])
    peer = pytorch_grad_cam.GradCAM(given.model, given.modules)
    peer.tta_transforms = transforms
    expected = peer(given.images, TARGETS, aug_smooth=True)
    found = GradCAM(given.model, given.modules, tta_transforms=transforms)
    assert_same_maps(found(given.images, TARGETS, aug_smooth=True), expected)


def test_layers_are_averaged_in_any_order_and_by_name(resnet: Network) -> None:
    given = resnet._replace(layers=["layer4", "layer2", "layer3"])
    maps, expected = both("GradCAM", given, classes(4, 1, 0))
    assert_same_maps(maps, expected)
    again = GradCAM(given.model, ["layer2", given.model.layer3, "layer4"])(given.images, classes(4, 1, 0))
    np.testing.assert_allclose(again, maps, atol=1e-6)
    alone = GradCAM(given.model, ["layer2"])(given.images, classes(4, 1, 0))
    assert np.abs(alone - maps).max() > 0.05


@pytest.mark.parametrize("name", ["GradCAM", "EigenCAM"])
def test_a_grid_found_by_itself(name: str) -> None:
    given = network("vit").to(torch.float64)
    by_function, _ = both(name, given, classes(4, 1, 0))
    by_itself = getattr(interop, name)(given.model, given.layers, reshape_transform="auto")
    np.testing.assert_array_equal(by_itself(given.images, classes(4, 1, 0)), by_function)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", METHODS)
def test_the_adapter_is_an_attribution_and_a_preset(name: str, dims: int) -> None:
    model, images = SmallCnn(dims).eval(), torch.randn(3, 3, *[11] * dims)
    layers = [model.stem, model.layer]
    grad_cam = interop.pytorch_grad_cam_method(METHODS[name])
    from batchcam_captum import BatchGradCam

    cams = BatchGradCam(model, layers, method=grad_cam).attribute(images, target=[4, 1, 0])
    expected = to_pytorch_grad_cam(cams, images.shape[2:])
    assert expected.max() > 0.9
    np.testing.assert_array_equal(getattr(interop, name)(model, layers)(images, [4, 1, 0]), expected)


def test_bfloat16_gives_full_maps() -> None:
    """pytorch-grad-cam cannot turn bfloat16 into NumPy arrays."""
    given = network("plain")
    _, expected = both("GradCAM", given, classes(4, 1, 0))
    given = given.to(torch.bfloat16)
    maps = GradCAM(given.model, given.modules)(given.images, classes(4, 1, 0))
    assert maps.dtype == np.float32
    assert 0 < np.abs(maps - expected).max() < 0.1


def test_an_in_place_operation_after_the_layer_does_not_change_the_map() -> None:
    def make(inplace: bool) -> Network:
        torch.manual_seed(3)
        first = [nn.Conv2d(3, 8, 3), nn.ReLU(inplace), nn.Conv2d(8, 8, 3), nn.Tanh()]
        model = nn.Sequential(*first, nn.Flatten(), nn.Linear(8 * 144, 5)).double()
        return Network(model, ["0"], torch.randn(2, 3, 16, 16, dtype=torch.float64), None)

    images = make(False).images
    for name in ("GradCAM", "EigenCAM"):
        _, expected = both(name, make(False)._replace(images=images), classes(4, 1))
        maps, rewritten = both(name, make(True)._replace(images=images), classes(4, 1))
        assert_same_maps(maps, expected)
        assert np.abs(rewritten - expected).max() > 0.05, "the peer explains what the ReLU left"


# Calls


def test_swapping_the_import_is_enough() -> None:
    """The same lines, run once with each import."""
    code = """
from {package} import GradCAM, GradCAMPlusPlus
from pytorch_grad_cam.utils.image import show_cam_on_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

targets = [ClassifierOutputTarget(2)]
with GradCAM(model=model, target_layers=[model.layer]) as cam:
    grayscale_cam = cam(input_tensor=images, targets=targets)[0, :]
    visualization = show_cam_on_image(rgb_img, grayscale_cam, use_rgb=True)
    model_outputs = cam.outputs
cam = GradCAMPlusPlus(model, [model.layer])
cam.batch_size = 32
smooth = cam(images, targets, aug_smooth=True, eigen_smooth=True)
"""
    found = []
    for package in ("pytorch_grad_cam", "batchcam_captum.interop"):
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


def test_one_object_many_calls(plain: Network) -> None:
    cam = GradCAM(plain.model, plain.modules)
    assert cam.outputs is None
    first = cam(plain.images, TARGETS)
    assert torch.equal(cam.outputs, plain.model(plain.images))
    assert not cam.outputs.requires_grad
    assert cam(plain.images[:2].flip(3), None).shape == (2, 16, 14)
    assert cam.outputs.shape == (2, 5)
    with cam as entered:
        assert entered is cam
        np.testing.assert_array_equal(cam(plain.images, TARGETS), first)
    np.testing.assert_array_equal(cam.forward(plain.images, TARGETS), first)
    np.testing.assert_array_equal(copy.deepcopy(cam)(plain.images, TARGETS), first)


def hooks_of(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


@BOTH_KINDS
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(plain: Network, kind: Any, fails: bool) -> None:
    model, images = plain.model, plain.images
    given = images.clone()
    model.train()
    model.stem.eval()
    modes = [module.training for module in model.modules()]
    assert 1 < sum(modes) < len(modes)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    grads = [parameter.grad for parameter in model.parameters()]
    buffers = copy.deepcopy(dict(model.named_buffers()))
    assert buffers
    cam = kind(model, plain.modules)
    if fails:
        model.tail.register_forward_hook(lambda *_: (_ for _ in ()).throw(KeyError("broken")))
    hooks, rng = hooks_of(model), torch.get_rng_state()
    if fails:
        with pytest.raises(KeyError, match="broken"):
            cam(images, TARGETS, aug_smooth=True)
    else:
        cam(images, TARGETS, aug_smooth=True, eigen_smooth=True)
    assert [module.training for module in model.modules()] == modes
    assert all(after.grad is before for after, before in zip(model.parameters(), grads, strict=True))
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    assert hooks_of(model) == hooks
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(images, given)
    assert not images.requires_grad


def test_maps_are_those_of_eval_mode(plain: Network) -> None:
    expected = GradCAM(plain.model, plain.modules)(plain.images, TARGETS)
    with torch.no_grad():
        plain.model.stem[1].running_var.fill_(0.1)
    moved = GradCAM(plain.model, plain.modules)(plain.images, TARGETS)
    assert np.abs(moved - expected).max() > 0.01, "the running statistics matter"
    plain.model.train()
    np.testing.assert_array_equal(GradCAM(plain.model, plain.modules)(plain.images, TARGETS), moved)


def test_no_graph_is_kept() -> None:
    model = SmallCnn()
    seen: list[weakref.ref[Tensor]] = []
    model.tail.register_forward_hook(lambda module, given, output: seen.append(weakref.ref(output)))
    for kind in (GradCAM, EigenCAM):
        cam = kind(model, [model.layer])
        cam(torch.randn(2, 3, 16, 16), classes(4, 1))
        gc.collect()
        assert len(seen) == 1, "one forward"
        assert seen.pop()() is None
        assert cam.outputs.grad_fn is None


def test_exceptions_leave_the_with_block(plain: Network) -> None:
    """pytorch-grad-cam prints an IndexError and goes on."""
    with pytest.raises(IndexError, match="own"), GradCAM(plain.model, plain.modules):
        raise IndexError("the user's own")


def test_nothing_is_printed(plain: Network, capsys: pytest.CaptureFixture[str]) -> None:
    HiResCAM(plain.model, plain.modules)(plain.images, TARGETS, eigen_smooth=True)
    assert capsys.readouterr().out == ""


@BOTH_KINDS
def test_frozen_models_and_modes_without_gradients(plain: Network, kind: Any) -> None:
    expected = kind(plain.model, plain.modules)(plain.images, TARGETS)
    with torch.no_grad():
        np.testing.assert_array_equal(kind(plain.model, plain.modules)(plain.images, TARGETS), expected)
    with torch.inference_mode():
        cam = kind(plain.model, plain.modules)
        np.testing.assert_array_equal(cam(plain.images.clone(), TARGETS), expected)
    cam = kind(frozen(plain.model), plain.modules)
    np.testing.assert_allclose(cam(plain.images, TARGETS), expected, atol=1e-6)


def test_a_lone_sequential_or_module_list_is_the_list_of_its_children() -> None:
    torch.manual_seed(2)
    model = vgg_with_list().double()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    for container in (model.stem, model.blocks):
        expected = pytorch_grad_cam.GradCAM(model, container)(images, classes(4, 1))
        cam = GradCAM(model, container)
        assert cam.target_layers == list(container)
        assert_same_maps(cam(images, classes(4, 1)), expected)
    whole = GradCAM(model, [model.stem])(images)
    assert np.abs(GradCAM(model, model.stem)(images) - whole).max() > 0.1
    np.testing.assert_array_equal(GradCAM(model, "stem")(images), whole)
    np.testing.assert_array_equal(GradCAM(model, model.stem[2])(images), whole)


def vgg_with_list() -> nn.Module:
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

    return Net()


def test_subclasses(plain: Network) -> None:
    """Methods that nothing would call are refused; ``forward`` is called, once per augmented version."""
    for name in ("get_cam_weights", "get_cam_image", "aggregate_multi_layers"):
        with pytest.raises(TypeError, match=rf"Own: .*{name}.*method=function"):
            type("Own", (GradCAM,), {name: lambda *_: None})

    def halved(base: Any) -> Any:
        return type("Halved", (base,), {"forward": lambda self, *given: base.forward(self, *given) / 2})

    given = plain.to(torch.float64)
    expected, maps = (
        halved(kind)(given.model, given.modules)(given.images, TARGETS, aug_smooth=True)
        for kind in (pytorch_grad_cam.GradCAM, GradCAM)
    )
    assert 0.3 < maps.max() <= 0.5
    assert_same_maps(2 * maps, 2 * expected)


def test_device(plain: Network) -> None:
    cam = GradCAM(plain.model, plain.modules)
    assert cam.device == torch.device("cpu")
    plain.model.to("meta")
    assert cam.device == torch.device("meta"), "where the model is now"
    no_parameters = nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert GradCAM(no_parameters, ["0"])(torch.rand(2, 3, 8, 8)).shape == (2, 8, 8)


@BOTH_KINDS
def test_a_layer_that_runs_twice(kind: Any) -> None:
    model = RepeatedNet()
    with pytest.warns(UserWarning, match="last run is explained"):
        assert kind(model, [model.layer])(torch.randn(2, 3, 16, 16), classes(4, 1)).shape == (2, 16, 16)


# Errors


@pytest.mark.parametrize(
    ("make", "error", "argument"),
    [
        (lambda m: GradCAM(m.forward, [m.layer]), TypeError, "model"),
        (lambda m: GradCAM(m, 3), TypeError, "target_layers"),
        (lambda m: GradCAM(m, []), ValueError, "target_layers"),
        (lambda m: GradCAM(m, [3]), TypeError, "target_layers"),
        (lambda m: GradCAM(m, [m.layer, "layer"]), ValueError, "target_layers"),
        (lambda m: GradCAM(m, ["layr"]), ValueError, "target_layers"),
        (lambda m: GradCAM(m, [m.layer], 3), TypeError, "reshape_transform"),
        (lambda m: GradCAM(m, [m.layer], use_cuda=True), TypeError, "use_cuda"),
    ],
)
def test_constructor_errors(make: Any, error: type[Exception], argument: str) -> None:
    with pytest.raises(error, match=argument):
        make(SmallCnn())


@BOTH_KINDS
@pytest.mark.parametrize(
    ("images", "error"),
    [
        (np.zeros((1, 3, 16, 16), np.float32), TypeError),
        (torch.zeros(3, 16, 16), ValueError),
        (torch.zeros(0, 3, 16, 16), ValueError),
    ],
)
def test_images_that_do_not_fit(kind: Any, images: Any, error: type[Exception]) -> None:
    model = SmallCnn()
    with pytest.raises(error, match="input_tensor"):
        kind(model, [model.layer])(images)


@BOTH_KINDS
def test_layers_that_do_not_fit(kind: Any) -> None:
    model = VectorNet()
    with pytest.raises(ValueError, match=r"target_layers.*reshape_transform"):
        kind(model, [model.layer])(torch.rand(2, 3, 4, 4))
    tokens = network("vit")
    with pytest.raises(ValueError, match=r"target_layers.*blocks\.0\.norm1"):
        kind(tokens.model, tokens.layers)(tokens.images)
    with pytest.raises(ValueError, match="reshape_transform"):
        kind(tokens.model, tokens.layers, lambda tokens: tokens.reshape(9, 25, 8))(tokens.images)
    model = SmallCnn()
    with pytest.raises(RuntimeError, match="Conv2d"):
        kind(model, [nn.Conv2d(3, 3, 3)])(torch.rand(2, 3, 16, 16))


def test_a_dictionary_of_maps() -> None:
    """The backbone of a detection model, with pytorch-grad-cam's own reshape."""
    from pytorch_grad_cam.utils.reshape_transforms import fasterrcnn_reshape_transform

    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.coarse, self.fine = nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(3, 5, 3)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"fine": self.fine(x), "pool": self.coarse(x)}

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = Backbone()

        def forward(self, x: Tensor) -> Any:
            return [{"scores": maps.tanh().mean((1, 2))} for maps in self.backbone(x)["fine"]]

    torch.manual_seed(1)
    images = torch.randn(2, 3, 15, 15).double()
    given = Network(Detector().double(), ["backbone"], images, fasterrcnn_reshape_transform)
    targets = [lambda found: found["scores"][0]] * 2
    assert_same_maps(*both("EigenCAM", given, targets))
    with pytest.raises(TypeError, match="Backbone"):
        GradCAM(given.model, given.modules, given.reshape)(images, targets)


@pytest.mark.parametrize("sizes", [(14, 12), ()])
def test_transforms_that_do_not_fit(plain: Network, sizes: tuple[int, ...]) -> None:
    class Smaller:
        def __init__(self, size: int) -> None:
            self.size = size

        def augment_image(self, image: Tensor) -> Tensor:
            return image[..., : self.size]

        def deaugment_mask(self, mask: Tensor) -> Tensor:
            return mask

    cam = GradCAM(plain.model, plain.modules, tta_transforms=list(map(Smaller, sizes)))
    with pytest.raises(ValueError, match="tta_transforms"):
        cam(plain.images, aug_smooth=True)
