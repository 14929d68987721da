"""The comparison study: its page is that of the committed results, what fails is named, and what it counts is right."""

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
    """The benchmarks are scripts beside each other; what they load goes away again."""
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


def test_a_device_without_results_is_said_plainly(load, tmp_path):
    page = load("comparison_page")
    made = page.sections("comparison_cost", page.cost, tmp_path)
    assert made.count("not measured yet") == 2
    write(tmp_path, "comparison_cost-tf32-cuda")
    write(tmp_path, "comparison_cost-cpu")
    made = page.sections("comparison_cost", page.cost, tmp_path)
    assert "not measured yet" not in made
    assert made.index("**On a CPU.**") < made.index("**On a GPU, tf32.**")
    assert "TorchCAM not installed" in made


def test_the_page_shows_failures_and_misses(load, tmp_path):
    page = load("comparison_page")
    maps = {
        "pytorch-grad-cam": {"grad_cam": {"max": 2.5e-4, "maps": 4, "identical": 1}, "hires_cam": {"max": 0.0, "maps": 4}},
        "TorchCAM": {"grad_cam": {"failed": "TorchCAM cannot do this: no"}},
    }  # fmt: skip
    case = {
        "case": "net, float32", "architecture": "net", "variant": "float32", "model": "m", "source": "timm", "layer": "l",
        "size": 64, "maps": maps,
    }  # fmt: skip
    figure = {"case": "net, float32", "figure": "f", "value": 2.5e-4, "reach": 1e-4, "reached": False}
    note = "Missed: net, float32, pytorch-grad-cam, `grad_cam`: 2.5e-04."
    write(tmp_path, "comparison-cpu", cases=[case], figures=[figure], notes=["a note", note])
    made = page.sections("comparison", page.agreement, tmp_path)
    assert "Missed: 1 of 1" in made
    assert "| float32 | 2.5e-4 (median 1.3e-4); 1 of 8 maps to the last bit | fails |" in made
    assert "- float32: TorchCAM cannot do this: no" in made
    assert "- net, float32, pytorch-grad-cam, `grad_cam`: 2.5e-04." in made


def test_running_out_of_memory_is_a_result(load):
    failure = load("comparison_cost").failure

    def too_large():
        raise torch.OutOfMemoryError("CUDA out of memory")

    def unknown():
        raise TypeError("Got unsupported ScalarType BFloat16\nmore")

    assert failure(too_large, "cpu") == "out of memory"
    assert failure(unknown, "cpu") == "TypeError: Got unsupported ScalarType BFloat16"
    assert failure(lambda: None, "cpu") is None


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 8, bias=False), nn.Linear(8, 2, bias=False)

    def forward(self, x):
        return self.last(self.first(x).exp())


def test_what_a_call_makes_the_machine_do_is_counted(load):
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
    assert both["autograd_nodes"] > 6
    assert both["operators"] > forward["operators"]


@pytest.mark.parametrize("groups", [1, 4])
def test_the_arithmetic_of_a_convolutions_backward_is_twice_the_forwards(load, groups):
    counted = load("comparison_profile").counted
    model, x = nn.Conv2d(4, 8, 3, stride=2, groups=groups), torch.randn(2, 4, 9, 9, requires_grad=True)
    forward = counted(lambda: model(x), model, "cpu")["flops"]
    assert forward == 2 * (2 * 4 * 4 * 8) * (9 * 4 // groups)
    assert counted(lambda: model(x).sum().backward(), model, "cpu")["flops"] == 3 * forward


def test_the_study_tells_maps_apart(load):
    numbers = load("comparison").numbers
    maps = torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    other = maps.clone()
    other[1, 0, 2, 2] += 0.25
    found = numbers(maps, other, "unit")
    assert found["max"] == pytest.approx(0.25, rel=1e-5)
    assert (found["maps"], found["identical"]) == (2, 1)
    other[0, 0, 0, 0] = float("nan")
    assert numbers(maps, other, "unit")["max"] == float("inf"), "NaN on one side only is no agreement"


def test_the_networks_are_twenty_and_more_and_none_is_another(load):
    architectures = load("comparison_architectures")
    assert len(architectures.ARCHITECTURES) >= 20
    first = {}
    for name in ("ConvNeXt", "ConvNeXt-V2", "ViT-Ti", "DeiT-Ti"):
        model = architectures.built(name)
        assert not model.training
        weights = torch.cat([p.detach().flatten() for p in model.parameters()])
        assert not any(torch.equal(weights, other) for other in first.values())
        first[name] = weights


@pytest.mark.parametrize("prefix", [1, 2])
def test_tokens_become_the_grid_they_came_from(load, prefix):
    grid = torch.randn(2, 3, 4, 4)
    sequence = torch.cat([torch.zeros(2, prefix, 3), grid.flatten(2).mT], 1)
    assert torch.equal(load("comparison_architectures").tokens(prefix)(sequence), grid)
