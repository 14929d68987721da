"""A Batch-CAM loss under DistributedDataParallel, over the batch of all ranks.

torchrun --nproc-per-node 2 docs/recipes/ddp.py

On several machines the same script runs with ``torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST``.
"""

import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from batchcam_captum import BatchCamLoss, BatchGradCam, CamRegularizer, ClassPrototypes

CLASSES, EPOCHS, BATCH = 4, 3, 32  # images of one rank


def bars(n: int) -> TensorDataset:
    """Return noise with a bright bar whose row is the class."""
    labels = torch.arange(n) % CLASSES
    images = 0.3 * torch.rand(n, 1, 16, 16)
    for row in range(4):
        images[torch.arange(n), 0, 4 * labels + row, 2:14] += 0.7
    return TensorDataset(images, labels)


def small_network() -> nn.Sequential:
    """Return a model of trunk, explained layer and head."""
    trunk = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1)
    )
    return nn.Sequential(trunk, nn.ReLU(), nn.Sequential(nn.Flatten(), nn.Linear(32 * 8 * 8, CLASSES)))


def main() -> None:
    """Train on one rank."""
    cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if cuda else "gloo")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    torch.manual_seed(0)

    data = bars(512)
    sampler = DistributedSampler(data)
    loader = DataLoader(data, batch_size=BATCH, sampler=sampler)
    # Each rank reads its part; the sums are combined once.
    prototypes = ClassPrototypes.from_loader(loader, CLASSES, device=device, progress=False)

    model = small_network().to(device)
    wrapped = DistributedDataParallel(model, device_ids=[device] if cuda else None)
    # Created with the model itself, called with what the wrapper returns.
    regularizer = CamRegularizer(BatchGradCam(model, model[1]), BatchCamLoss(prototypes), weight=0.5).to(
        device
    )
    optimizer = torch.optim.Adam(wrapped.parameters(), lr=1e-3)

    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            with regularizer:
                scores = wrapped(images)
            loss = F.cross_entropy(scores, labels) + regularizer(scores, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            regularizer.step()
        if dist.get_rank() == 0:  # a single rank may read values and evaluate
            print(
                f"epoch {epoch}", {name: round(value, 4) for name, value in regularizer.read_values().items()}
            )

    if dist.get_rank() == 0:
        images, labels = (tensor.to(device) for tensor in bars(128).tensors)
        with torch.no_grad():
            accuracy = (model.eval()(images).argmax(1) == labels).float().mean().item()
        values = {
            name: round(value.item(), 4) for name, value in regularizer.evaluate(images, labels).items()
        }
        print(f"test accuracy {accuracy:.3f}", values)
        # To resume: the regularizer's state has prototypes, schedules and memories.
        # torch.save({"model": model.state_dict(), "regularizer": regularizer.state_dict()}, "checkpoint.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
