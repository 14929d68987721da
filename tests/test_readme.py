"""The README keeps its word: its code runs, and its tables are those of the committed results."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.update_readme import FILES, filled

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("file", FILES)
def test_tables_are_those_of_the_committed_results(file):
    text = (ROOT / file).read_text()
    assert filled(text, file) == text


def test_code_runs_in_the_order_in_which_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer4 = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU())
            self.head = nn.Linear(4 * 64, 10)

        def forward(self, images):
            return self.head(self.layer4(images).flatten(1))

    torch.manual_seed(0)
    model = Model()
    images, labels = torch.zeros(20, 1, 8, 8), torch.arange(20) % 10
    images[:, :, 3:5, 3:5] = 0.4 + 0.6 * torch.rand(20, 1, 2, 2)
    before = model.head.weight.detach().clone()
    names = {
        "F": F,
        "model": model,
        "images": images,
        "labels": labels,
        "train_loader": [(images, labels)],
        "test_loader": DataLoader(TensorDataset(images, labels), batch_size=8),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
    }
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 4
    terms = []
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
        if "loss" in names:
            names.pop("loss").backward()
            names["optimizer"].step()
        terms.append(set(names["regularizer"].weights) if "regularizer" in names else set())
    assert names["cams"].shape == (20, 1, 8, 8)
    assert terms == [set(), {"foreground", "shape"}, {"batch_cam"}, {"batch_cam"}]
    assert not torch.equal(model.head.weight, before)
    assert names["store"].maps.shape[0] == 20
    assert Path("maps.html").exists()


def test_pictures_and_links_are_there():
    targets = re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r'src="([^"]+)"', README)
    assert len(targets) > 3
    for target in targets:
        assert target.startswith("https://") or (ROOT / target).exists(), target
