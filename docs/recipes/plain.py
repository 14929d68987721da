"""Plain PyTorch: mixed precision, a schedule, validation, and a checkpoint to resume from.

python docs/recipes/plain.py --epochs 5 --checkpoint run.pt
python docs/recipes/plain.py --epochs 10 --checkpoint run.pt   # continues after epoch 5, bit for bit
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from batchcam_captum import BatchCamLoss, BatchGradCam, CamRegularizer, ClassPrototypes, check
from batchcam_captum.training import LinearWarmup


def loaders(batch_size: int) -> tuple[DataLoader, DataLoader]:
    """Load scikit-learn's digits, 8×8 pixels."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    train, test = TensorDataset(images[:1347], labels[:1347]), TensorDataset(images[1347:], labels[1347:])
    return DataLoader(train, batch_size, shuffle=True), DataLoader(test, 450)


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


def main(argv: Sequence[str] | None = None) -> list[dict[str, float]]:
    """Train and return the measurements after each epoch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument(
        "--weight", type=float, default=1.0, help="of the cam term after the warm-up; 0: none"
    )
    parser.add_argument(
        "--checkpoint", type=Path, help="written after each epoch; read at the start if there"
    )
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    train, test = loaders(args.batch_size)
    model = Network().to(args.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    precision = getattr(torch, args.precision)
    scaler = torch.amp.GradScaler(args.device, enabled=precision == torch.float16)

    prototypes = ClassPrototypes.from_loader(train, num_classes=10, progress=False)
    grad_cam = BatchGradCam(model, "features")
    weight = LinearWarmup(args.weight, steps=len(train))  # over the first epoch
    regularizer = CamRegularizer(grad_cam, BatchCamLoss(prototypes), weight=weight).to(args.device)
    print(check(grad_cam, next(iter(test))[0].to(args.device)))  # problems, before training

    # Everything with a state goes into the checkpoint; the regularizer's has the prototypes and the steps.
    parts = {"model": model, "optimizer": optimizer, "scaler": scaler, "regularizer": regularizer}
    history: list[dict[str, float]] = []
    if args.checkpoint is not None and args.checkpoint.exists():
        saved = torch.load(args.checkpoint, map_location=args.device, weights_only=True)
        history = saved.pop("history")
        for name, state in saved.items():
            parts[name].load_state_dict(state)

    for epoch in range(len(history), args.epochs):
        torch.manual_seed(
            epoch + 1
        )  # so that the order of the batches does not depend on where training began
        model.train()
        for images, labels in train:
            images, labels = images.to(args.device), labels.to(args.device)
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(args.device, precision, enabled=precision != torch.float32):
                with regularizer:
                    scores = model(images)
                loss = F.cross_entropy(scores, labels) + regularizer(scores, labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            regularizer.step()  # beside the optimizer's; the warm-up counts it
        regularizer.check()  # on a GPU wrong labels and scores raise here, so that steps need not synchronize

        model.eval()
        images, labels = (tensor.to(args.device) for tensor in next(iter(test)))
        values = regularizer.evaluate(images, labels)
        with torch.no_grad():
            accuracy = (model(images).argmax(1) == labels).float().mean()
        history.append(
            {"accuracy": accuracy.item(), **{name: value.item() for name, value in values.items()}}
        )
        print(f"epoch {epoch + 1}:", ", ".join(f"{name} {value:.4f}" for name, value in history[-1].items()))
        if args.checkpoint is not None:
            states = {name: part.state_dict() for name, part in parts.items()}
            torch.save({"history": history, **states}, args.checkpoint)
    return history


if __name__ == "__main__":
    main()
