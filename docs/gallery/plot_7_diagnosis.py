"""
Why is it wrong? Diagnosis
==========================

``diagnose`` reads a data set once and reports its cams by class: the mean cam, which class's prototype the cams are closest to,
and how many are dead. It also keeps the worst mistakes, with the cams of the predicted and of the true class.
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

# %%
# Why are they wrong? A cam proposes an answer: the ink where the predicted class has more evidence than the true one. To test
# whether the score depends on that ink, remove it: the six pixels that the cams propose, and for comparison the six pixels whose
# removal, one at a time, lowers the score most.

mistakes = diagnosis.mistakes


def probabilities(picture, without):
    changed = picture.clone()
    changed.view(-1)[without] = 0
    with torch.no_grad():
        return model(changed.unsqueeze(0)).softmax(1)[0]


for index in range(min(2, len(mistakes))):
    picture, label, wrong = (
        mistakes.images[index],
        int(mistakes.labels[index]),
        int(mistakes.predictions[index]),
    )
    ink = picture.flatten().nonzero().flatten()
    of_map = ink[mistakes.differences[index].nan_to_num(0).flatten()[ink].topk(6).indices]
    left = torch.stack([probabilities(picture, place)[wrong] for place in ink])
    tested = ink[left.argsort()[:6]]
    print(f"A {label}, predicted as {wrong} with {mistakes.confidences[index]:.0%}. Without six pixels")
    for name, places in {"of the cams": of_map, "of the test": tested}.items():
        found = probabilities(picture, places)
        verdict = "not the reason" if int(found.argmax()) == wrong else "a reason"
        print(
            f"  {name}: {wrong} with {found[wrong]:.0%}, the prediction is {int(found.argmax())}: this ink is {verdict}"
        )
    print(f"  {int(torch.isin(of_map, tested).sum())} of the six pixels are the same")

# %%
# Where a line ends with "a reason", the prediction changes without that ink. A cam shows the evidence in the network's last
# activations, which is not necessarily what its decision depends on. Where the two answers differ, trust the test.
