"""The attribution engine on a GPU: the CPU's values in every mode that it has. Skipped where there is none."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from captum.attr import LayerGradCam, NoiseTunnel
from torch import Tensor, nn

from batchcam_captum import BatchGradCam, BinaryTarget, GuidedBatchGradCam, MaskTarget, MultiLabelTarget
from batchcam_captum.functional import CAM_METHODS
from tests.models import DenseNetOutput, InPlaceNet, ResidualNet, SmallCnn, frozen

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

DEVICE = "cuda"
TARGET = [0, 3, 2, 4]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}

every_method = pytest.mark.parametrize("method", list(CAM_METHODS))
both_types = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


@pytest.fixture(autouse=True)
def exact_float32() -> Iterator[None]:
    """Without TF32, whose 10 bits would hide a wrong map."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


class Pooled(nn.Module):
    """BatchNorm, ReLU, and a head that begins with global average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.layer = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU())
        self.head = nn.Linear(16, 5)
        for weight in (
            module.weight for module in self.modules() if isinstance(module, nn.Conv2d | nn.Linear)
        ):
            nn.init.kaiming_normal_(weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.stem(x)).mean((2, 3)))


class AttentionNet(nn.Module):
    """A convolution, then fused attention, whose fast backends have no second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 32, 4, stride=4)
        self.qkv = nn.Linear(32, 96)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.layer(x).flatten(2).transpose(1, 2)  # (N, L, 32)
        q, k, v = self.qkv(tokens).reshape(*tokens.shape[:2], 3, 2, 16).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(3 * q, 3 * k, v)
        return self.head(mixed.transpose(1, 2).flatten(2).square().mean(1))


NETS: dict[str, Any] = {
    "cnn": lambda: SmallCnn(norm=True),
    "pooled": Pooled,
    "in_place": InPlaceNet,
    "frozen_in_place": lambda: frozen(InPlaceNet()),
    "identity": lambda: ResidualNet(nn.Identity()),
    "attention": AttentionNet,
}
every_net = pytest.mark.parametrize("build", NETS.values(), ids=NETS.keys())


def images_for(dtype: torch.dtype = torch.float64, samples: int = 4) -> Tensor:
    return torch.randn(samples, 3, 16, 16, dtype=dtype)


def on_gpu(model: nn.Module, images: Tensor) -> tuple[nn.Module, Tensor]:
    return copy.deepcopy(model).to(DEVICE), images.to(DEVICE)


def assert_like(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Relative to the maximum of the whole; on the GPU, of the same type."""
    assert actual.device.type == DEVICE
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    peak = expected.detach().abs().max().item()
    assert peak > 1e-6, f"a vanishing reference ({peak}) shows nothing"
    error = (actual.detach().cpu() - expected.detach()).abs().max().item() / peak
    assert error <= tolerance, f"{error} of the maximum {peak}"


@both_types
@every_method
@every_net
def test_maps(build: Any, method: str, dtype: torch.dtype) -> None:
    model, images = build().to(dtype).eval(), images_for(dtype)
    model_there, images_there = on_gpu(model, images)
    name = "block.layer" if isinstance(model, ResidualNet) else "layer"
    here = BatchGradCam(model, name, method=method)
    there = BatchGradCam(model_there, name, method=method)
    maps, scores = there.attribute_with_scores(images_there, torch.tensor(TARGET, device=DEVICE))
    expected, expected_scores = here.attribute_with_scores(images, TARGET)
    assert_like(maps, expected, TOLERANCE[dtype])
    assert_like(scores, expected_scores, TOLERANCE[dtype])
    assert_like(there.attribute(images_there, TARGET, internal_batch_size=3), expected, TOLERANCE[dtype])
    # Labels on the CPU are welcome as well.
    assert_like(there.attribute(images_there, torch.tensor(TARGET)), expected, TOLERANCE[dtype])


@both_types
@every_method
@pytest.mark.parametrize("classes", [None, [4, 0], torch.tensor([[0, 1], [4, 4], [2, 3], [-1, 0]])], ids=str)
@pytest.mark.parametrize("build", [NETS["cnn"], Pooled], ids=["cnn", "pooled"])
def test_every_class(build: Any, classes: Any, method: str, dtype: torch.dtype) -> None:
    model, images = build().to(dtype).eval(), images_for(dtype)
    expected = BatchGradCam(model, "layer", method=method).attribute_classes(images, classes)
    model, images = on_gpu(model, images)
    there = BatchGradCam(model, "layer", method=method)
    assert_like(there.attribute_classes(images, classes), expected, TOLERANCE[dtype])
    assert_like(
        there.attribute_classes(images, classes, classes_per_chunk=2, internal_batch_size=3),
        expected,
        TOLERANCE[dtype],
    )


@every_method
def test_several_layers(method: str) -> None:
    model, images = SmallCnn(norm=True).double().eval(), images_for()
    layers = ["stem", "layer", "tail.1"]
    expected = BatchGradCam(model, layers, method=method).attribute(images, TARGET)
    model, images = on_gpu(model, images)
    for actual, wanted in zip(
        BatchGradCam(model, layers, method=method).attribute(images, TARGET), expected, strict=True
    ):
        assert_like(actual, wanted, 1e-10)


def gradient_of(grad_cam: BatchGradCam, model: nn.Module, images: Tensor) -> Tensor:
    """What a loss on the maps gives the head's weights."""
    cams = grad_cam.attribute(images, TARGET, differentiable=True)
    (gradient,) = torch.autograd.grad(cams.square().sum(), model.head.weight)
    return gradient


@every_method
@pytest.mark.parametrize("build", [NETS["cnn"], Pooled, AttentionNet], ids=["cnn", "pooled", "attention"])
def test_second_derivatives(build: Any, method: str) -> None:
    model, images = build().double().eval(), images_for()
    expected = gradient_of(BatchGradCam(model, "layer", method=method), model, images)
    model, images = on_gpu(model, images)
    assert_like(gradient_of(BatchGradCam(model, "layer", method=method), model, images), expected, 1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_fused_attention_has_second_derivatives_in_every_type_it_is_fused_for(dtype: torch.dtype) -> None:
    model, images = AttentionNet().eval(), images_for(torch.float32)
    expected = gradient_of(BatchGradCam(model, "layer"), model, images)
    maps = BatchGradCam(model, "layer").attribute(images, TARGET)
    model, images = on_gpu(model, images)
    with torch.autocast(DEVICE, dtype=dtype) if dtype != torch.float32 else nullcontext():
        gradient = gradient_of(BatchGradCam(model, "layer"), model, images)
        assert BatchGradCam(model, "layer").attribute(images, TARGET).dtype == torch.float32
    error = (gradient.cpu() - expected).norm() / expected.norm()
    assert error < (1e-3 if dtype == torch.float32 else 16 * torch.finfo(dtype).eps)
    assert maps.abs().max() > 0
    # The backends are as they were: the forward of others stays fused.
    assert torch.backends.cuda.flash_sdp_enabled()
    assert torch.backends.cuda.mem_efficient_sdp_enabled()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("way", ["autocast", "model"])
@every_method
def test_half_precision(method: str, way: str, dtype: torch.dtype) -> None:
    model, images = Pooled().eval(), images_for(torch.float32)
    expected = BatchGradCam(model, "layer", method=method).attribute(images, TARGET)
    model, images = on_gpu(model, images)
    if way == "model":
        model, images = model.to(dtype), images.to(dtype)
    grad_cam = BatchGradCam(model, "layer", method=method)
    with torch.autocast(DEVICE, dtype=dtype) if way == "autocast" else nullcontext():
        maps = grad_cam.attribute(images, TARGET)
        classes = grad_cam.attribute_classes(images)
        gradient = gradient_of(grad_cam, model, images)
    allowed = 8 * torch.finfo(dtype).eps
    assert_like(maps, expected, allowed)
    assert_like(classes[torch.arange(4), TARGET].unsqueeze(1), expected, allowed)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


@every_method
def test_channels_last(method: str) -> None:
    model, images = Pooled().double().eval(), images_for()
    grad_cam = BatchGradCam(model, "layer", method=method)
    expected, classes = grad_cam.attribute(images, TARGET), grad_cam.attribute_classes(images)
    model, images = on_gpu(model, images)
    model.to(memory_format=torch.channels_last)
    images = images.to(memory_format=torch.channels_last)
    grad_cam = BatchGradCam(model, "layer", method=method)
    assert_like(grad_cam.attribute(images, TARGET), expected, 1e-10)
    assert_like(grad_cam.attribute_classes(images), classes, 1e-10)


@pytest.mark.parametrize("devices", [[0], None, [0, 1]], ids=["one", "all", "two"])
@pytest.mark.parametrize("differentiable", [False, True])
@every_method
def test_data_parallel(method: str, differentiable: bool, devices: list[int] | None) -> None:
    if devices and len(devices) > torch.cuda.device_count():
        pytest.skip("needs two GPUs")
    model, images = SmallCnn(norm=True).double().eval(), images_for(samples=5)
    target = [*TARGET, 1]
    expected = BatchGradCam(model, "layer", method=method).attribute(images, target)
    captums = LayerGradCam(model, model.layer).attribute(images.clone(), target)
    model, images = on_gpu(model, images)
    grad_cam = BatchGradCam(nn.DataParallel(model, device_ids=devices), model.layer, method=method)
    assert_like(grad_cam.attribute(images, target, differentiable=differentiable), expected, 1e-10)
    if method == "grad_cam":
        assert_like(grad_cam.attribute(images, target), captums.detach(), 1e-10)
    # A function that applies it, as Captum's device_ids is for.
    parallel = nn.DataParallel(model, device_ids=devices)
    ids = devices or list(range(torch.cuda.device_count()))
    inside = BatchGradCam(lambda x: parallel(x), model.layer, ids, method=method)
    assert_like(inside.attribute(images, target), expected, 1e-10)


@pytest.mark.parametrize("where", ["cpu", DEVICE])
def test_targets_beyond_classes(where: str) -> None:
    model, images = DenseNetOutput().double(), images_for()
    mask, index = torch.rand(4, 3, 3) > 0.4, torch.tensor(TARGET)
    labels = torch.rand(4, 5) > 0.5
    expected = BatchGradCam(model, "layer").attribute(images, MaskTarget(index, mask))
    there, images_there = on_gpu(model, images)
    target = MaskTarget(index.to(where), mask.to(where))
    assert_like(BatchGradCam(there, "layer").attribute(images_there, target), expected, 1e-10)
    model = SmallCnn().double()
    expected = BatchGradCam(model, "layer").attribute(images, MultiLabelTarget(labels))
    there, _ = on_gpu(model, images)
    actual = BatchGradCam(there, "layer").attribute(
        images_there, MultiLabelTarget(labels.to(where)), internal_batch_size=3
    )
    assert_like(actual, expected, 1e-10)
    model = SmallCnn(num_classes=1).double()
    expected = BatchGradCam(model, "layer").attribute(images, BinaryTarget([0, 1, 1, 0]))
    there, _ = on_gpu(model, images)
    binary = BinaryTarget(torch.tensor([0, 1, 1, 0], device=where))
    assert_like(BatchGradCam(there, "layer").attribute(images_there, binary), expected, 1e-10)
    with pytest.raises(ValueError, match=r"^target: expected indices from -5 to 4, got 5"):
        BatchGradCam(SmallCnn().to(DEVICE), "layer").attribute(
            images_there.float(), torch.tensor([0, 5, 1, 2], device=where)
        )


@pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU activations")
def test_captums_neighbourhood() -> None:
    model, images = SmallCnn().double().eval(), images_for()
    expected = GuidedBatchGradCam(model, "layer").attribute(images, TARGET)
    there, images_there = on_gpu(model, images)
    assert_like(GuidedBatchGradCam(there, "layer").attribute(images_there, TARGET), expected, 1e-10)
    smoothed = []
    for attribution in (BatchGradCam(there, "layer"), LayerGradCam(there, there.layer)):
        torch.manual_seed(1)
        smoothed.append(
            NoiseTunnel(attribution).attribute(images_there, target=TARGET, nt_samples=3).detach()
        )
    assert_like(smoothed[0], smoothed[1].cpu(), 1e-10)


def test_four_threads_at_once() -> None:
    model, _ = on_gpu(SmallCnn(norm=True).double().eval(), torch.zeros(1))
    batches = [images_for(samples=size).to(DEVICE) for size in (1, 2, 3, 4)]
    layers = [model.layer, model.stem, model.tail[1], model.layer]

    def call(position: int) -> Tensor:
        return BatchGradCam(model, layers[position]).attribute(batches[position], position)

    expected = [call(position) for position in range(4)]
    for _ in range(20):
        barrier = threading.Barrier(4)

        def start(position: int, barrier: threading.Barrier = barrier) -> Tensor:
            barrier.wait()
            return call(position)

        with ThreadPoolExecutor(4) as pool:
            for actual, wanted in zip(pool.map(start, range(4)), expected, strict=True):
                assert_like(actual, wanted.cpu(), 1e-10)


@every_method
def test_training_mode_leaves_the_state_of_the_gpu(method: str) -> None:
    model = SmallCnn(dropout=0.5).train()
    model.stem.add_module("last", nn.BatchNorm2d(6))
    model, images = on_gpu(model, images_for(torch.float32))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state(), torch.cuda.get_rng_state()
    grad_cam = BatchGradCam(model, "layer", method=method)
    first = grad_cam.attribute(images, TARGET)
    grad_cam.attribute_classes(images)
    assert torch.get_rng_state().equal(random[0])
    assert torch.cuda.get_rng_state().equal(random[1])
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert_like(grad_cam.attribute(images, TARGET), first.cpu(), 1e-5)  # the same dropout mask
