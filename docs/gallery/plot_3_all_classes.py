"""
Every class of an image
=======================

``attribute_classes`` returns one map per class, (N, K, h, w), from one forward. Drawn on a common scale they show which pixels
are evidence for which class.
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from batchcam_captum import BatchGradCam
from batchcam_captum.explain import class_grid_figure

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
labels = torch.tensor(digits.target)
torch.manual_seed(0)
model = nn.Sequential(
    nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()),
    nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)),
)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
for _ in range(15):
    for batch, batch_labels in DataLoader(
        TensorDataset(images[:1347], labels[:1347]), batch_size=64, shuffle=True
    ):
        optimizer.zero_grad()
        F.cross_entropy(model(batch), batch_labels).backward()
        optimizer.step()
model.eval()

# %%
# Four digits of the test set and the maps of all ten classes. Each row is scaled to its strongest map.

some = images[[1350, 1360, 1375, 1400]]
cams = BatchGradCam(model, "0").attribute_classes(some)
print(cams.shape)
figure = class_grid_figure(some, cams)

# %%
# For models with many classes, the few with the highest scores:

grad_cam = BatchGradCam(model, "0")
cams, scores = grad_cam.attribute_classes_with_scores(some, lambda scores: scores.topk(3).indices)
figure = class_grid_figure(some, cams, scores.topk(3).indices)
