"""
Training: before and after
==========================

The same network trained twice, with the same seed and the same batches: with cross-entropy alone, and with a Batch-CAM loss.
"""

import torch
import torch.nn.functional as F
from matplotlib import pyplot
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from batchcam_captum import BatchCamLoss, BatchGradCam, CamRegularizer, ClassPrototypes
from batchcam_captum.functional import normalize, rectify

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
labels = torch.tensor(digits.target)
train = TensorDataset(images[:1347], labels[:1347])
test_images, test_labels = images[1347:], labels[1347:]
prototypes = ClassPrototypes.from_loader(DataLoader(train, 256), num_classes=10, progress=False)

# %%
# The prototypes are the mean images of the classes:

figure, axes = pyplot.subplots(1, 10, figsize=(9, 1.1))
for axis, prototype in zip(axes, prototypes.maps(), strict=True):
    axis.imshow(prototype[0], cmap="gray")
    axis.axis("off")

# %%
# The loop. Only the ``with`` and one term of the loss are new.


def trained(weight):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)),
    )
    regularizer = CamRegularizer(
        BatchGradCam(model, "0"), BatchCamLoss(prototypes, distance="ssim"), weight=weight
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(20):
        for batch, batch_labels in DataLoader(train, batch_size=64, shuffle=True):
            with regularizer:
                scores = model(batch)
            loss = F.cross_entropy(scores, batch_labels) + regularizer(scores, batch_labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


models = {"cross-entropy": trained(0.0), "with the loss": trained(1.0)}

# %%
# Maps of test images, each scaled to its own maximum:

rows = {"image": test_images[:10]}
for name, model in models.items():
    accuracy = (model(test_images).argmax(1) == test_labels).float().mean()
    cams = BatchGradCam(model, "0").attribute(test_images[:10], target=test_labels[:10])
    rows[f"{name}: {accuracy:.1%} right"] = normalize(rectify(cams), "max")
# sphinx_gallery_thumbnail_number = 2
figure, axes = pyplot.subplots(3, 10, figsize=(9, 3.4))
for line, (name, pictures) in zip(axes, rows.items(), strict=True):
    line[0].set_title(name, loc="left", fontsize=9)
    for axis, picture in zip(line, pictures, strict=True):
        axis.imshow(picture[0].detach(), cmap="gray" if name == "image" else "magma", vmin=0, vmax=1)
        axis.axis("off")

# %%
# The maps in the last row follow the digits, as the loss demands. The study measures what that is worth.
