"""Training on a GPU: the CPU's gradients, half types, compiled steps, NCCL, and no waiting. Skipped where there is none."""

from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from batchcam_captum import BatchCamLoss, BatchGradCam, CamRegularizer, split_model
from batchcam_captum.training import AutoWeight, LinearWarmup
from tests.losses.family import MAKERS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

K = 4


def network(dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.Softplus(),
        nn.MaxPool2d(2), nn.Flatten(), nn.LazyLinear(16), nn.Tanh(), nn.Linear(16, K),
    )  # fmt: skip
    model(torch.rand(2, 3, 18, 20))
    return model.to(dtype)


def batch(dtype=torch.float32):
    """Two views, the second one mirrored, for the loss that compares them; masks for those that need some."""
    torch.manual_seed(1)
    images = torch.rand(8, 3, 18, 20, dtype=dtype)
    images = torch.cat([images, images.flip(-1)])
    labels = (torch.arange(8) % K).repeat(2)
    return images, labels, torch.rand(16, 1, 18, 20, dtype=dtype)


def gradients_of(device, loss, dtype, **weights):
    model = network(dtype).to(device)
    images, labels, masks = (tensor.to(device) for tensor in batch(dtype))
    regularizer = CamRegularizer(BatchGradCam(model, "4"), loss, **weights).to(device)
    with regularizer:
        scores = model(images)
    task = F.cross_entropy(scores, labels)
    (task + regularizer(scores, labels, images=images, masks=masks, task_loss=task)).backward()
    return [parameter.grad.cpu() for parameter in model.parameters()]


@pytest.mark.filterwarnings("ignore:.*all maps are dead")
@pytest.mark.parametrize("name", MAKERS)
def test_every_loss_has_the_cpus_gradients_in_float64(name):
    torch.manual_seed(2)
    loss = MAKERS[name]()
    expected = gradients_of("cpu", loss, torch.float64)
    got = gradients_of("cuda", loss, torch.float64)
    for cpu, gpu in zip(expected, got, strict=True):
        assert_close(gpu, cpu, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(
    "weight", [1.0, LinearWarmup(1.0, 3), AutoWeight(every=1)], ids=["1", "warm-up", "auto"]
)
def test_no_loss_and_no_weight_waits_for_the_device(name, weight):
    model = network().cuda()
    images, labels, masks = (tensor.cuda() for tensor in batch())
    regularizer = CamRegularizer(BatchGradCam(model, "4"), MAKERS[name](), weight).cuda()
    sample_weights = torch.rand(16, device="cuda")

    def step():
        with regularizer:
            scores = model(images)
        task = F.cross_entropy(scores, labels)
        term = regularizer(
            scores, labels, images=images, masks=masks, task_loss=task, sample_weights=sample_weights
        )
        (task + term).backward()
        regularizer.step()

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("value", [K, -1])
def test_labels_out_of_range_raise_at_the_check(value):
    labels = torch.arange(32) % K
    labels[3] = value
    cams = torch.randn(32, 1, 12, 12, device="cuda")
    loss = BatchCamLoss(torch.rand(K, 1, 12, 12)).cuda()
    loss(cams, labels.cuda())
    with pytest.raises(ValueError, match=r"labels: .*since the last check"):
        loss.check()
    loss.check()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_with_a_scaler(dtype):
    model = network().cuda()
    images, labels, _ = (tensor.cuda() for tensor in batch())
    regularizer = CamRegularizer(BatchGradCam(model, "4"), BatchCamLoss(torch.rand(K, 1, 18, 20))).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for _ in range(3):
        with torch.autocast("cuda", dtype=dtype), regularizer:
            scores = model(images)
        term = regularizer(scores, labels)
        assert term.dtype == torch.float32
        scaler.scale(F.cross_entropy(scores.float(), labels) + term).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_a_compiled_step_equals_the_eager_one(autocast):
    model = network().cuda()
    images, labels, _ = (tensor.cuda() for tensor in batch())
    regularizer = CamRegularizer(split_model(model, "4"), BatchCamLoss(torch.rand(K, 1, 18, 20))).cuda()

    def objective(images, labels):
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            scores, term = regularizer.run(images, labels)
        return F.cross_entropy(scores.float(), labels) + term

    results = []
    for function in (objective, torch.compile(objective, fullgraph=True)):
        model.zero_grad()
        function(images, labels).backward()
        # In one vector: a bias before a BatchNorm has no gradient but rounding.
        results.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    tolerance = 0.05 if autocast else 1e-3  # of the largest entry; convolutions may use TF32
    eager, compiled = results
    assert (eager - compiled).abs().max() <= tolerance * eager.abs().max()


def test_class_means_over_nccl():
    """A group of one: what is sent and received is the same, and nothing waits for the device."""
    if not torch.distributed.is_nccl_available():
        pytest.skip("needs NCCL")
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29577"}
    torch.distributed.init_process_group("nccl", rank=0, world_size=1)
    try:
        model = network().cuda()
        wrapped = nn.parallel.DistributedDataParallel(model, static_graph=True)
        images, labels, _ = (tensor.cuda() for tensor in batch())
        regularizer = CamRegularizer(BatchGradCam(model, "4"), BatchCamLoss(torch.rand(K, 1, 18, 20))).cuda()
        for _ in range(3):
            with regularizer:
                scores = wrapped(images)
            (F.cross_entropy(scores, labels) + regularizer(scores, labels)).backward()
        regularizer.check()
        assert model[9].weight.grad.isfinite().all()
    finally:
        torch.distributed.destroy_process_group()
