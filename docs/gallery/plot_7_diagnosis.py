"""
Why is it wrong? Diagnosis
==========================

``diagnose`` goes through a data set once and keeps what its maps say by class: the mean map, which class's prototype maps are
nearest to, how many are dead, and the worst mistakes with the maps of the class that was predicted and of the true one.
"""

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib import pyplot
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from batchcam_captum import BatchGradCam, ClassPrototypes
from batchcam_captum.evaluation import diagnose

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
labels = torch.tensor(digits.target)
train = TensorDataset(images[:1347], labels[:1347])
test = TensorDataset(images[1347:], labels[1347:])
torch.manual_seed(0)
model = nn.Sequential(
    nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()),
    nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)),
)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
for _ in range(8):
    for batch, batch_labels in DataLoader(train, batch_size=64, shuffle=True):
        optimizer.zero_grad()
        F.cross_entropy(model(batch), batch_labels).backward()
        optimizer.step()
model.eval()

# %%
prototypes = ClassPrototypes.from_loader(DataLoader(train, 256), num_classes=10, progress=False)
diagnosis = diagnose(BatchGradCam(model, "0"), DataLoader(test, 64), prototypes)
print(diagnosis.text())

# %%
# ``save`` writes figures, numbers and arrays.

folder = Path(tempfile.mkdtemp())
print(diagnosis.save(folder))
picture = pyplot.imread(folder / "misclassified.png")
figure, axis = pyplot.subplots(figsize=(9, 9 * picture.shape[0] / picture.shape[1]))
axis.imshow(picture)
axis.axis("off")
