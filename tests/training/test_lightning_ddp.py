"""Lightning's DDP on two processes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import DDPStrategy
from torch.testing import assert_close
from torch.utils.data import DataLoader, DistributedSampler

from batchcam_captum import BatchCamLoss, BatchGradCam, CamRegularizer, PrototypeLoss
from batchcam_captum.training import AutoWeight, LinearWarmup
from tests.training.lightning_models import PROTOTYPES, Classifier, data, loader, network, trainer

pytestmark = pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")


def terms():
    return {
        "prototype": (PrototypeLoss(PROTOTYPES), LinearWarmup(1.0, 3)),
        "batch_cam": (BatchCamLoss(PROTOTYPES), 0.5),
        "auto": (PrototypeLoss(PROTOTYPES.flip(0), distance="l2"), AutoWeight(0.3, every=2)),
    }


class OnTwoRanks(Classifier):
    """Looks at both ranks from inside; an assertion in a spawned process fails the fit."""

    def __init__(self) -> None:
        super().__init__(terms())

    def train_dataloader(self):
        rows = DistributedSampler(data(), shuffle=False)  # Lightning's own shuffles
        return DataLoader(data(), batch_size=4, sampler=rows)

    def on_fit_start(self):
        # After DistributedDataParallel has made the ranks alike: rank 1 came by other prototypes.
        if self.global_rank == 1:
            for loss in self.regularizer.terms.values():
                loss.prototypes.means.zero_()

    def on_train_end(self):
        assert self.trainer.world_size == 2
        wrapper = self.trainer.strategy.model
        assert type(wrapper).__name__ == "DistributedDataParallel"
        sent = {id(buffer) for buffer in wrapper.modules_buffers}
        assert not sent & {id(buffer) for buffer in self.regularizer.buffers()}
        for tensor in (*self.parameters(), *self.regularizer.buffers()):
            first, second = self.all_gather(tensor.detach())
            assert torch.equal(first, second)
        assert self.regularizer.steps == 4
        assert len({objective.item() for objective in self.objectives}) == 4


@pytest.mark.parametrize("option", [None, "static_graph", "find_unused_parameters"])
def test_two_ranks_train_what_one_process_would(option, tmp_path):
    module = OnTwoRanks()
    strategy = DDPStrategy(
        start_method="spawn", process_group_backend="gloo", **({} if option is None else {option: True})
    )
    trainer(tmp_path, devices=2, strategy=strategy, use_distributed_sampler=False).fit(module)

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
    assert module.regularizer.steps == 4  # came back with the weights
