"""
Volumes
=======

Maps have as many spatial dimensions as the layer, here three: balls and cubes in noisy volumes, and slices through the maps.
"""

import torch
import torch.nn.functional as F
from matplotlib import pyplot
from torch import nn

from batchcam_captum import BatchGradCam
from batchcam_captum.functional import normalize, rectify, resize


def volumes(count, seed):
    """Return volumes (count, 1, 20, 20, 20) with a ball or a cube at a random place, and which of the two."""
    draw = torch.Generator().manual_seed(seed)
    centers = torch.randint(6, 14, (count, 3, 1, 1, 1), generator=draw)
    grid = torch.stack(torch.meshgrid(*[torch.arange(20)] * 3, indexing="ij"))
    offsets = (grid - centers).abs().float()
    labels = torch.arange(count) % 2
    ball = offsets.square().sum(1) <= 4.5**2
    cube = offsets.amax(1) <= 3.6
    inside = torch.where(labels.view(-1, 1, 1, 1).bool(), cube, ball)
    noise = 0.5 * torch.randn(inside.shape, generator=draw)
    return (inside + noise).unsqueeze(1), labels


images, labels = volumes(256, seed=0)
torch.manual_seed(0)
model = nn.Sequential(
    nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(8, 16, 3, padding=1), nn.ReLU()
    ),
    nn.Sequential(nn.AdaptiveMaxPool3d(1), nn.Flatten(), nn.Linear(16, 2)),
)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for _ in range(20):
    for batch, batch_labels in zip(images.split(32), labels.split(32), strict=True):
        optimizer.zero_grad()
        F.cross_entropy(model(batch), batch_labels).backward()
        optimizer.step()
model.eval()
test_images, test_labels = volumes(64, seed=1)
with torch.no_grad():
    right = (model(test_images).argmax(1) == test_labels).float().mean()
print(f"{right:.0%} of 64 new volumes are right")

# %%
# Maps of 10 × 10 × 10 voxels, resized trilinearly.

cams = BatchGradCam(model, "0").attribute(test_images[:1], target=test_labels[:1])
print(cams.shape)
maps = normalize(rectify(resize(cams, (20, 20, 20))), "max")[0, 0]
figure, axes = pyplot.subplots(2, 6, figsize=(9, 3.2))
for column, depth in enumerate(range(4, 16, 2)):
    for axis, picture, colors in (
        (axes[0, column], test_images[0, 0, depth], "gray"),
        (axes[1, column], maps[depth], "magma"),
    ):
        axis.imshow(picture, cmap=colors, vmin=0, vmax=1)
        axis.axis("off")
    axes[0, column].set_title(f"slice {depth}", fontsize=9)
