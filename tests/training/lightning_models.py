"""A LightningModule with a regulariser, and its data; in a module of their own, so that spawned processes find them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from batchcam_captum import BatchGradCam, CamRegularizer, PrototypeLoss
from batchcam_captum.training import AutoWeight, Cosine, LinearWarmup
from batchcam_captum.training.lightning import CamRegularizerMixin

K = 3
PROTOTYPES = torch.linspace(0, 1, K * 64).reshape(K, 1, 8, 8)


def network(dropout=0.0, norm=nn.Identity):
    """Layer "2" is explained; the head is curved, so that its weights get a second-order gradient."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), norm(4) if norm is nn.BatchNorm2d else norm(), nn.Tanh(), nn.Dropout(dropout),
        nn.Conv2d(4, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(4 * 16, K),
    )  # fmt: skip


def losses():
    return {
        "ramp": (PrototypeLoss(PROTOTYPES), LinearWarmup(Cosine(1.0, steps=50), steps=4)),
        "auto": (PrototypeLoss(PROTOTYPES.flip(0), distance="l2"), AutoWeight(0.3, every=3)),
    }


class Classifier(CamRegularizerMixin, LightningModule):
    """One line in training_step."""

    def __init__(self, terms=None, *, own=False, **options) -> None:
        super().__init__()
        self.model = network(**options)
        # Both ways of saying which model: the network, or this module.
        grad_cam = BatchGradCam(self, "model.2") if own else BatchGradCam(self.model, "2")
        self.regularizer = CamRegularizer(grad_cam, losses() if terms is None else terms)
        self.weights = []
        self.objectives = []

    def forward(self, images):
        return self.model(images)

    def training_step(self, batch, batch_idx):
        loss = self.regularized(F.cross_entropy, *batch)
        self.weights.append(self.regularizer.current_weights)
        self.objectives.append(loss.detach())
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def data(n=32):
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(torch.rand(n, 1, 8, 8, generator=generator), torch.arange(n) % K)


def loader(batch_size=4, n=32):
    return DataLoader(data(n), batch_size=batch_size, shuffle=False)


def trainer(folder, **options):
    settings = {
        "accelerator": "cpu", "devices": 1, "max_epochs": 1, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder,
    }  # fmt: skip
    return Trainer(**{**settings, **options})


def plain_loop(*, batches, accumulate=1, autocast=None, epochs=1, **options):
    """The slow twin: the same steps written out, no Lightning."""
    model = network(**options)
    regularizer = CamRegularizer(BatchGradCam(model, "2"), losses())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(epochs):
        optimizer.zero_grad()
        for number, (images, labels) in enumerate(batches):
            with torch.autocast("cpu", autocast, enabled=autocast is not None):
                with regularizer:
                    scores = model(images)
                task = F.cross_entropy(scores, labels)
                loss = task + regularizer(scores, labels, images=images, task_loss=task)
            (loss / accumulate).backward()
            if (number + 1) % accumulate == 0:
                optimizer.step()
                regularizer.step()
                optimizer.zero_grad()
    return model, regularizer
