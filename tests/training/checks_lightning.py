"""Lightning's DDP on two ranks trains what one process would."""

from __future__ import annotations

import os
import tempfile

import torch
import torch.nn.functional as F
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch.testing import assert_close
from torch.utils.data import DataLoader, DistributedSampler

from batchcam_captum import BatchCamLoss, BatchGradCam, CamRegularizer, PrototypeLoss
from batchcam_captum.training import AutoWeight, LinearWarmup
from tests.distributed.group import WORLD, Checks
from tests.training.lightning_models import PROTOTYPES, Classifier, data, loader, network, trainer

CHECKS = Checks()


def terms():
    return {
        "prototype": (PrototypeLoss(PROTOTYPES), LinearWarmup(1.0, 3)),
        "batch_cam": (BatchCamLoss(PROTOTYPES), 0.5),
        "auto": (PrototypeLoss(PROTOTYPES.flip(0), distance="l2"), AutoWeight(0.3, every=2)),
    }


class OnTwoRanks(Classifier):
    """Looks at both ranks from inside."""

    def __init__(self) -> None:
        super().__init__(terms())
        self.looked = False

    def train_dataloader(self):
        rows = DistributedSampler(data(), shuffle=False)  # Lightning's own shuffles
        return DataLoader(data(), batch_size=4, sampler=rows)

    def on_fit_start(self):
        # After DistributedDataParallel has made the ranks alike: rank 1 came by other prototypes.
        if self.global_rank == 1:
            for loss in self.regularizer.terms.values():
                loss.prototypes.values.zero_()

    def on_train_end(self):
        assert self.trainer.world_size == WORLD
        wrapper = self.trainer.strategy.model
        assert type(wrapper).__name__ == "DistributedDataParallel"
        sent = {id(buffer) for buffer in wrapper.modules_buffers}
        assert not sent & {id(buffer) for buffer in self.regularizer.buffers()}
        for tensor in (*self.parameters(), *self.regularizer.buffers()):
            first, second = self.all_gather(tensor.detach())
            assert torch.equal(first, second)
        assert self.regularizer.steps == 4
        assert len({objective.item() for objective in self.objectives}) == 4
        self.looked = True


@CHECKS.each(option=[None, "static_graph", "find_unused_parameters"])
def lightning_trains_what_one_process_would(rank, option):
    os.environ |= {"LOCAL_RANK": str(rank)}  # so that Lightning starts no processes
    module = OnTwoRanks()
    strategy = DDPStrategy(process_group_backend="gloo", **({} if option is None else {option: True}))
    with tempfile.TemporaryDirectory() as folder:
        options = {"strategy": strategy, "plugins": [LightningEnvironment()]}
        trainer(folder, devices=WORLD, use_distributed_sampler=False, **options).fit(module)
    assert module.looked

    model = network()
    regularizer = CamRegularizer(BatchGradCam(model, "2"), terms())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for images, labels in loader(batch_size=8):
        with regularizer:
            scores = model(images)
        optimizer.zero_grad()
        task = F.cross_entropy(scores, labels)
        (task + regularizer(scores, labels, task_loss=task)).backward()
        optimizer.step()
        regularizer.step()
    for (name, ours), theirs in zip(module.model.named_parameters(), model.parameters(), strict=True):
        assert_close(ours, theirs, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
