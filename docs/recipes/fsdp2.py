"""A Batch-CAM loss for a model sharded by ``fully_shard`` (FSDP2).

torchrun --nproc-per-node 2 docs/recipes/fsdp2.py

Only the lines about sharding differ from ``ddp.py``. Best call ``backward()`` right after the regularizer: another forward in
between frees the head's parameters, and the ``backward()`` has to gather them once more.
"""

import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from ddp import BATCH, CLASSES, EPOCHS, bars, small_network
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler

from batchcam_captum import BatchCamLoss, BatchGradCam, CamRegularizer, ClassPrototypes


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
    prototypes = ClassPrototypes.from_loader(loader, CLASSES, device=device, progress=False)

    model = small_network().to(device)
    mesh = dist.init_device_mesh(device.type, (dist.get_world_size(),))
    for part in (
        model[0],
        model[2],
        model,
    ):  # the parts of its own that a step gathers at once, and then what is left
        fully_shard(part, mesh=mesh)
    # If the mesh has other dimensions, tell the loss which ranks share a batch: sync=mesh["data"].get_group().
    cam_loss = BatchCamLoss(prototypes)
    regularizer = CamRegularizer(BatchGradCam(model, model[1]), cam_loss, weight=0.5).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            with regularizer:
                scores = model(images)
            loss = F.cross_entropy(scores, labels) + regularizer(scores, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            regularizer.step()
        if dist.get_rank() == 0:
            print(
                f"epoch {epoch}", {name: round(value, 4) for name, value in regularizer.read_values().items()}
            )

    # A forward gathers the shards, so all ranks take part in an evaluation.
    images, labels = (tensor.to(device) for tensor in bars(128).tensors)
    with torch.no_grad():
        accuracy = (model.eval()(images).argmax(1) == labels).float().mean().item()
    values = {name: round(value.item(), 4) for name, value in regularizer.evaluate(images, labels).items()}
    if dist.get_rank() == 0:
        print(f"test accuracy {accuracy:.3f}", values)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
