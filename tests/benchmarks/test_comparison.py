"""The comparison study: its page is that of the committed results, and what it counts is right."""

import importlib
import json
import re
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@contextmanager
def importing(monkeypatch):
    """Import scripts that lie beside each other, and unload them again."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    before = set(sys.modules)
    try:
        yield importlib.import_module
    finally:
        for name in set(sys.modules) - before:
            if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == BENCHMARKS:
                del sys.modules[name]


@pytest.fixture
def load(monkeypatch):
    with importing(monkeypatch) as found:
        yield found


def test_the_page_is_that_of_the_committed_results(load):
    page = load("comparison_page")
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.filled(text) == text
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert target.startswith("https://") or (page.PAGE.parent / target).exists(), target


ENVIRONMENT = {
    "allocator": {}, "device_name": "X", "threads": 2, "torch": "2.15", "captum": "0.9", "date": "2026-11-21T1",
    "commit": "abc", "peers": {"grad-cam": "1.5.7", "torchcam": None, "timm": "1", "torchvision": "2"},
}  # fmt: skip


def write(folder, name, **record):
    record = {"environment": ENVIRONMENT, "notes": [], "figures": [], "cases": []} | record
    (folder / f"{name}.json").write_text(json.dumps(record))


def test_a_device_without_results_is_named(load, tmp_path):
    page = load("comparison_page")
    assert page.sections("comparison_cost", page.cost, tmp_path).count("not measured yet") == 2
    write(tmp_path, "comparison_cost-tf32-cuda")
    write(tmp_path, "comparison_cost-cpu")
    made = page.sections("comparison_cost", page.cost, tmp_path)
    assert "not measured yet" not in made
    assert made.index("**On a CPU.**") < made.index("**On a GPU, tf32.**")


def test_the_page_shows_failures_and_misses(load, tmp_path):
    page = load("comparison_page")
    missed = {"max": 2.5e-4, "maps": 4, "from_float64": {"theirs": 3e-4, "ours": 1e-4}}
    maps = {
        "pytorch-grad-cam": {"grad_cam": missed, "hires_cam": {"max": 0.0, "maps": 4}},
        "TorchCAM": {"grad_cam": {"failed": "RuntimeError: no"}},
    }
    case = {
        "case": "net, float32", "architecture": "net", "variant": "float32", "model": "m", "source": "timm", "layer": "l",
        "size": 64, "maps": maps,
    }  # fmt: skip
    figure = {
        "case": "net, float32", "figure": "pytorch-grad-cam, largest difference", "value": 2.5e-4, "reach": 1e-4,
        "reached": False,
    }  # fmt: skip
    write(tmp_path, "comparison-cpu", cases=[case], figures=[figure])
    made = page.sections("comparison", page.agreement, tmp_path)
    assert "Missed: 1 of 1" in made
    assert "| float32 | 2.5e-4 (median 1.3e-4) | fails |" in made
    assert "| net, float32 | pytorch-grad-cam, `grad_cam` | 2.5e-4 | 3.0e-4 | 1.0e-4 |" in made
    assert "hires_cam` | 0.0" not in made


def test_what_does_not_run_is_named(load):
    failure = load("comparison_cost").failure

    def unknown():
        raise TypeError("Got unsupported ScalarType BFloat16\nmore")

    assert failure(unknown, "cpu") == "TypeError: Got unsupported ScalarType BFloat16"
    assert failure(lambda: None, "cpu") is None


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 8, bias=False), nn.Linear(8, 2, bias=False)

    def forward(self, x):
        return self.last(self.first(x).exp())


def test_what_a_call_does_is_counted(load):
    counted = load("comparison_profile").counted
    model, x = Net(), torch.randn(3, 4)

    def bare():
        with torch.no_grad():
            model(x)

    def twice_with_gradients():
        for _ in range(2):
            model(x).sum().backward()

    forward = counted(bare, model, "cpu")
    assert forward["flops"] == 2 * 3 * (4 * 8 + 8 * 2)
    assert (forward["forwards"], forward["saved_bytes"], forward["autograd_nodes"]) == (1, 0, 0)
    both = counted(twice_with_gradients, model, "cpu")
    # Forward, and backward to both weights and to the hidden layer.
    assert both["flops"] == 2 * (2 * forward["flops"] + 2 * 3 * 8 * 2)
    assert both["forwards"] == 2
    # Of one forward: the input and exp's result, once, although exp and the last layer both keep it.
    assert both["saved_bytes"] == 4 * (3 * 4 + 3 * 8)
    assert both["operators"] > forward["operators"]
    grouped, images = nn.Conv2d(4, 8, 3, stride=2, groups=4), torch.randn(2, 4, 9, 9, requires_grad=True)
    forward = counted(lambda: grouped(images), grouped, "cpu")["flops"]
    assert counted(lambda: grouped(images).sum().backward(), grouped, "cpu")["flops"] == 3 * forward


def test_the_study_tells_maps_apart(load):
    numbers = load("comparison").numbers
    maps = torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    other = maps.clone()
    other[1, 0, 2, 2] += 0.25
    found = numbers(maps, other, "unit")
    assert found["max"] == pytest.approx(0.25, rel=1e-5)
    assert (found["maps"], found["identical"]) == (2, 1)
    other[0, 0, 0, 0] = float("nan")
    assert numbers(maps, other, "unit")["max"] == float("inf"), "NaN in one library is no agreement"


def test_the_networks_differ_and_tokens_become_their_grid(load):
    architectures = load("comparison_architectures")
    assert len(architectures.ARCHITECTURES) >= 30
    first, second = (
        torch.cat([parameter.detach().flatten() for parameter in architectures.built(name).parameters()])
        for name in ("ViT-Ti", "DeiT-Ti")
    )
    assert not torch.equal(first, second)
    grid = torch.randn(2, 3, 4, 4)
    sequence = torch.cat([torch.zeros(2, 2, 3), grid.flatten(2).mT], 1)
    assert torch.equal(architectures.tokens(2)(sequence), grid)
