"""Without a process group nothing is sent; and what does not go with several devices says so."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.testing import assert_close

from batchcam_captum import BatchCamLoss
from batchcam_captum.distributed import Ranks, group_of, is_distributed
from batchcam_captum.training import AutoWeight
from tests.training.models import Net, batch, captured, regularizer_of


def test_there_is_no_group():
    assert not is_distributed()
    assert group_of(True) is None
    assert group_of(False) is None


def test_the_loss_is_that_of_its_batch():
    cams, labels, prototypes = torch.randn(6, 1, 5, 5), torch.arange(6) % 3, torch.rand(3, 1, 9, 9)
    assert torch.equal(
        BatchCamLoss(prototypes)(cams, labels), BatchCamLoss(prototypes, sync=False)(cams, labels)
    )


@pytest.mark.parametrize("make", [lambda sync: BatchCamLoss(torch.rand(3, 1, 8, 8), sync=sync), Ranks])
@pytest.mark.parametrize("sync", [1, None, "gloo"])
def test_sync_is_a_choice_or_a_group(make, sync):
    with pytest.raises(TypeError, match="sync: expected True, False or a ProcessGroup, got"):
        make(sync)
    with pytest.raises(TypeError, match="sync: expected True, False or a ProcessGroup, got"):
        AutoWeight(sync=sync)


@pytest.mark.parametrize("sync", [True, False])
def test_losses_can_be_copied_and_pickled(sync):
    loss = BatchCamLoss(torch.rand(3, 1, 8, 8), sync=sync, memory=1)
    for copied in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert copied.sync is sync


class OnTwoDevices(Net):
    """Runs the layer as DataParallel does, once on each device; the other one is not there, so it holds no numbers."""

    def forward(self, images):
        here, there = self.trunk(images).chunk(2)
        on_this, on_that = self.layer(here), self.layer(there.to("meta"))
        return self.head(torch.cat([on_this, torch.zeros(on_that.shape)]))


def test_data_parallel_says_why_not():
    model = OnTwoDevices()
    images, labels = batch()
    regularizer = regularizer_of(model)
    scores = captured(regularizer, images)
    with pytest.raises(
        RuntimeError, match=r"one on each of cpu, meta: DataParallel runs a copy.*train with Distributed"
    ):
        regularizer(scores, labels)
    with pytest.raises(RuntimeError, match="expected a captured forward, got none"):  # nothing is left
        regularizer(scores, labels)


def test_data_parallel_on_one_device_trains():
    """It hands the whole batch to the module itself."""
    model = Net(dropout=0.0)
    images, labels = batch()
    losses = []
    for net in (copy.deepcopy(model), torch.nn.DataParallel(copy.deepcopy(model))):
        inner = getattr(net, "module", net)
        torch.manual_seed(1)
        regularizer = regularizer_of(inner)
        with regularizer:
            scores = net(images)
        loss = regularizer(scores, labels)
        loss.backward()
        losses.append((loss.detach(), inner.head[1].weight.grad))
    assert_close(*losses)
