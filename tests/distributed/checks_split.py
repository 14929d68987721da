"""Trunk and head inside of DistributedDataParallel: an objective that is a module, against a loop over all samples."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from batchcam_captum import BatchCamLoss, CamRegularizer, PrototypeLoss
from batchcam_captum.attribution import Split
from batchcam_captum.training import LinearWarmup
from tests.distributed.group import WORLD, Checks
from tests.reference_training import K, Parts, exact_maps, gradients, objective

CHECKS = Checks()
LOSSES = {"prototype": PrototypeLoss, "batch_cam": BatchCamLoss}


class Objective(nn.Module):
    """The model is a submodule, so its parameters are synchronised; the regularizer runs its two parts."""

    def __init__(self, model, loss):
        super().__init__()
        self.model = model
        parts = Split(nn.Sequential(model.trunk, model.layer), nn.Sequential(model.middle, model.head))
        self.regularizer = CamRegularizer(
            parts, LOSSES[loss](exact_maps()), LinearWarmup(1.0, steps=4, start=0.5)
        )

    def forward(self, images, labels):
        scores, cam_loss = self.regularizer.run(images, labels)
        return F.cross_entropy(scores, labels) + cam_loss


@CHECKS.each(loss=list(LOSSES), options=[{}, {"static_graph": True}, {"find_unused_parameters": True}])
def ddp(rank, loss, options):
    run(rank, loss, options, compiled=False)


@CHECKS.each(loss=list(LOSSES))
def compiled_ddp(rank, loss):
    run(rank, loss, {}, compiled=True)


def run(rank, loss, options, *, compiled):
    model = Parts().double()
    model.trunk.eval()  # its BatchNorm would see the images of one rank
    twin = copy.deepcopy(model)
    images, labels = torch.rand(8, 1, 8, 8, dtype=torch.double), torch.arange(8) % K
    wrapped = DistributedDataParallel(Objective(model, loss), **options)
    step = torch.compile(wrapped, backend="aot_eager") if compiled else wrapped
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (model, twin)]
    for number in range(4):
        for optimizer in optimizers:
            optimizer.zero_grad()
        step(images[rank::WORLD], labels[rank::WORLD]).backward()
        weight = LinearWarmup(1.0, steps=4, start=0.5)(number)
        expected = gradients(
            objective(twin, images, labels, exact_maps().double(), weight, kinds=[loss]), twin
        )
        for name, parameter in twin.named_parameters():
            parameter.grad = expected[name]
            assert_close(model.get_parameter(name).grad, expected[name], rtol=1e-9, atol=1e-12)
        for optimizer in optimizers:
            optimizer.step()
        wrapped.module.regularizer.step()
