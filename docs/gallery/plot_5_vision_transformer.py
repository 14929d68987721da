"""
A Vision Transformer
====================

A small Vision Transformer of timm, trained on digits for half a minute. Its layers return tokens;
``reshape="auto"`` arranges them as a map.
"""

import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from batchcam_captum import BatchGradCam, suggest_layers
from batchcam_captum.explain import side_by_side_figure

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
labels = torch.tensor(digits.target)
torch.manual_seed(0)
model = timm.models.VisionTransformer(
    img_size=8, patch_size=1, in_chans=1, num_classes=10, embed_dim=48, depth=2, num_heads=4
)
torch.nn.init.normal_(
    model.pos_embed
)  # larger than usual, so that the position of a token is known from the first step
train = DataLoader(TensorDataset(images[:1347], labels[:1347]), batch_size=64, shuffle=True)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=20 * len(train))
for _ in range(20):
    for batch, batch_labels in train:
        optimizer.zero_grad()
        F.cross_entropy(model(batch), batch_labels).backward()
        optimizer.step()
        schedule.step()
model.eval()
with torch.no_grad():
    print(
        f"{(model(images[1347:]).argmax(1) == labels[1347:]).float().mean():.1%} of the test images are right"
    )

# %%
# Which layer? Only the class token is read after the last block, so the other tokens have no gradient there; the first
# norm of that block comes before attention mixes them.

suggestions = suggest_layers(model, images[:2])
print(suggestions)

# %%
layer = suggestions.recommended
grad_cam = BatchGradCam(model, layer.name, reshape=layer.reshape)
some = images[[1350, 1361, 1372, 1383]]
cams = grad_cam.attribute(some, target=lambda scores: scores.amax(1))
figure = side_by_side_figure(some, cams)
