"""Hugging Face Accelerate: gradient accumulation, mixed precision, several processes, checkpoints.

    python docs/recipes/accelerate_training.py
    torchrun --nproc_per_node 2 docs/recipes/accelerate_training.py --cpu

Two things to remember: the regularizer is made with the model inside of what prepare() returns, and steps where gradients are
synchronised. The class means of BatchCamLoss are those of the batches of all processes.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from batchcam_captum import BatchCamLoss, BatchGradCam, CamRegularizer, ClassPrototypes
from batchcam_captum.training import LinearWarmup


def loaders(batch_size: int) -> tuple[DataLoader, DataLoader]:
    """Load scikit-learn's digits, 8×8 pixels."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    train, test = TensorDataset(images[:1347], labels[:1347]), TensorDataset(images[1347:], labels[1347:])
    return DataLoader(train, batch_size, shuffle=True, drop_last=True), DataLoader(test, 75)


class Network(nn.Module):
    """Two convolutions, whose output is explained, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()
        )
        self.head = nn.Sequential(
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 16, 64), nn.ReLU(), nn.Linear(64, 10)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the scores before any softmax: (N, 1, 8, 8) -> (N, 10)."""
        return self.head(self.features(images))


class Progress:
    """The number of finished epochs, for the checkpoint."""

    epochs = 0

    def state_dict(self) -> dict[str, int]:
        """Return what is saved."""
        return {"epochs": self.epochs}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore it."""
        self.epochs = state["epochs"]


def main(argv: Sequence[str] | None = None) -> list[dict[str, float]]:
    """Train and return the measurements after each epoch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--cpu", action="store_true", help="also where there is a GPU")
    parser.add_argument("--precision", choices=["no", "bf16", "fp16"], default="bf16")
    parser.add_argument("--batch-size", type=int, default=32, help="of one process and micro-batch")
    parser.add_argument("--accumulate", type=int, default=2, help="micro-batches a step")
    parser.add_argument("--weight", type=float, default=1.0)
    parser.add_argument(
        "--checkpoint", type=Path, help="a folder; written after each epoch, read at the start if there"
    )
    args = parser.parse_args(argv)

    accelerator = Accelerator(
        cpu=args.cpu,
        mixed_precision=args.precision,
        gradient_accumulation_steps=args.accumulate,
        # The order of the images then depends on seed and epoch alone, not on the number of processes.
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
    )
    set_seed(0)
    train, test = loaders(args.batch_size)
    # Each process sees all images here; sync=True (the default) is for loaders over a part each.
    everything = DataLoader(train.dataset, 256)
    prototypes = ClassPrototypes.from_loader(everything, num_classes=10, progress=False, sync=False)
    network = Network()
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    # What prepare() returns steps with the optimizer, not in each micro-batch, and then once per process.
    processes = accelerator.num_processes
    steps = args.epochs * math.ceil(len(train) // processes / args.accumulate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps * processes)
    model, optimizer, train, test, scheduler = accelerator.prepare(network, optimizer, train, test, scheduler)

    inner = accelerator.unwrap_model(model)  # not DistributedDataParallel
    warmup = LinearWarmup(args.weight, steps=math.ceil(len(train) / args.accumulate))
    regularizer = CamRegularizer(BatchGradCam(inner, "features"), BatchCamLoss(prototypes), weight=warmup)
    regularizer.to(accelerator.device)
    progress = Progress()
    accelerator.register_for_checkpointing(regularizer, progress)
    if args.checkpoint is not None and args.checkpoint.exists():
        accelerator.load_state(str(args.checkpoint))

    history: list[dict[str, float]] = []
    for epoch in range(progress.epochs, args.epochs):
        set_seed(epoch + 1)
        train.set_epoch(epoch)
        model.train()
        for images, labels in train:
            with accelerator.accumulate(model):
                with regularizer:
                    scores = model(images)
                loss = F.cross_entropy(scores, labels) + regularizer(scores, labels)
                accelerator.backward(loss)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                if accelerator.sync_gradients:  # the optimizer has stepped
                    regularizer.step()
        regularizer.check()

        model.eval()
        right, terms = [], []
        for images, labels in test:
            terms.append(regularizer.evaluate(images, labels))
            with torch.no_grad():
                predicted, labels = accelerator.gather_for_metrics((model(images).argmax(1), labels))
            right.append(predicted == labels)
        row = {
            "accuracy": torch.cat(right).float().mean().item(),
            "learning_rate": scheduler.get_last_lr()[0],
        }
        for name in terms[0]:  # mean over batches and processes
            row[name] = accelerator.reduce(torch.stack([each[name] for each in terms]).mean(), "mean").item()
        history.append(row)
        accelerator.print(
            f"epoch {epoch + 1}:", ", ".join(f"{name} {value:.4f}" for name, value in row.items())
        )
        progress.epochs = epoch + 1
        if args.checkpoint is not None:
            accelerator.save_state(str(args.checkpoint))
    # Delete DistributedDataParallel while its process group exists; at the interpreter's exit it may abort the process.
    model, optimizer, train, test, scheduler = accelerator.free_memory(
        model, optimizer, train, test, scheduler
    )
    accelerator.end_training()
    return history


if __name__ == "__main__":
    main()
