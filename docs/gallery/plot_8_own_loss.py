"""
Your own loss
=============

A model must not look at the left part of its images, where a scanner prints its name. One method of a class makes that a loss.
"""

import torch
import torch.nn.functional as F
from matplotlib import pyplot
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from batchcam_captum import BatchGradCam, CamRegularizer
from batchcam_captum.losses import CamLoss

digits = load_digits()
images = torch.zeros(len(digits.images), 1, 8, 12)
images[..., 4:] = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
labels = torch.tensor(digits.target)

# %%
# The name of the scanner: a pattern of pixels that tells the class in training and is random in the test.


def with_name(images, classes):
    printed = images.clone()
    bits = torch.stack([classes >> bit & 1 for bit in range(4)], 1).float()
    printed[:, 0, 1:5, 1] = bits
    return printed


train = TensorDataset(with_name(images[:1347], labels[:1347]), labels[:1347])
draw = torch.Generator().manual_seed(0)
test_images = with_name(images[1347:], torch.randint(10, (450,), generator=draw))
test_labels = labels[1347:]

# %%
# The loss: the squared evidence in the left part of an element-wise map of all classes' scores. ``default_method`` and
# ``default_score`` say which map the loss is given.


class KeepOut(CamLoss):
    """Evidence in the columns that the model must not use, for or against a class."""

    default_method = "hires_cam"
    default_score = "log_prob_sum"

    def per_sample(self, samples):
        return samples.cams[..., :3].square().flatten(1).sum(1)


def trained(weight):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 24, 64), nn.ReLU(), nn.Linear(64, 10)),
    )
    regularizer = CamRegularizer(BatchGradCam(model, "0"), {"keep_out": (KeepOut(), weight)})
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(15):
        for batch, batch_labels in DataLoader(train, batch_size=64, shuffle=True):
            with regularizer:
                scores = model(batch)
            loss = F.cross_entropy(scores, batch_labels) + regularizer(scores, batch_labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


figure, axes = pyplot.subplots(2, 6, figsize=(9, 2.6))
for line, weight in zip(axes, [0.0, 0.1], strict=True):
    model = trained(weight)
    accuracy = (model(test_images).argmax(1) == test_labels).float().mean()
    cams = BatchGradCam(model, "0", method="hires_cam").attribute(test_images[:3], target=test_labels[:3])
    line[0].set_title(
        f"weight {weight}: {accuracy:.0%} right without the name's help", loc="left", fontsize=9
    )
    for number in range(3):
        line[2 * number].imshow(test_images[number, 0], cmap="gray")
        line[2 * number + 1].imshow(cams[number, 0].clamp(min=0), cmap="magma")
    for axis in line:
        axis.axis("off")

# %%
# One seed of a toy; the study of this documentation has real decoys, several seeds and the limits.
