"""A timm model without pretrained weights, timm's optimizer, scheduler, mixup and EMA.

    python docs/recipes/timm_training.py --model resnet10t --epochs 10

Mixup makes soft labels (N, K), which go to the regularizer unchanged: the cam explains the scores weighted by them, and counts
in the mean of each class with its share.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch.utils.data import DataLoader, TensorDataset

from batchcam_captum import BatchCamLoss, BatchGradCam, CamRegularizer, ClassPrototypes
from batchcam_captum.evaluation import evaluate_cams
from batchcam_captum.training import Cosine, LinearWarmup


def loaders(batch_size: int, size: int) -> tuple[DataLoader, DataLoader]:
    """Load scikit-learn's digits, enlarged."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    images = F.interpolate(images, size=(size, size), mode="bilinear")
    labels = torch.tensor(digits.target)
    train, test = TensorDataset(images[:1347], labels[:1347]), TensorDataset(images[1347:], labels[1347:])
    return DataLoader(train, batch_size, shuffle=True, drop_last=True), DataLoader(test, 128)


def main(argv: Sequence[str] | None = None) -> list[dict[str, float]]:
    """Train and return the measurements after each epoch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="test_resnet", help="a ResNet of timm's")
    parser.add_argument("--size", type=int, default=32, help="side of the images")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-size", type=int, default=64, help="an even number, for mixup")
    parser.add_argument("--weight", type=float, default=1.0)
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    train, test = loaders(args.batch_size, args.size)
    # output_stride: the last stage would end at a thirty-second of the side, and a map of one pixel says nothing.
    model = timm.create_model(args.model, pretrained=False, num_classes=10, in_chans=1, output_stride=8)
    model.to(args.device)
    mixup = Mixup(mixup_alpha=0.2, label_smoothing=0.1, num_classes=10)
    task_loss = SoftTargetCrossEntropy()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=2e-3, weight_decay=0.05)
    scheduler, _ = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=args.epochs, updates_per_epoch=len(train), step_on_epochs=False
    )
    ema = ModelEmaV3(model, decay=0.99, use_warmup=True)

    prototypes = ClassPrototypes.from_loader(train, num_classes=10, progress=False)  # of unmixed images
    total = args.epochs * len(train)
    weight = LinearWarmup(Cosine(args.weight, steps=total, final=args.weight / 2), steps=len(train))
    regularizer = CamRegularizer(BatchGradCam(model, "layer4"), BatchCamLoss(prototypes), weight=weight)
    regularizer.to(args.device)

    history: list[dict[str, float]] = []
    for epoch in range(args.epochs):
        model.train()
        for images, labels in train:
            images, soft_labels = mixup(images.to(args.device), labels.to(args.device))
            with regularizer:
                scores = model(images)
            loss = task_loss(scores, soft_labels) + regularizer(scores, soft_labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            regularizer.step()
            ema.update(model, step=regularizer.steps)
            scheduler.step_update(regularizer.steps)
        terms = regularizer.read_values()  # of the last batch; raises if a value check failed

        # The average is a copy of the model, explained by the same layer name.
        batches = ((images.to(args.device), labels.to(args.device)) for images, labels in test)
        report = evaluate_cams(BatchGradCam(ema.module.eval(), "layer4"), batches, prototypes)
        history.append(
            {"accuracy": report["accuracy"], "l1": report["l1"], "cosine": report["cosine"], **terms}
        )
        print(f"epoch {epoch + 1}:", ", ".join(f"{name} {value:.4f}" for name, value in history[-1].items()))
    return history


if __name__ == "__main__":
    main()
