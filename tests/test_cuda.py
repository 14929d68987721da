"""On a GPU: the same values, and no waiting for the device. Skipped where there is none."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from batchcam_captum import (
    BatchCamLoss,
    BatchGradCam,
    CamRegularizer,
    ClassPrototypes,
    ImageLoss,
    PrototypeContrastiveLoss,
    PrototypeLoss,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Flatten(),
        nn.Linear(16 * 144, 10),
    )  # fmt: skip


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return torch.randn(32, 3, 12, 12), torch.arange(32) % 10


def regularizer_for(model, prototypes):
    losses = {
        "prototype": PrototypeLoss(prototypes, distance="ssim"),
        "batch_cam": BatchCamLoss(prototypes, distance="l1"),
        "contrastive": PrototypeContrastiveLoss(prototypes),
        "image": ImageLoss(mean=(0.1, 0.2, 0.3), std=0.5),
    }
    return CamRegularizer(BatchGradCam(model, model[2]), losses)


def prototypes_of(images, labels):
    prototypes = ClassPrototypes(10)
    prototypes.update(images, labels)
    return prototypes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_attributions_equal_the_cpus(batch, dtype):
    images, labels = batch[0].to(dtype), batch[1]
    model = network().to(dtype).eval()
    expected = BatchGradCam(model, model[2]).attribute(images, target=labels)
    model.cuda()
    got = BatchGradCam(model, model[2]).attribute(images.cuda(), target=labels.cuda()).cpu()
    tolerance = 1e-3 if dtype == torch.float32 else 1e-10  # convolutions may use TF32
    assert (got - expected).abs().max() <= tolerance * expected.abs().max()


def test_attribution_leaves_the_random_state_of_the_gpu(batch):
    images, labels = batch[0].cuda(), batch[1].cuda()
    model = network().cuda().train()
    before = torch.cuda.get_rng_state()
    BatchGradCam(model, model[2]).attribute(images, target=labels)
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_regularized_step_equals_the_cpus_in_float64(batch):
    images, labels = batch[0].double(), batch[1]
    gradients = []
    for device in ("cpu", "cuda"):
        model = network().double().eval().to(device)
        x, y = images.to(device), labels.to(device)
        regularizer = regularizer_for(model, prototypes_of(x, y)).to(device)
        with regularizer:
            scores = model(x)
        (F.cross_entropy(scores, y) + regularizer(scores, y, images=x)).backward()
        gradients.append([parameter.grad.cpu() for parameter in model.parameters()])
    for expected, got in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-10)


def test_regularized_step_never_waits_for_the_device(batch):
    images, labels = batch[0].cuda(), batch[1].cuda()
    model = network().cuda()
    regularizer = regularizer_for(model, prototypes_of(images, labels)).cuda()

    def step():
        with regularizer:
            scores = model(images)
        loss = F.cross_entropy(scores, labels) + regularizer(scores, labels, images=images)
        loss.backward()

    step()  # prototypes are resized once
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("value", [10, -1])
def test_labels_out_of_range_raise_at_the_check(batch, value):
    labels = batch[1].clone()
    labels[3] = value
    loss = BatchCamLoss(torch.rand(10, 1, 12, 12)).cuda()
    loss(torch.randn(32, 1, 12, 12, device="cuda"), labels.cuda())
    with pytest.raises(ValueError, match=r"labels: expected class indices from 0 to 9.*since the last check"):
        loss.check()
    loss.check()
    strict = BatchCamLoss(torch.rand(10, 1, 12, 12), validate=True).cuda()
    with pytest.raises(ValueError, match="labels: expected class indices from 0 to 9"):
        strict(torch.randn(32, 1, 12, 12, device="cuda"), labels.cuda())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_float32_cams_and_finite_gradients(batch, dtype):
    images, labels = batch[0].cuda(), batch[1].cuda()
    model = network().cuda()
    regularizer = regularizer_for(model, prototypes_of(images, labels)).cuda()
    with torch.autocast("cuda", dtype=dtype), regularizer:
        scores = model(images)
    assert BatchGradCam(copy.deepcopy(model), "2").attribute(images, target=labels).dtype == torch.float32
    loss = regularizer(scores, labels, images=images)
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(parameter.grad.isfinite().all() for parameter in model[:5].parameters())
    assert model[5].weight.grad.abs().max() > 0
