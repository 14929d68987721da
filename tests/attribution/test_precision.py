"""Half precision, autocast and memory layouts: maps in float32, as close to the full ones as the half type allows."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from batchcam_captum import BatchGradCam, MaskTarget
from batchcam_captum.functional import CAM_METHODS
from tests.models import DenseNetOutput, SmallCnn

TARGET = [0, 3, 2, 4]

every_method = pytest.mark.parametrize("method", list(CAM_METHODS))
both_halves = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
#: How half precision comes about: by autocast, or because the model has it.
both_ways = pytest.mark.parametrize("way", ["autocast", "model"])


class Stage(nn.Module):
    """Convolutions with BatchNorm and ReLU; ``layer`` ends in a ReLU, as explained layers do in practice."""

    def __init__(self, pooled: bool = False, dims: int = 2) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
        self.stem = nn.Sequential(conv(3, 8, 3, padding=1), norm(8), nn.ReLU())
        self.layer = nn.Sequential(conv(8, 16, 3, stride=2), norm(16), nn.ReLU())
        self.tail = nn.Identity() if pooled else nn.Sequential(conv(16, 16, 3), nn.SiLU())
        self.head = nn.Linear(16, 5)
        # Neither activations nor gradients that vanish: what is too small for float16 has a test of its own.
        for weight in (module.weight for module in self.modules() if isinstance(module, conv | nn.Linear)):
            nn.init.kaiming_normal_(weight)

    def scores(self, activations: Tensor) -> Tensor:
        return self.head(self.tail(activations).flatten(2).mean(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(self.layer(self.stem(x)))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to each map's own maximum."""
    assert actual.shape == expected.shape
    peaks = expected.abs().flatten(2).amax(2)
    assert peaks.min() > 1e-5, "a vanishing reference shows nothing"
    return ((actual - expected).abs().flatten(2).amax(2) / peaks).max().item()


def halved(
    model: nn.Module, images: Tensor, dtype: torch.dtype, way: str
) -> tuple[Tensor, AbstractContextManager[Any]]:
    """Bring model and images to the half type, or leave that to autocast."""
    if way == "autocast":
        return images, torch.autocast("cpu", dtype=dtype)
    model.to(dtype)
    return images.to(dtype), nullcontext()


def head_gradient(grad_cam: BatchGradCam, model: nn.Module, images: Tensor) -> Tensor:
    """What a loss on the maps gives the head's weights: second derivatives, through the channel weights."""
    cams = grad_cam.attribute(images, TARGET, differentiable=True)
    (gradient,) = torch.autograd.grad(cams.square().sum(), model.head.weight)
    assert gradient.abs().max() > 0
    return gradient.float() if cams.dtype == torch.float32 else gradient


@both_halves
@both_ways
@every_method
@pytest.mark.parametrize("pooled", [False, True])
def test_half_precision(method: str, way: str, dtype: torch.dtype, pooled: bool) -> None:
    model, images = Stage(pooled).eval(), torch.randn(4, 3, 16, 16)
    grad_cam = BatchGradCam(model, "layer", method=method)
    full, full_classes = grad_cam.attribute(images, TARGET), grad_cam.attribute_classes(images)
    full_gradient = head_gradient(grad_cam, model, images)
    images, context = halved(model, images, dtype, way)
    with context:
        cams, scores = grad_cam.attribute_with_scores(images, TARGET)
        classes = grad_cam.attribute_classes(images)
        gradient = head_gradient(grad_cam, model, images)
        activations = model.layer(model.stem(images))
        own_scores = model.scores(activations)
    allowed = 4 * torch.finfo(dtype).eps  # 2.5 is the worst of many
    assert scores.dtype == dtype
    assert cams.dtype == classes.dtype == torch.float32
    assert relative_error(cams, full) < allowed
    assert relative_error(classes, full_classes) < allowed
    # Two of the weightings clip gradients at zero: the side on which a rounded one ends moves the second derivative.
    assert (gradient - full_gradient).norm() < 0.05 * full_gradient.norm()
    # Given the half-precision activations and gradients, the map is as exact as float32: only they are rounded.
    (gradients,) = torch.autograd.grad(own_scores[torch.arange(4), TARGET].sum(), activations)
    assert activations.dtype == gradients.dtype == dtype
    exact = CAM_METHODS[method](activations.detach().double(), gradients.double())
    assert relative_error(cams.double(), exact) < 1e-5


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_casts_that_autocast_has_cached_without_a_graph_do_no_harm(context: type) -> None:
    model, images = SmallCnn(), torch.randn(4, 3, 12, 12)
    attribution = BatchGradCam(model, model.layer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with context():
            model(images)
            attribution.attribute(images, 1)
        assert head_gradient(attribution, model, images).isfinite().all()


@both_halves
@every_method
def test_nothing_becomes_nan_where_half_precision_vanishes(method: str, dtype: torch.dtype) -> None:
    model = Stage().eval()
    model.layer[1].weight.data[:8] = 0  # channels without any activation
    model.layer[1].bias.data[:8] = 0
    model.head.weight.data *= 1e-4  # gradients below what float16 can tell from zero
    images, _ = halved(model, torch.randn(4, 3, 16, 16), dtype, "model")
    grad_cam = BatchGradCam(model, model.layer, method=method)
    assert grad_cam.attribute(images, TARGET).isfinite().all()
    assert grad_cam.attribute_classes(images).isfinite().all()
    assert grad_cam.attribute(images * 0, TARGET).isfinite().all()


@every_method
@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=str)
def test_double_precision_stays(method: str, autocast: torch.dtype | None) -> None:
    model, images = Stage().double().eval(), torch.randn(4, 3, 16, 16).double()
    grad_cam = BatchGradCam(model, model.layer, method=method)
    with torch.autocast("cpu", dtype=autocast) if autocast else nullcontext():
        cams, classes = grad_cam.attribute(images, TARGET), grad_cam.attribute_classes(images)
    assert cams.dtype == classes.dtype == torch.float64
    activations = model.layer(model.stem(images))
    (gradients,) = torch.autograd.grad(model.scores(activations)[torch.arange(4), TARGET].sum(), activations)
    expected = CAM_METHODS[method](activations.detach(), gradients)
    if autocast is None:
        assert relative_error(cams, expected) < 1e-12
        assert relative_error(classes[torch.arange(4), TARGET].unsqueeze(1), expected) < 1e-12


@both_halves
@both_ways
def test_masks_in_half_precision(way: str, dtype: torch.dtype) -> None:
    model, images = DenseNetOutput().eval(), torch.randn(4, 3, 9, 9)
    target = MaskTarget(TARGET, torch.rand(4, 3, 3) > 0.3)
    expected = BatchGradCam(model, model.layer).attribute(images, target)
    images, context = halved(model, images, dtype, way)
    with context:
        cams = BatchGradCam(model, model.layer).attribute(images, target)
    assert cams.dtype == torch.float32
    assert relative_error(cams, expected) < 8 * torch.finfo(dtype).eps


LAYOUTS = {"channels_last": (2, torch.channels_last), "channels_last_3d": (3, torch.channels_last_3d)}


@every_method
@pytest.mark.parametrize(("dims", "layout"), LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("whole", [False, True], ids=["images", "model"])
def test_channels_last(method: str, dims: int, layout: torch.memory_format, whole: bool) -> None:
    model, images = Stage(pooled=whole, dims=dims).double().eval(), torch.randn(4, 3, *[12] * dims).double()
    grad_cam = BatchGradCam(model, model.layer, method=method)
    expected = grad_cam.attribute(images, TARGET), grad_cam.attribute_classes(images)
    gradient = head_gradient(grad_cam, model, images)
    # Some convolutions return another layout than they are given; here the layer's output has it in any case.
    model.layer.register_forward_hook(lambda module, args, output: output.contiguous(memory_format=layout))
    if whole:
        model.to(memory_format=layout)
    images = images.to(memory_format=layout)
    found = grad_cam.attribute(images, TARGET), grad_cam.attribute_classes(images)
    for actual, wanted in zip(found, expected, strict=True):
        assert relative_error(actual, wanted) < 1e-11
    torch.testing.assert_close(head_gradient(grad_cam, model, images), gradient)
    assert images.is_contiguous(memory_format=layout)


STRIDES = {
    "transposed": lambda images: images.transpose(2, 3).contiguous().transpose(2, 3),
    "strided": lambda images: torch.stack([images, images], -1).flatten(3)[..., ::2],
    "batch_last": lambda images: images.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "expanded": lambda images: images[:1].expand(4, -1, -1, -1),
}


@pytest.mark.parametrize("stride", STRIDES.values(), ids=STRIDES)
def test_images_with_other_strides(stride: Any) -> None:
    model, images = SmallCnn().double(), stride(torch.randn(4, 3, 12, 12).double())
    assert not images.is_contiguous()
    grad_cam = BatchGradCam(model, model.layer)
    expected = grad_cam.attribute(images.clone(memory_format=torch.contiguous_format), TARGET)
    assert relative_error(grad_cam.attribute(images, TARGET), expected) < 1e-12
    assert relative_error(grad_cam.attribute(images, TARGET, internal_batch_size=3), expected) < 1e-12
