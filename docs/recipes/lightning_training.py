"""Lightning: the cam losses are one line of training_step; a callback logs them and draws maps to TensorBoard.

python docs/recipes/lightning_training.py --epochs 5
python docs/recipes/lightning_training.py --epochs 10 --resume
tensorboard --logdir lightning_logs
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from batchcam_captum import BatchCamLoss, BatchGradCam, CamRegularizer, ClassPrototypes
from batchcam_captum.training import LinearWarmup
from batchcam_captum.training.lightning import CamCallback, CamRegularizerMixin


def loaders(batch_size: int) -> tuple[DataLoader, DataLoader]:
    """Load scikit-learn's digits, 8×8 pixels."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    train, test = TensorDataset(images[:1347], labels[:1347]), TensorDataset(images[1347:], labels[1347:])
    return DataLoader(train, batch_size, shuffle=True), DataLoader(test, 450)


class Classifier(CamRegularizerMixin, LightningModule):
    """A small network with a Batch-CAM loss."""

    def __init__(self, prototypes: ClassPrototypes, weight: float, warmup: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()
        )
        self.head = nn.Sequential(
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 16, 64), nn.ReLU(), nn.Linear(64, 10)
        )
        schedule = LinearWarmup(weight, steps=warmup)  # in steps of the optimizer
        self.regularizer = CamRegularizer(
            BatchGradCam(self, "features"), BatchCamLoss(prototypes), weight=schedule
        )
        self.history: list[dict[str, float]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the scores before any softmax: (N, 1, 8, 8) -> (N, 10)."""
        return self.head(self.features(images))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Return cross-entropy plus the cam loss, from one forward."""
        images, labels = batch
        return self.regularized(F.cross_entropy, images, labels)

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        """Log accuracy and the cam losses."""
        images, labels = batch
        values = {f"val/{name}": value for name, value in self.regularizer.evaluate(images, labels).items()}
        values["val/accuracy"] = (self(images).argmax(1) == labels).float().mean()
        self.log_dict(values, batch_size=len(labels), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """Print them."""
        metrics = self.trainer.callback_metrics
        row = {name[4:]: value.item() for name, value in metrics.items() if name.startswith("val/")}
        if not self.trainer.sanity_checking:
            self.history.append(row)
            self.print(", ".join(f"{name} {value:.4f}" for name, value in row.items()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def main(argv: Sequence[str] | None = None) -> list[dict[str, float]]:
    """Train and return the measurements after each epoch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--device", default="auto", help="Lightning's accelerator: auto, cpu, gpu")
    parser.add_argument("--devices", type=int, default=1, help="how many")
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--weight", type=float, default=1.0)
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--resume", action="store_true", help="from the last checkpoint in the folder")
    args = parser.parse_args(argv)

    seed_everything(0, verbose=False)
    train, test = loaders(args.batch_size)
    prototypes = ClassPrototypes.from_loader(train, num_classes=10, progress=False)
    module = Classifier(prototypes, args.weight, warmup=-(-len(train) // args.accumulate))
    trainer = Trainer(
        accelerator=args.device,
        devices=args.devices,
        precision=args.precision,
        max_epochs=args.epochs,
        accumulate_grad_batches=args.accumulate,
        logger=TensorBoardLogger(args.folder, version=0 if args.resume else None),
        callbacks=[
            CamCallback(every_n_steps=10, pictures_every_n_steps=40, num_pictures=6),
            ModelCheckpoint(save_last=True),
        ],
        enable_progress_bar=False,
        log_every_n_steps=10,
    )
    trainer.fit(module, train, test, ckpt_path="last" if args.resume else None)
    return module.history


if __name__ == "__main__":
    main()
